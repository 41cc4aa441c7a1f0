"""The distiller: watches a student, asks the teacher, and gives named loss terms (docs/algorithm.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from cskd_core.errors import ShapeError
from cskd_core.family import Batch, Family, Observation
from cskd_core.plan import DistillPlan
from cskd_core.regions import Regions
from cskd_core.roi_terms import RoiTerm
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
        ShapeError: the detectors differ in strides, in the stages of a tower or in the channels of a prediction.
        PlanError: the plan sets what this family has no use for.

    Example:
        with distiller.watch() as recording:
            losses = student.forward_train(images, ...)
        losses |= distiller(recording, Batch(images, boxes, image_shapes))
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, family: Family, plan: DistillPlan) -> None:
        super().__init__()
        plan.refuse_unused(type(student).__name__, family.options)
        channels = family.prediction_channels(student), family.prediction_channels(teacher)
        _check_predictions({name: (channels[0][name], channels[1][name]) for name in channels[0]})
        self.plan = plan
        self.teacher = FrozenTeacher(teacher, family)
        self._family = family
        self._student_taps = Taps(student, family.taps(student))
        # In a tuple, since an attribute that is a module would be registered.
        self._student = (student,)
        ours, theirs = family.pyramid(student), family.pyramid(teacher)
        if ours.strides != theirs.strides:
            raise ShapeError(
                f"the strides of the pyramids differ: {ours.strides} in the student, {theirs.strides} in the teacher"
            )
        self._strides = ours.strides
        levels, reduce = len(ours.strides), plan.level_reduce or family.level_reduce
        self.pyramid = self.tower = self.prediction = self.assistant = self.roi = None
        if plan.pyramid:
            self.pyramid = PyramidTerm(levels, ours.channels, theirs.channels, plan.pyramid, reduce, plan.loss)
        if plan.tower:
            towers = family.towers(student), family.towers(teacher)
            self.tower = TowerTerm(*towers, levels, plan.tower, family.tower_adapter, reduce, plan.loss)
        if plan.prediction:
            self.prediction = PredictionTerm(family.prediction_rules, plan.prediction, reduce, plan.loss)
        if plan.assistant:
            self.assistant = family.assistant(student)
        if plan.roi and (spec := family.rois(student, teacher)):
            _check_predictions({f"roi_{name}": lengths for name, lengths in spec.predictions.items()})
            self.roi = RoiTerm(spec, plan.roi, plan.loss, assisted=plan.assistant is not None)

    def watch(self) -> AbstractContextManager[Recording]:
        """Record the student while the context lasts; its training forward belongs inside."""
        return self._student_taps.recording()

    def forward(self, recording: Recording, batch: Batch) -> dict[str, Tensor]:
        """The distillation terms of one batch.

        Args:
            recording: of the student's training forward on the same images.
            batch: images as the teacher sees them, and their ground truth.

        Returns:
            Scalars by term name. A batch without any box gives terms connected to the graph, all finite.
        """
        student = self._family.read(self._student[0], recording).in_one_precision()
        teacher = self.teacher.observe(batch.images).in_one_precision()
        sizes = [(level.shape[2], level.shape[3]) for level in student.pyramid]
        regions = Regions(batch.boxes, batch.image_shapes, sizes, self._strides, self.plan.regions)
        terms: dict[str, Tensor] = {}
        with torch.autocast(device_type=batch.images.device.type, enabled=False):
            if self.pyramid is not None:
                terms |= self.pyramid(student.pyramid, teacher.pyramid, regions)
            if self.tower is not None:
                terms |= self.tower(student.towers, teacher.towers)
            if self.prediction is not None:
                terms |= self.prediction(student.predictions, teacher.predictions, regions)
            if self.assistant is not None:
                assisted = self.assistant(student.towers)
                plan = self.plan.assistant
                assert plan is not None
                terms |= self._family.assistant_losses(assisted, student, teacher, regions, plan)
            if self.roi is not None:
                terms |= self._roi_terms(self.roi, recording, (student, teacher), batch)
        return terms

    def _roi_terms(
        self, roi: RoiTerm, recording: Recording, observations: tuple[Observation, Observation], batch: Batch
    ) -> dict[str, Tensor]:
        rois = self._family.observe_rois(self._student[0], self.teacher.detector, recording, observations, batch)
        terms: dict[str, Tensor] = roi(rois)
        return terms | self._family.roi_assistant_losses(roi.assist(rois), rois)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Distiller:
        self.teacher.apply(fn, recurse)
        super()._apply(fn, recurse)
        return self


def _check_predictions(channels: Mapping[str, tuple[int, int]]) -> None:
    """Compare the channels (student's, teacher's) of each prediction."""
    for name, (ours, theirs) in channels.items():
        if ours != theirs:
            raise ShapeError(
                f"the prediction '{name}' has {ours} channels in the student and {theirs} in the teacher: "
                "classes, anchors a position and box encoding must agree"
            )
