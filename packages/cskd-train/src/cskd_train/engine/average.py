"""An exponential moving average of the student's weights (EMA), evaluated and saved in their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

DECAY, WARMUP = 0.9998, 2000


class AveragedStudent:
    """average <- d * average + (1 - d) * weights after each step, for parameters and BatchNorm statistics alike.

    d rises with the number n of steps, d = min(decay, (1 + n) / (warmup + n)), so that the first, random weights are
    forgotten quickly: TensorFlow's `ExponentialMovingAverage` with `num_updates`.

    Args:
        student: it stays as it is.
        decay: in [0, 1).
        warmup: the larger, the longer d stays below `decay`; 0 leaves it there from the start.
    """

    def __init__(self, student: nn.Module, decay: float = DECAY, warmup: int = WARMUP) -> None:
        self._student = student
        self._decay = decay
        self._warmup = warmup
        self._average = AveragedModel(student, multi_avg_fn=self._move, use_buffers=True)
        self._average.n_averaged += 1  # it starts from the student's first weights, by the copy just made

    @property
    def model(self) -> nn.Module:
        """The detector with averaged weights."""
        return self._average.module

    def update(self) -> None:
        """Take in the student's weights of now."""
        self._average.update_parameters(self._student)

    def _move(self, averaged: Any, current: Any, updates: Any) -> None:
        count = int(updates)
        weight = 1 - min(self._decay, (1 + count) / (self._warmup + count))
        if torch.is_floating_point(averaged[0]):
            torch._foreach_lerp_(averaged, current, weight)
        else:  # a count of batches
            for old, new in zip(averaged, current, strict=True):
                old.copy_(new)

    def state_dict(self) -> dict[str, Any]:
        """The number of updates; the averaged weights are the student's `state_dict` of a checkpoint."""
        return {"updates": int(self._average.n_averaged)}

    def restore(self, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go on from averaged weights and what `state_dict` gave."""
        self.model.load_state_dict(dict(weights))
        self._average.n_averaged.fill_(state["updates"])
