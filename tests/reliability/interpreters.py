"""The Python interpreters of this machine, by minor version (of `CSKD_PYTHONS`, the path or pyenv); environments."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
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


def run(python: Path, *arguments: object, path: str = "") -> str:
    """What an interpreter prints, with the folders of `path` alone beside its own packages."""
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [str(python), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1000, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def edge_environment(folder: Path, python: Path, extra: str, *more: str) -> Path:
    """The interpreter of a new environment with the edge packages alone, copies of them.

    Args:
        extra: of cskd-deploy, the runtime: `ort` or `ort-gpu`.
        more: further requirements.
    """
    for name in ("cskd-data", "cskd-deploy"):  # copies: building leaves nothing in the repository
        ignore = shutil.ignore_patterns("*.egg-info", "build")
        shutil.copytree(REPOSITORY / "packages" / name, folder / name, ignore=ignore)
    run(python, "-m", "venv", folder / "environment")
    binary = folder / "environment" / "bin" / "python"
    run(binary, "-m", "pip", "install", "-q", *more, folder / "cskd-data", f"{folder / 'cskd-deploy'}[{extra}]")
    return binary
