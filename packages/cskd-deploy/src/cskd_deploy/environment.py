"""What a measurement was taken on: processor, threads, versions."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

_MEASURED = (
    "cskd-deploy",
    "numpy",
    "opencv-python-headless",
    "opencv-python",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
)


def processor_name() -> str:
    """The processor's own name, or its architecture where the system does not tell."""
    facts: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip().lower(), value.strip())
    return facts.get("model name") or facts.get("hardware") or platform.processor() or platform.machine()


def usable_cores() -> int:
    """Logical cores that this process may run on (a container often has fewer than the machine)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution, without importing it; None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def versions(distributions: Sequence[str] = _MEASURED) -> dict[str, str]:
    """Python's version and those of the installed `distributions`."""
    found = {name: version_of(name) for name in distributions}
    return {"python": platform.python_version(), **{name: version for name, version in found.items() if version}}


def describe(threads: int) -> dict[str, str | int | dict[str, str]]:
    """The environment of a measurement with so many threads, as plain data."""
    return {
        "processor": processor_name(),
        "cores": usable_cores(),
        "threads": threads,
        "system": platform.platform(),
        "versions": versions(),
    }
