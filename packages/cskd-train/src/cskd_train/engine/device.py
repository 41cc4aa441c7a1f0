"""The device that a command runs on, and the memory of a processor."""

from __future__ import annotations

import ctypes
import os
import platform

import torch

from cskd_data.cores import usable_cores
from cskd_train.errors import TrainError

CHOICES = ("auto", "cpu", "cuda")

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # the names of <malloc.h>


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of `auto` (a GPU where there is one), `cpu` or `cuda`.

    On the processor torch takes a thread for each core that it sees; where a container may use fewer, so many, unless
    OMP_NUM_THREADS says how many.

    Args:
        local_rank: of this process among those of its machine; each takes a GPU of its own.

    Raises:
        TrainError: `cuda` where torch sees no GPU; more processes than GPUs.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainError("--device cuda: torch sees no GPU here (cskd-train doctor says why); use --device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        if torch.get_num_threads() > usable_cores() and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(usable_cores())
        return torch.device("cpu")
    check_gpus(local_rank + 1)
    return torch.device("cuda", local_rank)


def check_gpus(processes: int) -> None:
    """Refuse more processes on this machine than it has GPUs.

    Raises:
        TrainError: names both numbers.
    """
    if processes > torch.cuda.device_count():
        raise TrainError(
            f"{processes} processes on a machine where torch sees {torch.cuda.device_count()} GPU(s), and each takes "
            "one: lower the number (--gpus), or train on the processor with --device cpu"
        )


def device_name(device: torch.device) -> str:
    """What to call a device in a table of results."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def keep_freed_memory(keep: bool = True) -> None:
    """Ask glibc to keep what is freed, instead of giving every large tensor back to the kernel.

    A training step on a processor allocates and frees the same large tensors again and again; by default each of them
    is mapped anew, and the kernel clears every page on first use. The process then keeps its peak of memory until it
    ends. Without glibc (macOS, Alpine, Windows) nothing is done.

    Args:
        keep: False goes back to glibc's defaults, for a process that was forked from one that keeps.

    Source: the figures are in docs/performance.md.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_MAX, 0 if keep else 1 << 16)
    mallopt(_M_TRIM_THRESHOLD, -1 if keep else 128 << 10)
    mallopt(_M_TOP_PAD, 64 << 20 if keep else 0)
