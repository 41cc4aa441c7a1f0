"""The distiller between two detectors that no framework has seen."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

from cskd_core.distiller import Distiller
from cskd_core.errors import ShapeError
from cskd_core.plan import DistillPlan

sys.path.insert(0, str(Path(__file__).parent))
from detectors import PlainDetector, PlainFamily

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
BOXES = [torch.tensor([[2.0, 3.0, 20.0, 18.0]]), torch.zeros(0, 4)]
SHAPES = [(32, 32), (28, 30)]
TERMS = {
    "pyramid", "pyramid_roi", "pyramid_fg", "pyramid_bg", "tower_cls", "tower_reg",
    "prediction_cls", "prediction_reg", "assistant_cls",
}  # fmt: skip


def build(student_channels=6, teacher_channels=8, **plan):
    torch.manual_seed(0)
    student, teacher = PlainDetector(student_channels), PlainDetector(teacher_channels)
    distiller = Distiller(student, teacher, PlainFamily(), DistillPlan.parse({"teacher": {"checkpoint": "-"}, **plan}))
    return student, teacher, distiller


def step(student, distiller, boxes=BOXES, images=IMAGES):
    with distiller.watch() as recording:
        student(images)
    return distiller(recording, images, boxes, SHAPES)


def test_all_terms_train_student_and_adapters_and_leave_the_teacher_alone():
    student, teacher, distiller = build()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    terms = step(student, distiller)
    assert set(terms) == TERMS
    sum(terms.values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
    assert all(p.grad is not None for p in distiller.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_teacher_and_student_are_in_no_state_dict_of_the_distiller():
    _, _, distiller = build()
    assert {name.split(".")[0] for name in distiller.state_dict()} == {"pyramid", "assistant"}
    assert len(list(distiller.parameters())) == 2 * 2 + 2


def test_teacher_stays_in_eval_mode_and_follows_moves():
    student, teacher, distiller = build()
    distiller.train()
    assert not teacher.training
    student.double()
    distiller.double()
    assert teacher.stem.weight.dtype == torch.float64
    terms = step(student, distiller, images=IMAGES.double())
    assert all(value.dtype == torch.float64 for value in terms.values())


def test_a_batch_without_any_box_gives_finite_terms_and_gradients():
    student, _, distiller = build()
    terms = step(student, distiller, boxes=[torch.zeros(0, 4)] * 2)
    assert terms["pyramid_roi"].item() == 0
    assert terms["pyramid_fg"].item() == 0
    assert terms["prediction_reg"].item() == 0
    sum(terms.values()).backward()
    assert all(math.isfinite(value.item()) for value in terms.values())
    assert all(torch.isfinite(p.grad).all() for p in student.parameters())


def test_a_term_left_out_of_the_plan_is_not_computed():
    student, _, distiller = build(pyramid=None, assistant=False)
    assert set(step(student, distiller)) == {"tower_cls", "tower_reg", "prediction_cls", "prediction_reg"}
    assert not list(distiller.parameters())


def test_terms_under_autocast_stay_close_and_in_float32():
    student, _, distiller = build()
    exact = step(student, distiller)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lower = step(student, distiller)
    for name, value in lower.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact[name].item(), rel=0.1, abs=1e-3)


def test_towers_of_other_widths_are_refused_with_their_shapes():
    torch.manual_seed(0)
    student, teacher = PlainDetector(6, tower=4), PlainDetector(6, tower=5)
    distiller = Distiller(student, teacher, PlainFamily(), DistillPlan.parse({"teacher": {"checkpoint": "-"}}))
    with pytest.raises(ShapeError, match=r"student \(2, 4, 8, 8\) and teacher \(2, 5, 8, 8\) differ in channels"):
        step(student, distiller)


def test_pyramids_of_other_depth_are_refused():
    class Deeper(PlainFamily):
        def channels(self, detector):
            levels = super().channels(detector)
            return type(levels)(levels.pyramid, 3 if detector.channels == 8 else 2)

    with pytest.raises(ShapeError, match="the student's pyramid has 2 levels, the teacher's 3"):
        Distiller(PlainDetector(6), PlainDetector(8), Deeper(), DistillPlan.parse({"teacher": {"checkpoint": "-"}}))
