"""What this machine has to train with."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """Cores that this process may use, and the first GPU."""

    cores: int
    gpu: str | None = None  # its name
    gpu_memory: int = 0  # bytes

    def __str__(self) -> str:
        cores = f"{self.cores} core{'s' if self.cores > 1 else ''}"
        return f"{self.gpu}, {self.gpu_memory / 2**30:.0f} GiB, {cores}" if self.gpu else f"{cores}, no GPU"


def this_machine() -> Machine:
    """The machine that this process runs on."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not torch.cuda.is_available():
        return Machine(cores)
    properties = torch.cuda.get_device_properties(0)
    return Machine(cores, properties.name, properties.total_memory)
