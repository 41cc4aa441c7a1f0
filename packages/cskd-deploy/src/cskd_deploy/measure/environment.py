"""What a measurement was taken on: processor, GPUs, clocks, memory, threads, versions."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from cskd_data.cores import usable_cores as usable_cores
from cskd_deploy.arguments import whole
from cskd_deploy.backends.tensorrt.driver import find_driver
from cskd_deploy.errors import BackendMissing

_MEASURED = (
    "cskd-deploy",
    "numpy",
    "opencv-python-headless",
    "opencv-python",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "torch",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
)
_CLOCKS = Path("/sys/devices/system/cpu/cpu0/cpufreq")
_BOARD = Path("/proc/device-tree/model")
_DRIVER = Path("/sys/module/nvidia/version")
# Of a Jetson: its power modes by number, the number of the one that was chosen last, and the clocks of its GPU.
_POWER_MODES = Path("/etc/nvpmodel.conf")
_POWER_MODE = Path("/var/lib/nvpmodel/status")
_FREQUENCIES = Path("/sys/class/devfreq")
_GPU_NODES = ("*.gpu", "*.ga10b", "*.gv11b")  # as L4T 36, 35 and older ones call an Orin's or a Xavier's


def processor_name() -> str:
    """The processor's own name, or its architecture where the system does not tell."""
    facts: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip().lower(), value.strip())
    return facts.get("model name") or facts.get("hardware") or platform.processor() or platform.machine()


# As Linux calls them, and as they are called here; those that decide how fast or how exact a network runs.
_INSTRUCTION_SETS = {
    **{name: name for name in ("sse4_1", "avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni")},
    **{name: name for name in ("amx_int8", "amx_bf16", "i8mm", "sve", "bf16")},
    **{"asimd": "neon", "asimddp": "dotprod"},
}
_VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}  # sums of products of 8 bits in 32 bits


def instruction_sets(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """Those of the processor's instruction sets that matter to a network; none where the system does not tell.

    Args:
        cpuinfo: Linux's description of the processor, with `flags` on x86 and `Features` on ARM.
    """
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                there = set(value.split())
                return tuple(name for flag, name in _INSTRUCTION_SETS.items() if flag in there)
    return ()


def lacks(requires: Sequence[str], there: Sequence[str]) -> tuple[str, ...]:
    """Which of the instruction sets that a file requires (`Manifest.requires`) a processor has not.

    `vnni` is any of x86's forms of it. ARM needs none: it adds in 32 bits anyway.

    Args:
        there: as `instruction_sets` gives them; where it gives none, nothing is missed.
    """
    x86 = any(name.startswith(("sse", "avx", "amx")) for name in there)
    met = {*there, *(("vnni",) if _VNNI.intersection(there) or not x86 else ())}
    return tuple(name for name in requires if there and name not in met)


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


def gpus() -> dict[str, Any]:
    """The GPUs that the NVIDIA driver lists, its version, and the newest CUDA that it runs; without a driver none."""
    try:
        driver = find_driver()
    except BackendMissing:
        return {"gpus": [], "gpu_driver": None, "cuda": None}
    return {"gpus": [gpu.name for gpu in driver.gpus], "gpu_driver": _text(_DRIVER), "cuda": driver.cuda_version}


def board() -> str | None:
    """The model of a board (`NVIDIA Jetson AGX Orin Developer Kit`); None of a machine that has no device tree."""
    return _text(_BOARD)


def power_mode() -> str | None:
    """The power mode of a Jetson, as `nvpmodel -q` names it; None where nothing tells.

    Where the command is missing, as in a container, or answers to root alone, its files tell.
    """
    for line in _answer(["nvpmodel", "-q"]):
        name, _, mode = line.partition(":")
        if name.strip().lower() == "nv power mode":
            return mode.strip()
    modes = _text(_POWER_MODES) or ""
    number = re.search(r"pmode:0*(\d+)", _text(_POWER_MODE) or "") or re.search(r"PM_CONFIG +DEFAULT=(\d+)", modes)
    if number is None:
        return None
    found = re.search(rf"POWER_MODEL +ID={number[1]} +NAME=([^ >]+)", modes)
    return found[1] if found else f"mode {number[1]}"


def board_gpu_clocks() -> dict[str, float]:
    """The clock in MHz of a Jetson's GPU now, at least and at most; empty where there is none."""
    nodes = [node for pattern in _GPU_NODES for node in sorted(_FREQUENCIES.glob(pattern))]
    found: dict[str, float] = {}
    for node in nodes[:1]:
        for name, file in (("mhz", "cur_freq"), ("min_mhz", "min_freq"), ("max_mhz", "max_freq")):
            with contextlib.suppress(OSError, ValueError):
                found[name] = int((node / file).read_text()) / 1e6
    return found


def jetson_clocks() -> str | None:
    """Whether `jetson_clocks` holds the clock of a Jetson's GPU at its highest, "on" or "off"; None elsewhere."""
    clocks = board_gpu_clocks()
    if "min_mhz" not in clocks or "max_mhz" not in clocks:
        return None
    return "on" if clocks["min_mhz"] == clocks["max_mhz"] else "off"


def clocks() -> dict[str, float | str]:
    """The processor's clock in MHz now and at most, and its governor, as far as the system tells."""
    found: dict[str, float | str] = {}
    for name, file in (("mhz", "scaling_cur_freq"), ("max_mhz", "cpuinfo_max_freq")):
        with contextlib.suppress(OSError, ValueError):
            found[name] = int((_CLOCKS / file).read_text()) / 1e3
    with contextlib.suppress(OSError):
        found["governor"] = (_CLOCKS / "scaling_governor").read_text().strip()
    if "mhz" not in found:
        with contextlib.suppress(OSError, ValueError):
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            found["mhz"] = max(float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz"))
    return found


def gpu_clocks() -> list[str]:
    """The clocks of the GPUs now and at most, as `nvidia-smi` writes them, or a Jetson's; none where nothing tells."""
    asked = _answer(["nvidia-smi", "--query-gpu=clocks.sm,clocks.max.sm", "--format=csv,noheader"])
    board = board_gpu_clocks()
    if "[N/A]" in "".join(asked) or not asked:
        return [f"{board['mhz']:.0f} MHz, {board['max_mhz']:.0f} MHz"] if {"mhz", "max_mhz"} <= board.keys() else []
    return asked


def _answer(command: Sequence[str]) -> list[str]:
    """The lines that a command prints; none where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def _text(file: Path) -> str | None:
    try:
        return file.read_text(errors="replace").strip("\0 \n") or None
    except OSError:
        return None


def memory_bytes() -> int | None:
    """The machine's memory; None where the system does not tell."""
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def thread_count(asked: int | None) -> int:
    """How many threads are asked for; None takes every core that this process may use.

    Raises:
        DeployError: it is no whole number from 1 on.
    """
    return usable_cores() if asked is None else whole(asked, "threads")


def describe(threads: int) -> dict[str, Any]:
    """The environment of a measurement with so many threads, as plain data."""
    seen, model = gpus(), board()
    return {
        "processor": processor_name(),
        "instruction_sets": list(instruction_sets()),
        "cores": usable_cores(),
        "threads": threads,
        "clocks": clocks(),
        "board": model,
        "power_mode": None if model is None else power_mode(),
        "jetson_clocks": None if model is None else jetson_clocks(),
        **seen,
        "gpu_clocks": gpu_clocks() if seen["gpus"] else [],
        "memory_bytes": memory_bytes(),
        "system": platform.platform(),
        "versions": versions(),
    }
