"""One training step, top to bottom: what happens between a batch and new weights happens here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from cskd_train.engine.distributed import SharedError, World
from cskd_train.engine.loader import Batch, Part, seed_generators
from cskd_train.mm.detector import DistilledDetector, float32_heads, weighted

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


PRECISIONS: dict[str | None, torch.dtype] = {None: torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class NotFinite(SharedError):
    """A loss or a gradient is not finite; the weights are as they were before the step."""


@dataclass(frozen=True)
class StepReport:
    """What one step found.

    Attributes:
        terms: every loss term and their sum, `loss`: means over the processes and the batches of the step, with the
            weights that make them add up.
        stop: whether any process was asked to stop.
        skipped: whether float16 gradients overflowed: weights are as they were, the scale is lower.
    """

    terms: dict[str, float]
    stop: bool
    skipped: bool


class TrainStep:
    """Takes optimizer steps, each over `len(batches)` batches of this process and as many of every other.

    The gradient is the mean over batches and processes, where the parts of a batch count by their share of its images
    (docs/unlabeled.md). Whatever is drawn at random in a step comes from (seed, epoch,
    number of the batch in its epoch), so that nothing has to be stored to resume.

    Args:
        model: gives the losses of a batch as mmdet's detectors do; wrapped by `world.wrap`.
        max_norm: keyword arguments of `clip_grad_norm_`; empty does not clip.
        amp: None (float32), `bf16` or `fp16`; distillation terms and the heads' losses are float32 all the same.
        average: takes in the student's weights after each step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        world: World,
        *,
        seed: int = 0,
        clip: Mapping[str, Any] | None = None,
        amp: str | None = None,
        average: AveragedStudent | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.world = world
        self.seed = seed
        self.clip = dict(clip or {})
        self.amp = amp
        self.average = average
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=amp == "fp16")
        # A distilled student's heads are taken care of by `DistilledDetector`.
        self._detector = model.module if isinstance(model, DistributedDataParallel) else model
        self._names: list[str] = []  # of the terms, the same in every process
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def __call__(self, batches: Sequence[Batch], stop_requested: bool = False) -> StepReport:
        """Take one step.

        Raises:
            NotFinite: in every process, when a loss of one is not finite, or a gradient that is to be clipped or has
                overflowed at a scale of 1; the weights are as they were.
        """
        self.optimizer.zero_grad()
        device = self.world.device.type
        values: dict[str, Any] = {}  # tensors on the device, until they are shared
        stop = False
        parts = [(batch, number, part) for batch in batches for number, part in enumerate(batch.parts, start=1)]
        for place, (batch, number, part) in enumerate(parts):
            last = place + 1 == len(parts)
            seed_generators(self.seed, batch.epoch, batch.number, number)  # not those of an image (seed, epoch, index)
            with self._synchronised(last):
                with (
                    float32_heads(self._detector),
                    torch.autocast(device, PRECISIONS[self.amp], enabled=bool(self.amp)),
                ):
                    losses = self._losses(part)
                total, terms = summed(losses)
                for name, value in terms.items():
                    values[name] = values.get(name, 0) + value * part.share / len(batches)
                if last:
                    values, stop = self._shared(values, stop_requested)
                    self._check_finite(values, batches)
                self.scaler.scale(total * part.share / len(batches)).backward()
        scale = self.scaler.get_scale()
        if self.clip:
            self.scaler.unscale_(self.optimizer)
            norm = float(nn.utils.clip_grad_norm_(self._parameters, **self.clip))
            if math.isfinite(norm):
                values["grad_norm"] = norm
            elif self.amp != "fp16":
                self._raise_not_finite(f"the gradient is not finite (norm {norm})", batches)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        skipped = self.scaler.get_scale() < scale
        if skipped and scale <= 1:  # no lower scale would help
            self._raise_not_finite("the gradient is not finite in float16, even without a scale", batches)
        if self.average is not None and not skipped:
            self.average.update()
        return StepReport(values, stop, skipped)

    def _losses(self, part: Part) -> dict[str, Any]:
        """The losses of one part, the student's own with their weight."""
        data = part.on(self.world.device)
        if part.weight == 1:
            return self.model(**data)
        if isinstance(self._detector, DistilledDetector):
            return self.model(**data, own_weight=part.weight)
        return weighted(self.model(**data), part.weight)

    def _synchronised(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients travel between the processes in the last backward of a step only."""
        if last or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def _shared(self, values: Mapping[str, Tensor], stop: bool) -> tuple[dict[str, float], bool]:
        """The terms' means over the processes, and whether any is to stop: one all-reduce, one wait for the device.

        A term that a process does not have (mmdet's box head gives no loss without a RoI) counts as 0 there. Where one
        comes up that the processes have not agreed on, they do so, and share again.
        """
        zero = torch.zeros((), dtype=torch.float64, device=self.world.device)
        known = [values.get(name, zero).double() for name in self._names]
        unknown = any(name not in self._names for name in values)
        *means, stopping, unknown = self.world.mean(torch.stack([*known, zero + stop, zero + unknown])).tolist()
        if unknown:
            everyones = self.world.gather(list(values))
            self._names = list(dict.fromkeys(name for names in everyones for name in names))
            return self._shared(values, stop)
        return dict(zip(self._names, means, strict=True)), stopping > 0

    def _check_finite(self, values: Mapping[str, float], batches: Sequence[Batch]) -> None:
        if lost := [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]:
            self._raise_not_finite(f"the loss is not finite: {', '.join(lost)}", batches)

    def _raise_not_finite(self, what: str, batches: Sequence[Batch]) -> None:
        everyones = self.world.gather([name for batch in batches for name in batch.image_names])
        images = ", ".join(name for names in everyones for name in names)
        raise NotFinite(f"{what} at epoch {batches[0].epoch + 1}, in the step on images {images}")


def summed(losses: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """The total of a detector's losses, with its graph, and each of them without: as mmdet's `_parse_losses` adds up.

    A loss may be a tensor, of which the mean counts, or a list of tensors, of which the means are added. What has no
    `loss` in its name (an accuracy) is shown and not added.
    """
    means = {
        name: value.mean() if isinstance(value, Tensor) else torch.stack([one.mean() for one in value]).sum()
        for name, value in losses.items()
    }
    total = torch.stack([value.float() for name, value in means.items() if "loss" in name]).sum()
    return total, {**{name: value.detach() for name, value in means.items()}, "loss": total.detach()}
