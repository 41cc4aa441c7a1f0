"""mmcv's operators without compiled extensions.

`mmcv.ops` takes its operators from the extension module `mmcv._ext`. A native mmcv-full serves where it is installed
and loads. Everywhere else this module stands in: torchvision's kernels where they run, plain torch otherwise
(`plain_ops`), and a clear error for every operator that nobody serves, raised when it is used and not when mmcv is
imported. Whether compiled operators run on a device is known by trying: `serve`.

mmcv's own Python (`NMSop`, `RoIAlignFunction`, `SigmoidFocalLossFunction`) stays in charge of arguments and autograd.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor

from cskd_train.errors import NotInstalled
from cskd_train.mm import plain_deform, plain_ops
from cskd_train.mm.plain_deform import torchvision_deforms
from cskd_train.mm.plain_ops import (
    EXTENSION,
    native_extension,
    torchvision_loads,
    torchvision_serves,
    unserved_message,
)

__all__ = ["install", "native_extension", "serve", "status", "torchvision_loads"]

# The operators that mmdet's models and datasets ask of mmcv, each with one function of the extension that tells whether
# it is served.
OPERATORS = {
    "nms": "nms",
    "roi_align": "roi_align_forward",
    "sigmoid_focal_loss": "sigmoid_focal_loss_forward",
    "soft_nms": "softnms",
    "roi_pool": "roi_pool_forward",
    "deform_conv": "deform_conv_forward",
    "modulated_deform_conv": "modulated_deform_conv_forward",
    "nms_match": "nms_match",
    "masked_conv": "masked_im2col_forward",
    "carafe": "carafe_forward",
    "border_align": "border_align_forward",
}

PLAIN: Mapping[str, tuple[Callable[..., Any], ...]] = {
    "nms": (plain_ops.nms,),
    "roi_align": (plain_ops.roi_align_forward, plain_ops.roi_align_backward),
    "sigmoid_focal_loss": (plain_ops.sigmoid_focal_loss_forward, plain_ops.sigmoid_focal_loss_backward),
    "deform_conv": (
        plain_deform.deform_conv_forward,
        plain_deform.deform_conv_backward_input,
        plain_deform.deform_conv_backward_parameters,
    ),
    "modulated_deform_conv": (
        plain_deform.modulated_deform_conv_forward,
        plain_deform.modulated_deform_conv_backward,
    ),
    "soft_nms": (plain_ops.softnms,),
    "nms_match": (plain_ops.nms_match,),
    "masked_conv": (plain_ops.masked_im2col_forward, plain_ops.masked_col2im_forward),
    "carafe": (plain_ops.carafe_forward, plain_ops.carafe_backward),
}
"""Operator -> what stands in for the extension's functions of the same names."""

TORCHVISION: Mapping[tuple[str, ...], Callable[[str], bool]] = {
    ("nms", "roi_align"): torchvision_serves,
    ("deform_conv", "modulated_deform_conv"): torchvision_deforms,
}
"""Operators that torchvision has kernels for, and whether those run on a type of device."""

_replaced: set[tuple[str, str]] = set()  # (operator, type of device) of a native mmcv-full that does not run there


def install() -> None:
    """Put the operators where `mmcv.ops` looks for them; a native extension that loads is left alone."""
    if EXTENSION not in sys.modules and not native_extension().serves:
        sys.modules[EXTENSION] = PlainOperators()


def serve(device: torch.device | str) -> dict[str, str]:
    """Make sure that the operators run on a device, by running each of them there once.

    A mmcv-full that was built for the CPU, or for other GPUs, loads and then fails at the first call on a GPU. Where
    one does, torchvision or plain torch takes its place, on this type of device alone.

    Returns:
        `status(device)`.
    """
    install()
    kind = torch.device(device).type
    extension = importlib.import_module(EXTENSION)
    if not isinstance(extension, PlainOperators):
        for name, functions in PLAIN.items():
            if (name, kind) not in _replaced and not _runs(name, kind):
                _replaced.add((name, kind))
                for function in functions:
                    native = getattr(extension, function.__name__)
                    setattr(extension, function.__name__, _on_device(kind, function, native))
    return status(device)


def _runs(name: str, device: str) -> bool:
    """Whether mmcv's operator gives a result on a device, forward and backward."""
    try:
        with torch.enable_grad():
            for result in _tried(name, device):
                result.cpu()  # a kernel that fails on a GPU says so here at the latest
    except RuntimeError:
        return False
    return True


def _tried(name: str, device: str) -> tuple[Tensor, ...]:
    """What an operator gives for the smallest arguments: indices, or gradients where it has any."""
    mmcv_ops = importlib.import_module("mmcv.ops")
    leaf, mask, offset = (torch.zeros(1, n, 1, 1, device=device, requires_grad=True) for n in (1, 1, 2))
    match name:
        case "nms":
            return (mmcv_ops.nms(torch.zeros(2, 4, device=device), torch.zeros(2, device=device), 0.5)[1],)
        case "roi_align":
            output = mmcv_ops.roi_align(leaf, torch.zeros(1, 5, device=device), 1)
        case "sigmoid_focal_loss":
            output = mmcv_ops.sigmoid_focal_loss(leaf.view(1, 1), torch.zeros(1, dtype=torch.long, device=device))
        case "deform_conv":
            output = mmcv_ops.deform_conv2d(leaf, offset, leaf)
        case "modulated_deform_conv":
            output = mmcv_ops.modulated_deform_conv2d(leaf, offset, mask, leaf)
        case "carafe":
            output = mmcv_ops.carafe(leaf, mask, 1, 1, 1)
        case "soft_nms":
            return (mmcv_ops.soft_nms(torch.zeros(2, 4, device=device), torch.zeros(2, device=device))[1],)
        case "nms_match":
            return tuple(mmcv_ops.nms_match(torch.zeros(2, 5, device=device), 0.5))
        case "masked_conv":
            return (mmcv_ops.masked_conv2d(leaf, mask[0] + 1, leaf, leaf.flatten()).detach(),)
    return torch.autograd.grad(output.sum(), leaf)


def _on_device(kind: str, plain: Callable[..., Any], native: Callable[..., Any]) -> Callable[..., Any]:
    """`plain` for tensors on one type of device, `native` for all others."""

    @functools.wraps(plain)
    def chosen(first: Tensor, *arguments: Any, **keywords: Any) -> Any:
        return (plain if first.device.type == kind else native)(first, *arguments, **keywords)

    return chosen


def status(device: torch.device | str = "cpu") -> dict[str, str]:
    """Operator name -> who serves it: "mmcv-full", "torchvision", "torch" or "missing".

    Args:
        device: where it is to run. A native mmcv-full is taken to run everywhere until `serve` has tried.
    """
    install()
    kind = torch.device(device).type
    extension = importlib.import_module(EXTENSION)
    plain = dict.fromkeys(PLAIN, "torch")
    for names, runs in TORCHVISION.items():
        if runs(kind):
            plain.update(dict.fromkeys(names, "torchvision"))
    if isinstance(extension, PlainOperators):
        return {name: plain.get(name, "missing") for name in OPERATORS}
    native = {name: "mmcv-full" if hasattr(extension, entry) else "missing" for name, entry in OPERATORS.items()}
    return {name: plain[name] if (name, kind) in _replaced else server for name, server in native.items()}


class PlainOperators(ModuleType):
    """Stands in for the extension module `mmcv._ext`: the operators of `plain_ops`, an error on use for all others."""

    def __init__(self) -> None:
        super().__init__(EXTENSION, self.__doc__)
        self.__spec__ = ModuleSpec(EXTENSION, loader=None, origin=__name__)
        for functions in PLAIN.values():
            self.__dict__.update({function.__name__: function for function in functions})
        self.get_compiler_version = self.get_compiling_cuda_version = lambda: "not compiled"

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):
            raise AttributeError(name)

        def unserved(*_args: Any, **_kwargs: Any) -> NoReturn:
            raise NotInstalled(unserved_message(name, ", ".join(PLAIN)))

        return unserved
