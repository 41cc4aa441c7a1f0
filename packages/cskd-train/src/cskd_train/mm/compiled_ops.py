"""What is installed of compiled operators: mmcv-full's extension module, torchvision's kernels."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from functools import cache

import torch

EXTENSION = "mmcv._ext"


@dataclass(frozen=True)
class NativeExtension:
    """mmcv's compiled operators: whether they are installed, and why they do not load where they do not."""

    installed: bool
    error: str | None = None

    @property
    def serves(self) -> bool:
        return self.installed and self.error is None


@cache
def native_extension() -> NativeExtension:
    """Look for mmcv-full's extension module and load it."""
    if importlib.util.find_spec(EXTENSION) is None:
        return NativeExtension(installed=False)
    try:
        importlib.import_module(EXTENSION)
    except (ImportError, OSError) as error:  # built for another torch, CUDA or Python
        return NativeExtension(installed=True, error=str(error))
    return NativeExtension(installed=True)


@cache
def torchvision_loads() -> bool:
    """Whether torchvision is there and was built for this torch."""
    try:
        importlib.import_module("torchvision")
        return hasattr(torch.ops.torchvision, "nms")
    except (ImportError, RuntimeError, OSError):
        return False


@cache
def torchvision_serves(device: str) -> bool:
    """Whether torchvision's kernels run on a type of device; a build for the CPU loads beside a torch for CUDA."""
    if not torchvision_loads():
        return False
    try:
        torch.ops.torchvision.nms(torch.zeros(2, 4, device=device), torch.zeros(2, device=device), 0.5)
    except RuntimeError:  # among them NotImplementedError: no kernel for this device
        return False
    return True


def unserved_message(what: str) -> str:
    native = native_extension()
    cause = f"do not load ({native.error})" if native.installed else "are not installed"
    return (
        f"mmcv's operator {what!r} is not available: mmcv-full's compiled operators {cause}, and without them CSKD "
        "serves nms, roi_align (average) and sigmoid_focal_loss only. Choose a model that does not use it, or build "
        "mmcv-full with its operators: MMCV_WITH_OPS=1 pip install --no-build-isolation mmcv-full==1.7.2"
    )
