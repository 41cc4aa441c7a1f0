"""The terms of a second stage against slow formulas: which features each is made of, and which pair weighs it."""

from __future__ import annotations

import math

import pytest
import torch

from cskd_core.errors import ShapeError
from cskd_core.plan import RoiPlan
from cskd_core.roi_terms import RoiObservation, RoiSpec, RoiTerm
from cskd_core.similarity import PUBLISHED

WEIGHTS = {
    "features_student": (2.0, 0.25),
    "features_teacher": (3.0, 0.75),
    "fc": (5.0, 1.25),
    "prediction": (7.0, 1.75),
}
SPEC = RoiSpec(channels=(3, 4), fc=[(5, 6), (6, 7)], predictions={"cls": (4, 4), "reg": (12, 12)})


def features(count, channels):
    """RoI features of `count` RoIs, student's and teacher's, higher than wide."""
    return tuple(torch.randn(count, length, 3, 2, dtype=torch.float64) for length in channels)


def vectors(count, lengths):
    return tuple(torch.randn(count, length, dtype=torch.float64) for length in lengths)


@pytest.fixture
def rois():
    """Seven RoIs of the student's, five of the teacher's."""
    torch.manual_seed(4)
    fc = [vectors(5, lengths) for lengths in SPEC.fc]
    predictions = {name: vectors(5, lengths) for name, lengths in SPEC.predictions.items()}
    return RoiObservation(features(7, SPEC.channels), features(5, SPEC.channels), fc, predictions, targets=None)


def term_of(assisted=False, **weights):
    torch.manual_seed(6)
    return RoiTerm(SPEC, RoiPlan(**weights), PUBLISHED, assisted).double()


@pytest.mark.parametrize("assisted", [True, False])
def test_a_second_stage_without_fully_connected_layers_is_refused(assisted):
    with pytest.raises(ShapeError, match=r"no fully connected layers, .* leave it out with roi=None"):
        RoiTerm(RoiSpec((3, 4), [], {"cls": (4, 4)}), RoiPlan(), PUBLISHED, assisted)


def distance(student, teacher):
    """1 - cosine of two lists of numbers."""
    dot = math.fsum(a * b for a, b in zip(student, teacher, strict=True))
    return 1 - dot / math.sqrt(math.fsum(a * a for a in student) * math.fsum(b * b for b in teacher))


def mean(values):
    values = list(values)
    return math.fsum(values) / len(values)


def of_maps(student, teacher, weight):
    """docs/algorithm.md 1.1, every element by itself; the maps of one RoI stand for those of one image."""
    student, teacher = (maps.flatten(2).tolist() for maps in (student, teacher))
    errors, by_channel, by_place = [], [], []
    for roi, other in zip(student, teacher, strict=True):
        u = [distance(*pair) for pair in zip(roi, other, strict=True)]
        v = [distance(*pair) for pair in zip(zip(*roi, strict=True), zip(*other, strict=True), strict=True)]
        errors += [
            u[channel] * v[place] * (roi[channel][place] - other[channel][place]) ** 2
            for channel in range(len(u))
            for place in range(len(v))
        ]
        by_channel += u
        by_place += v
    return weight[0] * mean(errors) + weight[1] * (mean(by_channel) + mean(by_place))


def of_vectors(student, teacher, weight):
    """docs/algorithm.md 1.4."""
    pairs = list(zip(student.tolist(), teacher.tolist(), strict=True))
    v = [distance(*pair) for pair in pairs]
    errors = [
        one * (a - b) ** 2 for one, pair in zip(v, pairs, strict=True) for a, b in zip(*pair, strict=True)
    ]  # fmt: skip
    return weight[0] * mean(errors) + weight[1] * mean(v)


def test_each_term_is_the_slow_formula_of_its_own_features_and_weights(rois):
    term = term_of(**WEIGHTS)
    found = {name: value.item() for name, value in term(rois).items()}
    adapted = term.adapters["student"](rois.at_student[0]), term.adapters["teacher"](rois.at_teacher[0])
    layers = [
        of_vectors(adapter(student), teacher, WEIGHTS["fc"])
        for adapter, (student, teacher) in zip(term.fc_adapters, rois.fc, strict=True)
    ]
    scores = [logits.sigmoid() for logits in rois.predictions["cls"]]
    expected = {
        "roi_features_student": of_maps(adapted[0], rois.at_student[1], WEIGHTS["features_student"]),
        "roi_features_teacher": of_maps(adapted[1], rois.at_teacher[1], WEIGHTS["features_teacher"]),
        "roi_fc": mean(layers),
        "roi_prediction_cls": of_vectors(*scores, WEIGHTS["prediction"]),
        "roi_prediction_reg": of_vectors(*rois.predictions["reg"], WEIGHTS["prediction"]),
    }
    assert found == {name: pytest.approx(value, rel=1e-9) for name, value in expected.items()}


@pytest.mark.parametrize("weight", WEIGHTS)
def test_a_weight_of_zero_takes_out_its_own_terms_and_no_other(rois, weight):
    published, found = term_of()(rois), term_of(**{weight: (0.0, 0.0)})(rois)
    of_weight = {name for name in found if name.startswith(f"roi_{weight}")}
    assert len(of_weight) == (2 if weight == "prediction" else 1)
    assert {name for name, value in found.items() if value == 0} == of_weight
    assert all(torch.equal(found[name], published[name]) for name in set(found) - of_weight)


def test_the_assistant_predicts_from_the_students_last_layer_and_starts_small(rois):
    term = term_of(assisted=True)
    predicted = term.assist(rois)
    assert {name: tuple(value.shape) for name, value in predicted.items()} == {"cls": (5, 4), "reg": (5, 12)}
    with torch.no_grad():
        term.assistant["reg"].bias.fill_(0.5)
    again = term.assist(rois)
    torch.testing.assert_close(again["reg"], predicted["reg"] + 0.5)
    assert torch.equal(again["cls"], predicted["cls"])
    last = rois.fc[-1][0]
    for name, weight in ((name, predictor.weight) for name, predictor in term.assistant.items()):
        torch.testing.assert_close(predicted[name], last @ weight.T)
        assert weight.abs().max() < (0.05 if name == "cls" else 0.005)
    assert term_of().assist(rois) == {}
