"""The frozen teacher: outside the module tree, always in eval mode, without gradients (docs/algorithm.md 7)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from cskd_core.family import Family, Observation
from cskd_core.taps import Taps


class FrozenTeacher:
    """A detector that only shows its features and head outputs.

    It is no `nn.Module`, so that its owner has it in no state dict, no optimizer and no DDP bucket; the owner passes
    its own moves on through `apply`.

    Args:
        detector: the teacher; its weights are loaded already.
        family: says which taps to set and how to read them.

    Raises:
        TapError: the detector is not of this family.
    """

    def __init__(self, detector: nn.Module, family: Family) -> None:
        self.detector = detector.eval().requires_grad_(False)
        self._family = family
        self._taps = Taps(detector, family.taps(detector))
        self.runs: Mapping[str, int] = {}
        """How often each tap ran in the last forward."""

    def observe(self, images: Tensor) -> Observation:
        """What the teacher makes of `images` (B, 3, H, W): pyramid, towers and predictions, without a graph.

        In eval mode whatever the detector was put into: a module that holds it may have passed its own `train()` on.
        """
        if any(module.training for module in self.detector.modules()):
            self.detector.eval()
        with torch.no_grad(), self._taps.recording() as recording:
            self._family.infer(self.detector, images)
            self.runs = {name: recording.runs(name) for name in recording.names}
            return self._family.read(self.detector, recording)

    def apply(self, move: Callable[[Tensor], Tensor], recurse: bool = True) -> None:
        """Move parameters and buffers as `nn.Module._apply` does."""
        self.detector._apply(move, recurse)
