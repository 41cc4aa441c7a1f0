"""The tiers of tests: which files `make test-fast` leaves out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
SLOW = (TESTS / "slow.txt").read_text().split()


def test_the_slow_files_are_there_each_once_and_in_order():
    assert [name for name in SLOW if not (TESTS / name).is_file()] == []
    assert sorted(set(SLOW)) == SLOW


def test_the_fast_tier_leaves_them_out_and_keeps_the_others():
    files = [TESTS / "docs" / "test_tiers.py", TESTS / "deploy" / "test_batches.py"]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "not slow and not reliability", *files]
    said = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent, timeout=120).stdout
    assert "deploy/test_batches.py" in SLOW
    assert "test_tiers.py::test_the_fast_tier" in said
    assert "test_batches.py::" not in said
