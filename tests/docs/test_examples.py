"""The examples in docstrings of cskd-train and cskd-deploy run; pytest runs those of the other two packages itself."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

PACKAGES = Path(__file__).parents[2] / "packages"
MODULES = sorted(
    ".".join(path.relative_to(source).with_suffix("").parts)
    for source in (PACKAGES / name / "src" for name in ("cskd-train", "cskd-deploy"))
    for path in source.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


def test_there_are_examples():
    assert len(MODULES) >= 3


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_a_module_give_what_they_say(module):
    found = doctest.testmod(importlib.import_module(module))
    assert found.failed == 0
    assert found.attempted > 0
