"""The plan is a closed schema: whatever it does not know, it names."""

from __future__ import annotations

import pytest

from cskd_core.errors import PlanError
from cskd_core.plan import DistillPlan, PyramidPlan, TowerPlan

TEACHER = {"checkpoint": "teacher.pth"}


def test_defaults_are_the_published_weights():
    plan = DistillPlan.parse({"teacher": TEACHER})
    assert plan.pyramid == PyramidPlan((1, 0.5), (1, 0.5), (1, 0.5))
    assert plan.tower == TowerPlan((1, 0.5), (1, 0.5))
    assert plan.prediction == (1, 0.5)
    assert plan.assistant is True
    assert plan.teacher.config is None


def test_a_term_set_to_none_is_left_out():
    plan = DistillPlan.parse({"teacher": TEACHER, "pyramid": None, "prediction": None})
    assert plan.pyramid is None
    assert plan.prediction is None
    assert plan.tower is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pyramids": {}}, r"distill: unknown key 'pyramids'; did you mean 'pyramid'\?"),
        ({"pyramid": {"fg": (1, 1)}}, r"distill\.pyramid: unknown key 'fg'\. Known keys: full, roi, region"),
        ({"pyramid": {"roi": (1, 1, 1)}}, r"distill\.pyramid\.roi: expected two weights"),
        ({"pyramid": 3}, r"distill\.pyramid: expected a dict, got 3"),
        ({"tower": {"cls": (1, -1)}}, r"distill\.tower\.cls: expected two weights >= 0"),
        ({"tower": {"cls": (True, 1)}}, r"distill\.tower\.cls: expected two weights"),
        ({"prediction": "1, 1"}, r"distill\.prediction: expected two weights"),
        ({"assistant": 1}, r"distill\.assistant: expected a bool, got 1"),
        ({"teacher": {}}, r"distill\.teacher: missing key 'checkpoint'"),
        ({"teacher": None}, r"distill\.teacher: expected a dict, got None"),
        ({"teacher": {"checkpoint": 1}}, r"distill\.teacher\.checkpoint: expected a str, got 1"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(PlanError, match=message):
        DistillPlan.parse({"teacher": TEACHER, **change})


def test_a_missing_teacher_is_named():
    with pytest.raises(PlanError, match="distill: missing key 'teacher'"):
        DistillPlan.parse({})
