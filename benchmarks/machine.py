"""The machine, the versions and the commit that a figure belongs to."""

from __future__ import annotations

import contextlib
import hashlib
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from cskd_deploy.measure.environment import instruction_sets, processor_name

ROOT = Path(__file__).parents[1]
CPU = "CPU"  # what the name of a device begins with that is no GPU
DISTRIBUTIONS = ("torch", "torchvision", "mmdet", "mmcv-full", "mmcv", "numpy")


def describe(device: str) -> dict[str, Any]:
    """Device (None without a GPU), driver, CUDA, processor, versions and commit."""
    gpu = device == "cuda"
    name = None if gpu else CPU
    if gpu and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    return {
        "device": name,
        "driver": driver() if gpu else None,
        "cuda": torch.version.cuda if gpu else None,
        **processor(),
        "python": platform.python_version(),
        "versions": versions(),
        "commit": commit(ROOT),
    }


def versions() -> dict[str, str | None]:
    """Of the distributions that a figure depends on; None where one is not installed."""
    found: dict[str, str | None] = dict.fromkeys(DISTRIBUTIONS)
    for name in DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return {**found, "torch": str(torch.__version__)}  # with its build: 2.13.0+cu130


def processor() -> dict[str, Any]:
    """The processor's model and those of its instruction sets that decide how fast it is."""
    return {"processor": processor_name(), "instructions": list(instruction_sets())}


def key_of(record: Mapping[str, Any]) -> str:
    """What tells the machine of a figure from others: the processor, its instructions and the GPU that computed.

    Several processors may have one name. A number of threads is no other machine, and a record whose machine is not
    known is of none that is.

    Args:
        record: with `processor`, `instructions` and, of what a GPU may have computed, `device`.
    """
    if record.get("processor") is None:
        return "machine not known"
    name = f"{record['processor']} ({', '.join(record['instructions'])})"
    device = record.get("device") or CPU
    return name if on_processor(device) else f"{name}, {device}"


def on_processor(device: str) -> bool:
    """Whether a device, as `describe` or a run's result.json names it, is a processor."""
    return device.startswith(CPU)


def origin() -> dict[str, Any]:
    """Of a line of figures: processor, torch and commit."""
    return {**processor(), "torch": str(torch.__version__), "commit": commit(ROOT)}


def driver() -> str | None:
    """The version of NVIDIA's driver, as nvidia-smi tells it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return None


def commit(tree: Path) -> str:
    """The commit that is checked out in `tree`, and a hash of what has been changed since, where something has."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        head = _git(tree, "rev-parse", "--short=10", "HEAD")
        changes = _git(tree, "diff", "HEAD", "--", "packages", "benchmarks", "configs", "tests")
        return f"{head} with changes {hashlib.sha256(changes.encode()).hexdigest()[:10]}" if changes else head
    return "unknown (no git checkout)"


def _git(tree: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", tree, *arguments], capture_output=True, text=True, check=True).stdout.strip()
