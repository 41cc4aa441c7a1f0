"""The example of cskd-core without any framework."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "packages" / "cskd-core" / "examples" / "two_plain_detectors.py"


def test_the_example_is_short_and_its_loss_falls():
    assert len(EXAMPLE.read_text().splitlines()) < 60
    run = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, check=True)
    first, last = map(float, re.findall(r"\d+\.\d+", run.stdout))
    assert last < 0.5 * first


def test_the_example_loads_no_framework():
    code = f"import sys, runpy; runpy.run_path({str(EXAMPLE)!r}); print(sorted(m for m in sys.modules if '.' not in m))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"mmdet", "mmcv", "cskd_train"} & set(eval(run.stdout))
