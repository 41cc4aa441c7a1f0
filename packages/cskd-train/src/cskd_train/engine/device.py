"""The device that a command runs on."""

from __future__ import annotations

import platform

import torch

from cskd_train.errors import TrainError

CHOICES = ("auto", "cpu", "cuda")


def choose_device(name: str) -> torch.device:
    """The device of `auto` (a GPU where there is one), `cpu` or `cuda`.

    Raises:
        TrainError: `cuda` where torch sees no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainError("--device cuda: torch sees no GPU here (cskd-train doctor says why); use --device cpu")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """What to call a device in a table of results."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
