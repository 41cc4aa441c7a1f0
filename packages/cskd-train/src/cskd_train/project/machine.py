"""What this machine has to train with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cskd_data.cores import usable_cores

# What Linux calls the instructions that multiply bfloat16: of x86 (AVX-512, AMX) and of ARM.
_BFLOAT16 = re.compile(r"^(?:flags|Features)\s*:.*\b(avx512_bf16|amx_bf16|bf16)\b", re.MULTILINE)


@dataclass(frozen=True)
class Machine:
    """Cores that this process may use, and the first GPU."""

    cores: int
    gpu: str | None = None  # its name
    gpu_memory: int = 0  # bytes
    bfloat16: str | None = None  # the processor's instructions that multiply it

    def __str__(self) -> str:
        cores = f"{self.cores} core{'s' if self.cores > 1 else ''}"
        return f"{self.gpu}, {self.gpu_memory / 2**30:.0f} GiB, {cores}" if self.gpu else f"{cores}, no GPU"


def this_machine() -> Machine:
    """The machine that this process runs on."""
    import torch

    cores = usable_cores()
    if not torch.cuda.is_available():
        return Machine(cores, bfloat16=multiplies_bfloat16())
    properties = torch.cuda.get_device_properties(0)
    return Machine(cores, properties.name, properties.total_memory)


def multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """The instructions with which the processor multiplies bfloat16; None where it has none, or nothing tells.

    Without them PyTorch emulates it, which takes longer than float32.

    Args:
        cpuinfo: Linux's description of the processor.
    """
    try:
        found = _BFLOAT16.search(cpuinfo.read_text(errors="replace"))
    except OSError:
        return None
    return found.group(1) if found else None
