"""How many pieces a step is made of: calls of torch's operators, and waits of the host for the device.

Every call that reaches torch's dispatcher counts, in the forward and in the backward, allocations too, but those that
only look at a tensor in another way (`view`, `expand`, `detach`, ...): on a GPU nearly each of the others is a kernel
to launch, or several. A RoIAlign counts as one each way, whichever of its forms runs. A wait is a value that the host
asks for (`item`, `bool`, `tolist`, ...), or a result whose size it has to know (`nonzero`, an index by a mask, ...; not
a `repeat_interleave` that is given its `output_size`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from cskd_core import roi_align

_WAITS = ("_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "masked_select", "repeat_interleave", "equal")
_INDEXED = ("index", "index_put", "index_put_")
_VALUES = ("tolist", "cpu", "numpy")


class Pieces(TorchDispatchMode):
    """Counts while it is entered.

    Attributes:
        calls: of each operator.
        waits: of each kind.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self._paused = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._paused and not _is_view(func):
            name = func.overloadpacket.__name__
            self.calls[name] += 1
            by_mask = name in _INDEXED and any(
                isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8) for one in args[1]
            )
            of_given_size = (kwargs or {}).get("output_size") is not None
            if (name in _WAITS or by_mask) and not of_given_size:
                self.waits[name] += 1
        return func(*args, **(kwargs or {}))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens in this context does not count."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def one(self, name: str) -> None:
        """One call of something that is worked out while paused."""
        if not self._paused:
            self.calls[name] += 1


@cache
def _is_view(func: Any) -> bool:
    """Whether an operator gives another look at what it was given, and computes nothing."""
    returns = [one.alias_info for one in func._schema.returns]
    return bool(returns) and all(one is not None and not one.is_write for one in returns)


class _Values(TorchFunctionMode):
    """Values that reach the host without an operator, where tensors are there already."""

    def __init__(self, pieces: Pieces) -> None:
        super().__init__()
        self._pieces = pieces

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _VALUES and not self._pieces._paused:
            self._pieces.waits[name] += 1
            with self._pieces.paused():
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def count(step: Callable[[], Any]) -> Pieces:
    """The pieces of a step; it is run once before, so that what is made once does not count."""
    step()
    pieces = Pieces()
    whole = roi_align.gathered_roi_align

    class RoIAlign(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, features: Tensor, *arguments: Any) -> Tensor:
            pieces.one("roi_align")
            with pieces.paused(), torch.enable_grad():
                leaf = features.detach().requires_grad_()
                pooled = whole(leaf, *arguments)
            ctx.graph = leaf, pooled
            return pooled.detach()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Any:
            pieces.one("roi_align_backward")
            leaf, pooled = ctx.graph
            with pieces.paused():
                (gradient,) = torch.autograd.grad(pooled, leaf, gradients[0])
            return gradient, None, None, None, None, None

    with (
        mock.patch.object(roi_align, "_torchvision_kernel", return_value=None),
        mock.patch.object(roi_align, "gathered_roi_align", RoIAlign.apply),
        pieces,
        _Values(pieces),
    ):
        step()
    return pieces
