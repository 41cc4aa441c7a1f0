"""Losses and boxes of a detector's heads in float32 while the rest of it runs under autocast."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

HEADS = ("bbox_head", "rpn_head", "roi_head.bbox_head")
METHODS = ("loss", "get_bboxes")
_HALF = (torch.float16, torch.bfloat16)


@contextmanager
def float32_heads(detector: nn.Module) -> Iterator[None]:
    """While the context lasts, heads compute losses and boxes outside of autocast, on float32 predictions.

    mmdet's heads are written for float32: under autocast they get predictions in half precision, in which sigmoids,
    normalisers and box coordinates are rounded to 8 bits (bfloat16) or 11 (float16), and the integral of GFL's box
    distributions, a matrix product, is rounded whatever it gets. Convolutions and linear layers stay under autocast.
    Without autocast nothing changes. Afterwards the detector is as it was.

    Args:
        detector: a stock mmdet detector; `loss` and `get_bboxes` of its dense, proposal and box heads are covered.
    """
    modules = dict(detector.named_modules())
    heads = [modules[path] for path in HEADS if path in modules]
    shadowed = [(head, name, head.__dict__.get(name)) for head in heads for name in METHODS if hasattr(head, name)]
    for head, name, _ in shadowed:
        # An instance attribute shadows the class's method for as long as it is there.
        head.__dict__[name] = _in_float32(getattr(head, name))
    try:
        yield
    finally:
        for head, name, before in shadowed:
            if before is None:
                del head.__dict__[name]
            else:
                head.__dict__[name] = before


def _in_float32(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def computed(*arguments: Any, **keywords: Any) -> Any:
        device = _device_of((arguments, keywords))
        if device is None or not torch.is_autocast_enabled(device):
            return method(*arguments, **keywords)
        with torch.autocast(device, enabled=False):
            return method(*_cast(arguments), **_cast(keywords))

    return computed


def _device_of(value: Any) -> str | None:
    """The device type of the first tensor inside nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return value.device.type
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return next((device for item in items if (device := _device_of(item))), None)


def _cast(value: Any) -> Any:
    """Tensors of half precision inside nested lists, tuples and dicts to float32."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in _HALF else value
    if type(value) in (list, tuple):
        return type(value)(_cast(item) for item in value)
    if type(value) is dict:
        return {key: _cast(item) for key, item in value.items()}
    return value
