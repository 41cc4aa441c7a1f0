"""The distiller: watches a student, asks the teacher, and gives named loss terms (docs/algorithm.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, get_args

import torch
from torch import Tensor, nn

from cskd_core.assistant import Assistant
from cskd_core.errors import ShapeError
from cskd_core.family import Batch, Family, Observation
from cskd_core.levels import pair_levels
from cskd_core.observed import Expected, refuse_repeated
from cskd_core.plan import DistillPlan
from cskd_core.regions import Regions
from cskd_core.roi_terms import RoiTerm
from cskd_core.schema import check_choice
from cskd_core.taps import Recording, Taps
from cskd_core.teacher import FrozenTeacher
from cskd_core.terms import PredictionTerm, PyramidTerm, Reduce, TowerTerm, check_names


class Distiller(nn.Module):
    """What distillation adds to a student: adapters and assistant predictors. It is thrown away after training.

    The student is no submodule; neither is the teacher, though it follows `.to()`. Adapters and predictors stay in
    float32 at least, in which all terms are computed, also where the teacher is moved to half precision.

    Args:
        student: a detector of the family; it stays as it is.
        teacher: a detector of the same family with its weights loaded; it is frozen.
        family: where to tap both, and what the recorded tensors mean.
        plan: the terms and their weights. Pyramids are compared on the levels whose strides both have; a level is known
            by its place, and of several of one stride the first is compared with the first.

    Attributes:
        notes: the levels that are not compared.

    Raises:
        TapError: a detector is not of this family.
        ShapeError: student and teacher share a parameter; the pyramids have no stride in common; the detectors differ
            in strides, in towers or their stages, or in predictions or their channels, and the plan compares their
            heads; a tower that the plan has no weight for.
        PlanError: the plan sets what this family has no use for, or what no term reads; the family joins levels in
            another way than `sum` and `mean`.

    Example:
        with distiller.watch() as recording:
            losses = student.forward_train(images, ...)
        losses |= distiller(recording, Batch(images, boxes, image_shapes))
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, family: Family, plan: DistillPlan) -> None:
        super().__init__()
        _refuse_shared(student, teacher)
        for detector in (student, teacher):
            family.check(detector)
        plan.refuse_unused(type(student).__name__, family.used(student))
        self.plan = plan
        self._family = family
        check_choice(family.level_reduce, get_args(Reduce), f"{type(family).__name__}.level_reduce")
        reduce = plan.level_reduce or family.level_reduce
        specs = family.pyramid(student), family.pyramid(teacher)
        compared = family.compared(student, plan)
        plan.refuse_unread(compared, family.norms(plan) if "prediction" in compared else ())
        pairs, self.notes = pair_levels(*specs, compared)
        self.pyramid: PyramidTerm | None = None
        self.tower: TowerTerm | None = None
        self.prediction: PredictionTerm | None = None
        self.assistant: Assistant | None = None
        self.roi: RoiTerm | None = None
        self._strides = [specs[0].strides[own] for own, _ in pairs]
        self._levels = tuple([pair[side] for pair in pairs] for side in (0, 1))
        if plan.pyramid:
            channels = [(specs[0].channels_of(own), specs[1].channels_of(other)) for own, other in pairs]
            self.pyramid = PyramidTerm(channels, plan.pyramid, reduce, plan.loss)
        self._add_head_terms(student, teacher, compared, reduce)
        rules = family.prediction_rules if "prediction" in compared else ()
        self._expected = [
            Expected(side, spec, family.towers(detector) if self.tower is not None else {}, rules)
            for side, spec, detector in zip(("student", "teacher"), specs, (student, teacher), strict=True)
        ]
        # After all that can be refused: the teacher is changed here, for good.
        self.teacher = FrozenTeacher(teacher, family)
        self._student_taps = Taps(student, family.taps(student))
        # In a tuple, since an attribute that is a module would be registered.
        self._student = (student,)

    def _add_head_terms(self, student: nn.Module, teacher: nn.Module, compared: Sequence[str], reduce: Reduce) -> None:
        family, plan, levels = self._family, self.plan, len(self._strides)
        if "prediction" in compared or "assistant" in compared:
            channels = family.prediction_channels(student), family.prediction_channels(teacher)
            check_names("predictions", *channels, "prediction=None, assistant=None")
            _check_predictions({name: (channels[0][name], channels[1][name]) for name in channels[0]})
        towers = family.towers(student), family.towers(teacher)
        if plan.tower and any(towers):
            self.tower = TowerTerm(*towers, levels, plan.tower, family.tower_adapter, reduce, plan.loss)
        if plan.prediction and "prediction" in compared:
            self.prediction = PredictionTerm(family.prediction_rules, plan.prediction, reduce, plan.loss)
        if "assistant" in compared:
            self.assistant = family.assistant(student)
        if plan.roi and family.second_stage and "roi" in compared:
            spec = family.second_stage.spec(student, teacher)
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

        Raises:
            ShapeError: not one tensor of boxes an image; a box that is not finite, where it is found; the student ran
                several times within the recording, or on other images; what the family reads is not what it says of a
                detector.
        """
        if len(batch.boxes) != len(batch.images):
            raise ShapeError(
                f"{len(batch.images)} images and {len(batch.boxes)} tensors of boxes: expected one of each, (0, 4) for "
                "an image without boxes"
            )
        student, teacher = self._observations(recording, batch.images)
        pyramids = [
            [side.pyramid[level] for level in levels]
            for side, levels in zip((student, teacher), self._levels, strict=True)
        ]
        sizes = [(level.shape[2], level.shape[3]) for level in pyramids[0]]
        regions = Regions(batch.boxes, batch.image_shapes, sizes, self._strides, self.plan.regions)
        try:
            return self._terms(recording, batch, (student, teacher), pyramids, regions)
        except (RuntimeError, IndexError):
            regions.refuse_not_finite()
            raise

    def _terms(
        self,
        recording: Recording,
        batch: Batch,
        observations: tuple[Observation, Observation],
        pyramids: Sequence[Sequence[Tensor]],
        regions: Regions,
    ) -> dict[str, Tensor]:
        student, teacher = observations
        terms: dict[str, Tensor] = {}
        with torch.autocast(device_type=batch.images.device.type, enabled=False):
            if self.pyramid is not None:
                terms |= self.pyramid(pyramids[0], pyramids[1], regions)
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
                terms |= self._roi_terms(self.roi, recording, observations, batch)
        return terms

    def compared_pyramids(self, images: Tensor, seen_by_teacher: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """What the pyramid term compares, level by level: the adapted student's features and the teacher's.

        Args:
            images, seen_by_teacher: (B, 3, H, W), the same images as each of the two is given them.

        Returns:
            Stride -> (B, C, H, W) of both, of several levels of one stride the first; without a pyramid term nothing.
        """
        if self.pyramid is None:
            return {}
        student = self._student[0]
        with self.watch() as recording:
            self._family.infer(student, images)
        sides = self._observations(recording, seen_by_teacher)
        own, other = (
            [side.pyramid[level] for level in levels] for side, levels in zip(sides, self._levels, strict=True)
        )
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for stride, adapter, one, two in zip(self._strides, self.pyramid.adapters, own, other, strict=True):
            if stride not in found:
                found[stride] = adapter(one), two
        return found

    def _observations(self, recording: Recording, images: Tensor) -> list[Observation]:
        """The student's and the teacher's, of the same images."""
        seen = self._family.read(self._student[0], recording), self.teacher.observe(images)
        refuse_repeated(recording, self.teacher.runs)
        for expected, of_side in zip(self._expected, seen, strict=True):
            expected.check(of_side, len(images))
        return [of_side.in_one_precision() for of_side in seen]

    def _roi_terms(
        self, roi: RoiTerm, recording: Recording, observations: tuple[Observation, Observation], batch: Batch
    ) -> dict[str, Tensor]:
        stage = self._family.second_stage
        assert stage is not None
        rois = stage.observe(self._student[0], self.teacher.detector, recording, observations, batch)
        terms: dict[str, Tensor] = roi(rois)
        return terms | stage.assistant_losses(roi.assist(rois), rois)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Distiller:
        """The teacher follows; what the distiller has of its own stays in float32 at least, as all it computes."""
        self.teacher.apply(fn, recurse)

        def move(tensor: Tensor) -> Tensor:
            moved: Tensor = fn(tensor)
            lower = moved.is_floating_point() and torch.finfo(moved.dtype).bits < 32
            return tensor.float().to(moved.device) if lower else moved

        super()._apply(move, recurse)
        return self


def _check_predictions(channels: Mapping[str, tuple[int, int]]) -> None:
    """Compare the channels (student's, teacher's) of each prediction."""
    for name, (student, teacher) in channels.items():
        if student != teacher:
            raise ShapeError(
                f"the prediction '{name}' has {student} channels in the student and {teacher} in the teacher: "
                "classes, anchors a position and box encoding must agree"
            )


def _refuse_shared(student: nn.Module, teacher: nn.Module) -> None:
    """A teacher is frozen, and with it whatever it shares with the student."""
    own = {parameter.data_ptr(): name for name, parameter in student.named_parameters() if parameter.data_ptr()}
    shared = [own[one.data_ptr()] for one in teacher.parameters() if one.data_ptr() in own]
    if shared:
        raise ShapeError(
            f"student and teacher share parameters ({len(shared)} of the student's, such as {shared[0]}), which would "
            "be frozen with the teacher: build the teacher from modules of its own, or from a copy.deepcopy of them"
        )
