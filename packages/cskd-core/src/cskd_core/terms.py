"""The terms that compare student and teacher: pyramid, towers, predictions (docs/algorithm.md 2-4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cskd_core.assistant import initialise
from cskd_core.errors import ShapeError
from cskd_core.family import PredictionRule
from cskd_core.plan import PyramidPlan, TowerPlan
from cskd_core.regions import Regions, Size
from cskd_core.roi_align import roi_align
from cskd_core.similarity import CosineGuidedLoss, WeightPair

ROI_SIZE = 7
ROI_SAMPLING_RATIO = 2


class PyramidTerm(nn.Module):
    """Whole map, RoIs, foreground and background of every pyramid level, each summed over the levels.

    One 1x1 adapter a level, not shared, brings the student's channels to the teacher's; the adapted map serves all
    four.

    Args:
        levels: of the pyramid.
        student_channels: of the student's pyramid.
        teacher_channels: of the teacher's pyramid.
        plan: the weights.

    Source: docs/algorithm.md 2.
    """

    def __init__(self, levels: int, student_channels: int, teacher_channels: int, plan: PyramidPlan) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(nn.Conv2d(student_channels, teacher_channels, 1) for _ in range(levels))
        for adapter in self.adapters:
            assert isinstance(adapter, nn.Conv2d)
            initialise(adapter)
        self.full = CosineGuidedLoss(plan.full)
        self.roi = CosineGuidedLoss(plan.roi)
        self.region = CosineGuidedLoss(plan.region)

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
        for adapter, source, target in zip(self.adapters, student, teacher, strict=True):
            adapted = adapter(source)
            size = _size(adapted)
            terms["pyramid"].append(self.full(adapted, target))
            terms["pyramid_roi"].append(self._roi_loss(adapted, target, regions))
            terms["pyramid_fg"].append(self.region(adapted, target, regions.foreground(size)))
            terms["pyramid_bg"].append(self.region(adapted, target, regions.background(size)))
        return {name: torch.stack(levels).sum() for name, levels in terms.items()}

    def _roi_loss(self, student: Tensor, teacher: Tensor, regions: Regions) -> Tensor:
        if regions.count == 0:
            return 0 * student.sum()
        rois = regions.rois(_size(student))
        pooled = [roi_align(feature, rois, ROI_SIZE, 1.0, ROI_SAMPLING_RATIO) for feature in (student, teacher)]
        loss: Tensor = self.roi(*pooled)
        return loss


class TowerTerm(nn.Module):
    """Every stage of every head tower, summed over the levels, averaged over the stages; compared as it is, unadapted.

    Source: docs/algorithm.md 3.
    """

    def __init__(self, plan: TowerPlan) -> None:
        super().__init__()
        self.losses = nn.ModuleDict({"cls": CosineGuidedLoss(plan.cls), "reg": CosineGuidedLoss(plan.reg)})

    def forward(
        self, student: Mapping[str, Sequence[Sequence[Tensor]]], teacher: Mapping[str, Sequence[Sequence[Tensor]]]
    ) -> dict[str, Tensor]:
        """A scalar `tower_NAME` for each tower (tower -> stage -> level -> (B, C, H, W)).

        Raises:
            ShapeError: the towers differ in stages, channels or sizes.
        """
        terms = {}
        for name, loss in self.losses.items():
            stages = len(student[name])
            if stages != len(teacher[name]):
                raise ShapeError(
                    f"the {name} tower has {stages} stages in the student and {len(teacher[name])} in the teacher"
                )
            values = [
                loss(source, target)
                for source_levels, target_levels in zip(student[name], teacher[name], strict=True)
                for source, target in zip(source_levels, target_levels, strict=True)
            ]
            terms[f"tower_{name}"] = torch.stack(values).sum() / stages
        return terms


class PredictionTerm(nn.Module):
    """The head's final maps, compared at every position and summed over the levels.

    Args:
        rules: prediction name -> activation and normalisation.
        weight: one pair for all maps.

    Source: docs/algorithm.md 4.
    """

    def __init__(self, rules: Mapping[str, PredictionRule], weight: WeightPair) -> None:
        super().__init__()
        self.rules = dict(rules)
        self.loss = CosineGuidedLoss(weight)

    def forward(
        self, student: Mapping[str, Sequence[Tensor]], teacher: Mapping[str, Sequence[Tensor]], regions: Regions
    ) -> dict[str, Tensor]:
        """A scalar `prediction_NAME` for each prediction (name -> level -> (B, c, H, W))."""
        return {
            f"prediction_{name}": torch.stack(
                [
                    self._level(rule, source, target, regions)
                    for source, target in zip(student[name], teacher[name], strict=True)
                ]
            ).sum()
            for name, rule in self.rules.items()
        }

    def _level(self, rule: PredictionRule, student: Tensor, teacher: Tensor, regions: Regions) -> Tensor:
        if rule.activation == "sigmoid":
            student, teacher = student.sigmoid(), teacher.sigmoid()
        if rule.normalise == "mean":
            loss: Tensor = self.loss(student, teacher)
            return loss
        elements = regions.foreground(_size(student)).sum() * student.shape[1]
        normalised: Tensor = self.loss(student, teacher, avg_factor=elements.clamp_min(1)) * (elements > 0)
        return normalised


def _size(feature: Tensor) -> Size:
    return feature.shape[2], feature.shape[3]
