"""The Python interpreters of this machine, by minor version: of `CSKD_PYTHONS`, the path or pyenv."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

MINORS = (10, 11, 12, 13)


def interpreter(minor: int) -> Path | None:
    """An interpreter of Python 3.`minor` that runs; None where there is none.

    `CSKD_PYTHONS` lists interpreters as PATH lists folders, and then only these are taken.
    """
    return next((path for path in _candidates(minor) if _version(path) == f"3.{minor}"), None)


def _candidates(minor: int) -> Iterator[Path]:
    listed = os.environ.get("CSKD_PYTHONS")
    if listed:
        yield from map(Path, listed.split(os.pathsep))
        return
    on_path = shutil.which(f"python3.{minor}")
    if on_path:
        yield Path(on_path)
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    yield from sorted(versions.glob(f"3.{minor}.*/bin/python"))


def _version(python: Path) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:  # a shim of pyenv is there for versions that are not
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60)
    except OSError:
        return ""
    return done.stdout.strip()
