"""The cosine-guided terms of a pyramid whose levels are of different widths, as SSD's are, and of predictions."""

from __future__ import annotations

import pytest
import torch

from cskd_core.family import PredictionRule
from cskd_core.plan import PredictionPlan, PyramidPlan
from cskd_core.regions import Regions
from cskd_core.similarity import cosine_guided_loss, masked_cosine_guided_loss
from cskd_core.terms import PredictionTerm, PyramidTerm

CHANNELS = ((4, 6), (4, 6), (3, 8), (5, 6))  # the student's and the teacher's
STRIDES = (4, 8, 16, 32)
SIZES = tuple((64 // stride, 96 // stride) for stride in STRIDES)
BOXES = [torch.tensor([[8.0, 8.0, 50.0, 60.0]]), torch.tensor([[30.0, 4.0, 90.0, 40.0], [0.0, 0.0, 20.0, 30.0]])]

WIDTHS = (("cls", 3), ("reg", 4))
RULES = {"cls": PredictionRule("sigmoid", "mean"), "reg": PredictionRule("identity", "foreground")}


def regions_of(levels):
    sizes, strides = ([of_all[level] for level in levels] for of_all in (SIZES, STRIDES))
    return Regions(BOXES, [(64, 96)] * 2, sizes, strides)


@pytest.mark.parametrize(("reduce", "share"), [("sum", 1), ("mean", 1 / 4)])
def test_terms_of_levels_of_any_widths_are_those_of_each_level_together(reduce, share):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        [torch.randn(2, pair[side], *size, generator=generator) for pair, size in zip(CHANNELS, SIZES, strict=True)]
        for side in (0, 1)
    )
    term = PyramidTerm(CHANNELS, PyramidPlan(), reduce)
    found = term(student, teacher, regions_of(range(4)))
    expected = {}
    for level, pair in enumerate(CHANNELS):
        alone = PyramidTerm([pair], PyramidPlan(), "sum")
        alone.adapters[0].load_state_dict(term.adapters[level].state_dict())
        for name, value in alone(student[level : level + 1], teacher[level : level + 1], regions_of([level])).items():
            expected[name] = expected.get(name, 0) + share * value.item()
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-5)
    found["pyramid_roi"].backward()
    assert all(adapter.weight.grad.abs().sum() > 0 for adapter in term.adapters)


@pytest.mark.parametrize("norm", [None, "mean", "foreground", "masked"])
def test_predictions_are_normalised_as_the_plan_says_on_each_level_by_itself(norm):
    generator = torch.Generator().manual_seed(1)
    student, teacher = (
        {name: [torch.randn(2, channels, *size, generator=generator) for size in SIZES] for name, channels in WIDTHS}
        for _ in range(2)
    )
    weight, regions = (2.0, 0.75), regions_of(range(4))
    found = PredictionTerm(RULES, PredictionPlan(weight, norm))(student, teacher, regions)
    for name, channels in WIDTHS:
        pairs = zip(student[name], teacher[name], strict=True)
        if name == "cls":
            pairs = [(one.sigmoid(), other.sigmoid()) for one, other in pairs]
        expected = 0.0
        for level, pair in enumerate(pairs):
            mask = regions.foreground(level)
            by = norm or RULES[name].normalise
            if by == "masked":
                expected += masked_cosine_guided_loss(*pair, mask, weight).item()
            else:
                elements = mask.sum().item() * channels if by == "foreground" else None
                expected += cosine_guided_loss(*pair, weight, elements).item()
        assert found[f"prediction_{name}"].item() == pytest.approx(expected, rel=1e-5)
