"""The terms that compare student and teacher: pyramid, towers, predictions (docs/algorithm.md 2-4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Literal, get_args, get_type_hints

import torch
from torch import Tensor, nn

from cskd_core.assistant import initialise
from cskd_core.errors import ShapeError
from cskd_core.family import PredictionRule, TowerSpec
from cskd_core.feature_losses import channel_distribution_loss, mean_squared_loss, pearson_loss
from cskd_core.plan import PredictionPlan, PyramidPlan, TowerPlan
from cskd_core.regions import Regions
from cskd_core.roi_align import roi_align
from cskd_core.schema import WeightPair, check_choice
from cskd_core.similarity import PUBLISHED, Comparison, LossOptions, Variant, compare

ROI_SIZE = 7
ROI_SAMPLING_RATIO = 2
STACKED, STACKED_ADAPTED = 32, 8
"""The stages of a tower are compared together where their map is smaller than the finest by this factor, since copies
of large maps cost memory; of adapted maps only the teacher's copy does."""
Reduce = Literal["sum", "mean"]


class PyramidTerm(nn.Module):
    """Whole map, RoIs, foreground and background of every pyramid level, joined over the levels.

    One 1x1 adapter a level, not shared, brings the student's channels to the teacher's; the adapted map serves all
    four. Another kind of loss takes the same adapted map, and the whole of it alone.

    Args:
        channels: the student's and the teacher's, of each level.
        plan: the kind of loss, and the weights.
        reduce: how levels are joined.
        options: variants of the cosine-guided loss.

    Raises:
        PlanError: a `reduce` that is none.

    Source: docs/algorithm.md 2; docs/rival_terms.md.
    """

    def __init__(
        self,
        channels: Sequence[tuple[int, int]],
        plan: PyramidPlan,
        reduce: Reduce = "sum",
        options: LossOptions = PUBLISHED,
    ) -> None:
        super().__init__()
        self.reduce: Reduce = _known(reduce)
        self.adapters = nn.ModuleList(_adapter(*of_level) for of_level in channels)
        self.plan = plan
        self.options = options

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], regions: Regions) -> dict[str, Tensor]:
        """Scalars `pyramid_full`, `pyramid_roi`, `pyramid_foreground`, `pyramid_background`, or `pyramid_KIND` alone.

        Args:
            student: one (B, C, H, W) map a level.
            teacher: the same.
            regions: of the batch.

        Raises:
            ShapeError: the number of levels or the sizes of the maps differ.
        """
        if not len(student) == len(teacher) == len(self.adapters):
            raise ShapeError(
                f"{len(student)} pyramid levels of the student and {len(teacher)} of the teacher: "
                f"expected {len(self.adapters)} of each"
            )
        adapted = [adapter(level) for adapter, level in zip(self.adapters, student, strict=True)]
        share = _share(len(adapted), self.reduce)
        if self.plan.kind == "cskd":
            return self._cosine_guided(adapted, teacher, regions, share)
        by_kind: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
            "mse": mean_squared_loss,
            "pkd": pearson_loss,
            "cwd": partial(channel_distribution_loss, tau=self.plan.tau),
        }
        losses = [by_kind[self.plan.kind](*pair) for pair in zip(adapted, teacher, strict=True)]
        return {f"pyramid_{self.plan.kind}": torch.stack(losses).sum() * (self.plan.weight * share)}

    def _cosine_guided(
        self, adapted: Sequence[Tensor], teacher: Sequence[Tensor], regions: Regions, share: float
    ) -> dict[str, Tensor]:
        levels = len(adapted)
        full, foreground, background = (
            _times(weight, share) for weight in (self.plan.full, self.plan.foreground, self.plan.background)
        )
        comparisons = []
        for level, (source, target) in enumerate(zip(adapted, teacher, strict=True)):
            variants = [
                Variant(full),
                Variant(foreground, regions.foreground(level)),
                Variant(background, regions.background(level)),
            ]
            comparisons.append(Comparison(source, target, variants))
        # A level has as many RoIs as any other: their mean over levels of one width, times those, is the sum of the
        # means.
        by_width: dict[int, list[int]] = {}
        for level, target in enumerate(teacher):
            by_width.setdefault(target.shape[1], []).append(level)
        for alike in by_width.values():
            roi = Variant(_times(self.plan.roi, len(alike) * share))
            comparisons.append(Comparison(_pooled(adapted, regions, alike), _pooled(teacher, regions, alike), [roi]))
        of_maps, of_rois = compare(comparisons, self.options).split([3 * levels, len(by_width)])
        whole, inside, outside = of_maps.view(levels, 3).sum(0).unbind()
        return {
            "pyramid_full": whole,
            "pyramid_roi": of_rois.sum(0),
            "pyramid_foreground": inside,
            "pyramid_background": outside,
        }


def _pooled(pyramid: Sequence[Tensor], regions: Regions, levels: Sequence[int]) -> Tensor:
    """(levels * N, C, 7, 7): the RoIs of levels of one width."""
    pooled = [roi_align(pyramid[level], regions.rois(level), ROI_SIZE, 1.0, ROI_SAMPLING_RATIO) for level in levels]
    return torch.cat(pooled)


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
        ShapeError: the towers differ in names or stages, or have a name that the plan has not.
        PlanError: a `reduce` that is none.

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
        self.reduce: Reduce = _known(reduce)
        self.plan = plan
        self.options = options
        self._stages = {name: spec.stages for name, spec in student.items()}
        self.adapters = nn.ModuleDict()
        check_names("towers", student, teacher, "tower=None")
        weighed = [name for name, kind in get_type_hints(TowerPlan).items() if kind == WeightPair]
        if unknown := [name for name in student if name not in weighed]:
            raise ShapeError(
                f"the plan has no weight for the {unknown[0]} tower, only for {', '.join(weighed)}: give it one of "
                "these names in the family, or leave the term out with tower=None"
            )
        for name, of_student in student.items():
            of_teacher = teacher[name]
            if of_student.stages != of_teacher.stages:
                raise ShapeError(
                    f"the {name} tower has {of_student.stages} stages in the student and {of_teacher.stages} in the "
                    "teacher: they are compared stage by stage. Leave the term out with tower=None"
                )
            wanted = adapted if plan.adapter is None else plan.adapter
            if of_student.channels != of_teacher.channels and plan.adapter is False:
                raise ShapeError(
                    f"the {name} tower has {of_student.channels} channels in the student and {of_teacher.channels} in "
                    "the teacher: they can only be compared through an adapter; take tower.adapter=False out"
                )
            if wanted or of_student.channels != of_teacher.channels:
                self.adapters[name] = nn.ModuleList(
                    nn.ModuleList(_adapter(of_student.channels, of_teacher.channels) for _ in range(of_student.stages))
                    for _ in range(levels)
                )

    def forward(
        self, student: Mapping[str, Sequence[Sequence[Tensor]]], teacher: Mapping[str, Sequence[Sequence[Tensor]]]
    ) -> dict[str, Tensor]:
        """A scalar `tower_NAME` for each tower (tower -> stage -> level -> (B, C, H, W)).

        Raises:
            ShapeError: the sizes of the maps differ.
        """
        if not self._stages:
            return {}
        comparisons = {name: self._comparisons(name, student[name], teacher[name]) for name in self._stages}
        losses = compare([one for tower in comparisons.values() for one in tower], self.options)
        by_tower = losses.split([len(tower) for tower in comparisons.values()])
        return {f"tower_{name}": tower.sum() for name, tower in zip(comparisons, by_tower, strict=True)}

    def _comparisons(
        self, name: str, student: Sequence[Sequence[Tensor]], teacher: Sequence[Sequence[Tensor]]
    ) -> list[Comparison]:
        """One a level and stage; of small maps one a level, whose mean over the images is one over the stages too."""
        weight = _times(getattr(self.plan, name), _share(len(student[0]), self.reduce))
        comparisons = []
        for level in range(len(student[0])):
            sources, targets = [stage[level] for stage in student], [stage[level] for stage in teacher]
            if name in self.adapters:
                adapters = self.adapters[name][level]  # type: ignore[index]
                sources = [adapter(source) for adapter, source in zip(adapters, sources, strict=True)]
            factor = STACKED_ADAPTED if name in self.adapters else STACKED
            if len(sources) > 1 and factor * _positions(sources[0]) <= _positions(student[0][0]):
                sources, targets = [torch.cat(sources)], [torch.cat(targets)]
            variants = [Variant(_times(weight, 1 / len(sources)))]
            comparisons += [Comparison(*pair, variants) for pair in zip(sources, targets, strict=True)]
        return comparisons


class PredictionTerm(nn.Module):
    """The head's final maps, compared at every position and joined over the levels.

    Args:
        rules: prediction name -> activation and normalisation as published.
        plan: one weight pair for all maps, and their normalisation where it is not the published one.
        reduce: how levels are joined.
        options: variants of the loss.

    Raises:
        PlanError: a `reduce` that is none.

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
        self.plan = plan
        self.reduce: Reduce = _known(reduce)
        self.options = options

    def forward(
        self, student: Mapping[str, Sequence[Tensor]], teacher: Mapping[str, Sequence[Tensor]], regions: Regions
    ) -> dict[str, Tensor]:
        """A scalar `prediction_NAME` for each prediction (name -> level -> (B, c, H, W))."""
        if not self.rules:
            return {}
        comparisons = [
            comparison
            for name, rule in self.rules.items()
            for comparison in self._comparisons(rule, student[name], teacher[name], regions)
        ]
        losses = compare(comparisons, self.options).view(len(self.rules), -1)
        rules = self.rules.values()
        if any(self._norm(rule) == "foreground" for rule in rules):  # nothing then on a level without any
            covered = regions.covered > 0
            everywhere = torch.ones_like(covered)
            losses = losses * torch.stack(
                [covered if self._norm(rule) == "foreground" else everywhere for rule in rules]
            )
        return {f"prediction_{name}": term for name, term in zip(self.rules, losses.sum(1), strict=True)}

    def _norm(self, rule: PredictionRule) -> str:
        return self.plan.norm or rule.normalise

    def _comparisons(
        self, rule: PredictionRule, student: Sequence[Tensor], teacher: Sequence[Tensor], regions: Regions
    ) -> list[Comparison]:
        """One a level."""
        weight, norm = _times(self.plan.weight, _share(len(student), self.reduce)), self._norm(rule)
        if norm == "mean":
            variants = [Variant(weight)] * len(student)
        elif norm == "masked":
            variants = [Variant(weight, regions.foreground(level)) for level in range(len(student))]
        else:
            elements = regions.covered.clamp_min(1) * student[0].shape[1]
            variants = [Variant(weight, avg_factor=of_level) for of_level in elements.unbind()]
        if rule.activation == "sigmoid":
            student, teacher = ([level.sigmoid() for level in side] for side in (student, teacher))
        return [
            Comparison(source, target, [variant])
            for source, target, variant in zip(student, teacher, variants, strict=True)
        ]


def _adapter(student_channels: int, teacher_channels: int) -> nn.Conv2d:
    adapter = nn.Conv2d(student_channels, teacher_channels, 1)
    initialise(adapter)
    return adapter


def _positions(features: Tensor) -> int:
    return features.shape[2] * features.shape[3]


def check_names(kind: str, student: Iterable[str], teacher: Iterable[str], left_out: str) -> None:
    """Refuse two detectors that have towers or predictions of other names.

    Args:
        left_out: what leaves them out, for the message.

    Raises:
        ShapeError: it names both lists.
    """
    own, other = sorted(student), sorted(teacher)
    if own != other:
        raise ShapeError(
            f"the {kind} differ: {', '.join(own) or 'none'} in the student, {', '.join(other) or 'none'} in the "
            f"teacher. Leave them out with {left_out}"
        )


def _known(reduce: Reduce) -> Reduce:
    check_choice(reduce, get_args(Reduce), "reduce")
    return reduce


def _share(levels: int, reduce: Reduce) -> float:
    """What a level's loss counts."""
    return 1 / levels if reduce == "mean" else 1.0


def _times(weight: WeightPair, factor: float) -> WeightPair:
    return weight[0] * factor, weight[1] * factor
