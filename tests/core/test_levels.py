"""Which levels of two pyramids are compared: a level is known by its place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cskd_core.distiller import Distiller
from cskd_core.errors import PlanError, ShapeError
from cskd_core.family import Batch, Family, Observation, PyramidSpec
from cskd_core.levels import pair_levels
from cskd_core.plan import DistillPlan, PredictionPlan, PyramidPlan, TowerPlan
from cskd_core.terms import PredictionTerm, PyramidTerm, TowerTerm

BATCH = Batch(
    torch.randn(2, 3, 24, 32, generator=torch.Generator().manual_seed(0)),
    [torch.tensor([[2.0, 3.0, 20.0, 18.0]]), torch.zeros(0, 4)],
    [(24, 32)] * 2,
)


class Branches(nn.Module):
    """A level of each stride that is given, of its own channels."""

    def __init__(self, strides, channels):
        super().__init__()
        self.spec = PyramidSpec(tuple(channels), tuple(strides))
        self.levels = nn.ModuleList(
            nn.Conv2d(3, width, stride, stride=stride) for width, stride in zip(channels, strides, strict=True)
        )

    def forward(self, images):
        return [level(images) for level in self.levels]


class BranchesFamily(Family):
    def pyramid(self, detector):
        return detector.spec

    def taps(self, detector):
        return {str(place): f"levels.{place}" for place in range(len(detector.levels))}

    def read(self, detector, recording):
        return Observation([recording.last(str(place)) for place in range(len(detector.levels))], {}, {})


def test_levels_of_one_stride_are_compared_each_with_its_own_by_their_own_adapters():
    torch.manual_seed(0)
    student, teacher = Branches((4, 8, 8), (2, 3, 5)), Branches((4, 8, 8), (4, 6, 7))
    distiller = Distiller(student, teacher, BranchesFamily(), DistillPlan.parse({"teacher": {"checkpoint": "-"}}))
    assert distiller.notes == []
    assert [adapter.weight.shape[:2] for adapter in distiller.pyramid.adapters] == [(4, 2), (6, 3), (7, 5)]
    with distiller.watch() as recording:
        student(BATCH.images)
    sum(distiller(recording, BATCH).values()).backward()
    assert all(level.weight.grad.any() for level in student.levels)


@pytest.mark.parametrize(
    ("student", "teacher", "pairs", "notes"),
    [
        ((8, 16, 16, 32), (8, 16, 16, 32), [(0, 0), (1, 1), (2, 2), (3, 3)], []),
        (
            (8, 16, 16),
            (4, 8, 16, 16),
            [(0, 1), (1, 2), (2, 3)],
            ["the teacher's pyramid levels of stride 4 are not compared: the student has none"],
        ),
        (
            (8, 16, 16, 32),
            (16, 8),
            [(0, 1), (1, 0)],
            [
                "the student's pyramid levels of stride 32 are not compared: the teacher has none",
                "the student's pyramid levels of stride 16 are not compared: the teacher has fewer of them",
            ],
        ),
    ],
)
def test_levels_are_paired_by_place_or_the_first_of_a_stride_with_the_first_of_it(student, teacher, pairs, notes):
    assert pair_levels(PyramidSpec(1, student), PyramidSpec(1, teacher), ()) == (pairs, notes)


@pytest.mark.parametrize(
    "term",
    [
        lambda reduce: PyramidTerm([(2, 3)], PyramidPlan(), reduce),
        lambda reduce: TowerTerm({}, {}, 2, TowerPlan(), reduce=reduce),
        lambda reduce: PredictionTerm({}, PredictionPlan(), reduce),
    ],
)
def test_levels_are_joined_by_their_sum_or_mean_and_no_other_word_is_taken_for_one(term):
    assert [term(reduce).reduce for reduce in ("sum", "mean")] == ["sum", "mean"]
    with pytest.raises(PlanError, match=r"^reduce: expected one of 'sum', 'mean', got 'average'$"):
        term("average")


def test_a_family_that_joins_levels_by_another_word_is_refused():
    class Average(BranchesFamily):
        level_reduce = "average"

    pair, plan = (Branches((4,), (2,)), Branches((4,), (2,))), DistillPlan.parse({"teacher": {"checkpoint": "-"}})
    with pytest.raises(PlanError, match=r"^Average\.level_reduce: expected one of 'sum', 'mean', got 'average'$"):
        Distiller(*pair, Average(), plan)


def test_channels_that_are_not_one_a_level_are_refused():
    with pytest.raises(ShapeError, match=r"PyramidSpec has 2 channels for 3 strides: expected one of each a level"):
        PyramidSpec((4, 8), (4, 8, 16))
