"""A setting that nothing reads is refused; one that a single term reads is taken."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from cskd_core.distiller import Distiller
from cskd_core.errors import PlanError
from cskd_core.family import Batch
from cskd_core.plan import DistillPlan

sys.path.insert(0, str(Path(__file__).parent))
from detectors import PlainDetector, PlainFamily

IMAGES = torch.randn(2, 3, 24, 32, generator=torch.Generator().manual_seed(0))
BATCH = Batch(IMAGES, [torch.tensor([[2.0, 3.0, 20.0, 18.0]]), torch.zeros(0, 4)], [(24, 32), (20, 30)])


def build(**plan):
    student = PlainDetector(6)
    plan = DistillPlan.parse({"teacher": {"checkpoint": "-"}, **plan})
    return student, Distiller(student, PlainDetector(8), PlainFamily(), plan)


HEADS = dict.fromkeys(("tower", "prediction", "assistant"))
PKD = {"pyramid": {"kind": "pkd"}, **HEADS}


@pytest.mark.parametrize(
    ("plan", "key"),
    [
        ({**PKD, "loss": {"guidance_min": 0.5}}, r"loss\.guidance_min"),
        ({**PKD, "loss": {"eps_mode": "product"}}, r"loss\.eps_mode"),
        ({**PKD, "regions": {"coord_base": "stride"}}, r"regions\.coord_base"),
        ({**HEADS, "pyramid": None, "tower": True, "loss": {"count_outside": False}}, r"loss\.count_outside"),
        ({**HEADS, "pyramid": None, "tower": True, "regions": {"inclusive_end": False}}, r"regions\.inclusive_end"),
        ({**HEADS, "pyramid": None, "assistant": True, "level_reduce": "mean"}, "level_reduce"),
        ({**PKD, "preset": "cskd-fixed"}, "preset: no term that is compared here reads what 'cskd-fixed' sets"),
    ],
)
def test_a_setting_that_no_term_reads_is_refused(plan, key):
    with pytest.raises(PlanError, match=rf"^distill\.{key}.*; take it out"):
        build(**plan)


@pytest.mark.parametrize(
    "plan",
    [
        {"preset": "cskd-fixed"},
        {"preset": "cskd-fixed", "pyramid": {"kind": "pkd"}},
        {"preset": "cskd-fixed", **HEADS, "pyramid": None, "tower": True},
        {"preset": "cskd-fixed", **HEADS},
        {**PKD, "level_reduce": "mean"},
        {**HEADS, "pyramid": None, "prediction": {"norm": "masked"}, "loss": {"count_outside": False}},
        {**HEADS, "pyramid": None, "prediction": {}, "regions": {"coord_base": "stride"}},
    ],
)
def test_a_setting_that_one_term_reads_is_taken(plan):
    student, distiller = build(**plan)
    with distiller.watch() as recording:
        student(IMAGES)
    assert distiller(recording, BATCH)


@pytest.mark.parametrize("adapter", [True, False])
def test_an_adapter_of_towers_is_refused_where_there_are_none_but_not_that_of_the_preset(adapter):
    class NoTowers(PlainFamily):
        has_assistant = False
        prediction_rules = {}  # noqa: RUF012

        def towers(self, detector):
            return {}

    block = {"teacher": {"checkpoint": "-"}, "tower": {"adapter": adapter}}
    with pytest.raises(PlanError, match=r"distill\.tower\.adapter: a PlainDetector has no use for it; take it out"):
        Distiller(PlainDetector(6), PlainDetector(8), NoTowers(), DistillPlan.parse(block))
    fixed = DistillPlan.parse({"teacher": {"checkpoint": "-"}, "preset": "cskd-fixed"})
    assert Distiller(PlainDetector(6), PlainDetector(8), NoTowers(), fixed).tower is None


def test_a_student_that_nobody_begins_with_the_teachers_weights_is_refused_where_the_plan_asks_for_it():
    with pytest.raises(
        PlanError, match=r"distill\.init_student: a PlainDetector .* copy the teacher's weights yourself"
    ):
        build(init_student=True)
