"""The terms that compare student and teacher: pyramid, towers, predictions (docs/algorithm.md 2-4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from cskd_core.assistant import initialise
from cskd_core.errors import ShapeError
from cskd_core.family import PredictionRule, TowerSpec
from cskd_core.plan import PredictionPlan, PyramidPlan, TowerPlan
from cskd_core.regions import Regions
from cskd_core.roi_align import roi_align
from cskd_core.similarity import (
    PUBLISHED,
    CosineGuidedLoss,
    LossOptions,
    Variant,
    cosine_guided_loss,
    cosine_guided_losses,
)

ROI_SIZE = 7
ROI_SAMPLING_RATIO = 2
Reduce = Literal["sum", "mean"]


class PyramidTerm(nn.Module):
    """Whole map, RoIs, foreground and background of every pyramid level, joined over the levels.

    One 1x1 adapter a level, not shared, brings the student's channels to the teacher's; the adapted map serves all
    four.

    Args:
        levels: of the pyramid.
        student_channels: of the student's pyramid.
        teacher_channels: of the teacher's pyramid.
        plan: the weights.
        reduce: how levels are joined.
        options: variants of the loss.

    Source: docs/algorithm.md 2.
    """

    def __init__(
        self,
        levels: int,
        student_channels: int,
        teacher_channels: int,
        plan: PyramidPlan,
        reduce: Reduce = "sum",
        options: LossOptions = PUBLISHED,
    ) -> None:
        super().__init__()
        self.reduce: Reduce = reduce
        self.adapters = nn.ModuleList(_adapter(student_channels, teacher_channels) for _ in range(levels))
        self.plan = plan
        self.options = options

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], regions: Regions) -> dict[str, Tensor]:
        """Scalars `pyramid`, `pyramid_roi`, `pyramid_fg`, `pyramid_bg` from one (B, C, H, W) map a level and side.

        Raises:
            ShapeError: the number of levels or the sizes of the maps differ.
        """
        if not len(student) == len(teacher) == len(self.adapters):
            raise ShapeError(
                f"{len(student)} pyramid levels of the student and {len(teacher)} of the teacher: "
                f"expected {len(self.adapters)} of each"
            )
        terms: dict[str, list[Tensor]] = {"pyramid": [], "pyramid_roi": [], "pyramid_fg": [], "pyramid_bg": []}
        for level, (adapter, source, target) in enumerate(zip(self.adapters, student, teacher, strict=True)):
            adapted = adapter(source)
            variants = [
                Variant(self.plan.full),
                Variant(self.plan.region, regions.foreground(level)),
                Variant(self.plan.region, regions.background(level)),
            ]
            losses = cosine_guided_losses(adapted, target, variants, self.options)
            for name, loss in zip(("pyramid", "pyramid_fg", "pyramid_bg"), losses, strict=True):
                terms[name].append(loss)
            terms["pyramid_roi"].append(self._roi_loss(adapted, target, regions, level))
        return {name: _join(levels, self.reduce) for name, levels in terms.items()}

    def _roi_loss(self, student: Tensor, teacher: Tensor, regions: Regions, level: int) -> Tensor:
        if regions.count == 0:
            return 0 * student.sum()
        rois = regions.rois(level)
        ours, theirs = (roi_align(feature, rois, ROI_SIZE, 1.0, ROI_SAMPLING_RATIO) for feature in (student, teacher))
        return cosine_guided_loss(ours, theirs, self.plan.roi, options=self.options)


class TowerTerm(nn.Module):
    """Every stage of every head tower, joined over the levels, averaged over the stages.

    Args:
        student: tower name -> channels and stages.
        teacher: the same of the teacher.
        levels: of the pyramid.
        plan: the weights, and whether the student's features are adapted.
        adapted: what `plan.adapter` None means where the channels agree; where they differ there is always an adapter.
        reduce: how levels are joined.
        options: variants of the loss.

    Raises:
        ShapeError: the towers differ in names or stages.

    Source: docs/algorithm.md 3.
    """

    def __init__(
        self,
        student: Mapping[str, TowerSpec],
        teacher: Mapping[str, TowerSpec],
        levels: int,
        plan: TowerPlan,
        adapted: bool = False,
        reduce: Reduce = "sum",
        options: LossOptions = PUBLISHED,
    ) -> None:
        super().__init__()
        self.reduce: Reduce = reduce
        self.losses = nn.ModuleDict({name: CosineGuidedLoss(getattr(plan, name), options) for name in student})
        self.adapters = nn.ModuleDict()
        for name, ours in student.items():
            theirs = teacher[name]
            if ours.stages != theirs.stages:
                raise ShapeError(
                    f"the {name} tower has {ours.stages} stages in the student and {theirs.stages} in the teacher: "
                    "they are compared stage by stage. Leave the term out with tower=None"
                )
            wanted = adapted if plan.adapter is None else plan.adapter
            if ours.channels != theirs.channels and plan.adapter is False:
                raise ShapeError(
                    f"the {name} tower has {ours.channels} channels in the student and {theirs.channels} in the "
                    "teacher: they can only be compared through an adapter; take tower.adapter=False out"
                )
            if wanted or ours.channels != theirs.channels:
                self.adapters[name] = nn.ModuleList(
                    nn.ModuleList(_adapter(ours.channels, theirs.channels) for _ in range(ours.stages))
                    for _ in range(levels)
                )

    def forward(
        self, student: Mapping[str, Sequence[Sequence[Tensor]]], teacher: Mapping[str, Sequence[Sequence[Tensor]]]
    ) -> dict[str, Tensor]:
        """A scalar `tower_NAME` for each tower (tower -> stage -> level -> (B, C, H, W)).

        Raises:
            ShapeError: the sizes of the maps differ.
        """
        return {f"tower_{name}": self._tower(name, student[name], teacher[name]) for name in self.losses}

    def _tower(self, name: str, student: Sequence[Sequence[Tensor]], teacher: Sequence[Sequence[Tensor]]) -> Tensor:
        stages = []
        for stage, (source_levels, target_levels) in enumerate(zip(student, teacher, strict=True)):
            values = []
            for level, (source, target) in enumerate(zip(source_levels, target_levels, strict=True)):
                if name in self.adapters:
                    source = self.adapters[name][level][stage](source)  # type: ignore[index]
                values.append(self.losses[name](source, target))
            stages.append(_join(values, self.reduce))
        return torch.stack(stages).mean()


class PredictionTerm(nn.Module):
    """The head's final maps, compared at every position and joined over the levels.

    Args:
        rules: prediction name -> activation and normalisation as published.
        plan: one weight pair for all maps, and their normalisation where it is not the published one.
        reduce: how levels are joined.
        options: variants of the loss.

    Source: docs/algorithm.md 4.
    """

    def __init__(
        self,
        rules: Mapping[str, PredictionRule],
        plan: PredictionPlan,
        reduce: Reduce = "sum",
        options: LossOptions = PUBLISHED,
    ) -> None:
        super().__init__()
        self.rules = dict(rules)
        self.norm = plan.norm
        self.reduce: Reduce = reduce
        self.loss = CosineGuidedLoss(plan.weight, options)

    def forward(
        self, student: Mapping[str, Sequence[Tensor]], teacher: Mapping[str, Sequence[Tensor]], regions: Regions
    ) -> dict[str, Tensor]:
        """A scalar `prediction_NAME` for each prediction (name -> level -> (B, c, H, W))."""
        return {
            f"prediction_{name}": _join(
                [
                    self._level(rule, source, target, regions, level)
                    for level, (source, target) in enumerate(zip(student[name], teacher[name], strict=True))
                ],
                self.reduce,
            )
            for name, rule in self.rules.items()
        }

    def _level(self, rule: PredictionRule, student: Tensor, teacher: Tensor, regions: Regions, level: int) -> Tensor:
        if rule.activation == "sigmoid":
            student, teacher = student.sigmoid(), teacher.sigmoid()
        norm = self.norm or rule.normalise
        if norm == "mean":
            loss: Tensor = self.loss(student, teacher)
        elif norm == "masked":
            loss = self.loss(student, teacher, regions.foreground(level))
        else:
            elements = regions.foreground(level).sum() * student.shape[1]
            loss = self.loss(student, teacher, avg_factor=elements.clamp_min(1)) * (elements > 0)
        return loss


def _adapter(student_channels: int, teacher_channels: int) -> nn.Conv2d:
    adapter = nn.Conv2d(student_channels, teacher_channels, 1)
    initialise(adapter)
    return adapter


def _join(levels: Sequence[Tensor], reduce: Reduce) -> Tensor:
    values = torch.stack(list(levels))
    return values.mean() if reduce == "mean" else values.sum()
