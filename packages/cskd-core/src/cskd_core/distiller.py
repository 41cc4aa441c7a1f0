"""The distiller: watches a student, asks the teacher, and gives named loss terms (docs/algorithm.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from cskd_core.errors import ShapeError
from cskd_core.family import Family
from cskd_core.plan import DistillPlan
from cskd_core.regions import Regions
from cskd_core.taps import Recording, Taps
from cskd_core.teacher import FrozenTeacher
from cskd_core.terms import PredictionTerm, PyramidTerm, TowerTerm


class Distiller(nn.Module):
    """What distillation adds to a student: adapters and assistant predictors. It is thrown away after training.

    The student is no submodule; neither is the teacher, though it follows `.to()`.

    Args:
        student: a detector of the family; it stays as it is.
        teacher: a detector of the same family with its weights loaded; it is frozen.
        family: where to tap both, and what the recorded tensors mean.
        plan: the terms and their weights.

    Raises:
        TapError: a detector is not of this family.
        ShapeError: the pyramids differ in levels.

    Example:
        with distiller.watch() as recording:
            losses = student.forward_train(images, ...)
        losses |= distiller(recording, images, boxes, image_shapes)
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, family: Family, plan: DistillPlan) -> None:
        super().__init__()
        self.plan = plan
        self.teacher = FrozenTeacher(teacher, family)
        self._family = family
        self._student_taps = Taps(student, family.taps(student))
        # In a tuple, since an attribute that is a module would be registered.
        self._student = (student,)
        ours, theirs = family.channels(student), family.channels(teacher)
        if ours.levels != theirs.levels:
            raise ShapeError(f"the student's pyramid has {ours.levels} levels, the teacher's {theirs.levels}")
        self.pyramid = PyramidTerm(ours.levels, ours.pyramid, theirs.pyramid, plan.pyramid) if plan.pyramid else None
        self.tower = TowerTerm(plan.tower) if plan.tower else None
        self.prediction = PredictionTerm(family.prediction_rules, plan.prediction) if plan.prediction else None
        self.assistant = family.assistant(student) if plan.assistant else None

    def watch(self) -> AbstractContextManager[Recording]:
        """Record the student while the context lasts; its training forward belongs inside."""
        return self._student_taps.recording()

    def forward(
        self, recording: Recording, images: Tensor, boxes: Sequence[Tensor], image_shapes: Sequence[Sequence[int]]
    ) -> dict[str, Tensor]:
        """The distillation terms of one batch.

        Args:
            recording: of the student's training forward on the same images.
            images: (B, 3, H, W), the teacher's input.
            boxes: ground truth, one (N, 4) tensor an image: x1, y1, x2, y2 in input pixels.
            image_shapes: (height, width) of each image before padding.

        Returns:
            Scalars by term name. A batch without any box gives terms connected to the graph, all finite.
        """
        student = self._family.read(self._student[0], recording).in_float32()
        teacher = self.teacher.observe(images).in_float32()
        regions = Regions(boxes, image_shapes)
        terms: dict[str, Tensor] = {}
        with torch.autocast(device_type=images.device.type, enabled=False):
            if self.pyramid is not None:
                terms |= self.pyramid(student.pyramid, teacher.pyramid, regions)
            if self.tower is not None:
                terms |= self.tower(student.towers, teacher.towers)
            if self.prediction is not None:
                terms |= self.prediction(student.predictions, teacher.predictions, regions)
            if self.assistant is not None:
                assisted = self.assistant(student.towers)
                terms |= self._family.assistant_losses(assisted, student, teacher, regions)
        return terms

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Distiller:
        self.teacher.apply(fn, recurse)
        super()._apply(fn, recurse)
        return self
