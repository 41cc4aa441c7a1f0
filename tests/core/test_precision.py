"""In which precision a distillation is computed, whatever detectors and distiller are moved to."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

from cskd_core.distiller import Distiller
from cskd_core.errors import ShapeError
from cskd_core.family import Batch
from cskd_core.plan import DistillPlan
from cskd_core.regions import RegionOptions, Regions

sys.path.insert(0, str(Path(__file__).parent))
from detectors import PlainDetector, PlainFamily

IMAGES = torch.randn(2, 3, 24, 32, generator=torch.Generator().manual_seed(0))
BOXES = [torch.tensor([[2.0, 3.0, 20.0, 18.0]]), torch.zeros(0, 4)]
SHAPES = [(24, 32), (20, 30)]


def build(**plan):
    torch.manual_seed(0)
    student, teacher = PlainDetector(6), PlainDetector(8, 5)
    plan = DistillPlan.parse({"teacher": {"checkpoint": "-"}, **plan})
    return student, teacher, Distiller(student, teacher, PlainFamily(), plan)


def step(student, distiller, images=IMAGES, boxes=BOXES):
    with distiller.watch() as recording:
        student(images)
    return distiller(recording, Batch(images, boxes, SHAPES))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_a_distiller_has_of_its_own_stays_in_float32_where_it_is_moved_to_half_precision(dtype):
    student, teacher, distiller = build()
    exact = step(student, distiller)
    before = {name: value.clone() for name, value in distiller.state_dict().items()}
    student.to(dtype)
    distiller.to(dtype)
    assert teacher.stem.weight.dtype == dtype
    assert all(torch.equal(value, before[name]) for name, value in distiller.state_dict().items())
    terms = step(student, distiller, IMAGES.to(dtype))
    for name, value in terms.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact[name].item(), rel=0.1, abs=1e-3)
    sum(terms.values()).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in distiller.pyramid.parameters())
    assert student.stem.weight.grad.dtype == dtype


def test_a_distiller_in_half_precision_can_be_moved_to_float64_and_back():
    _, teacher, distiller = build()
    assert {value.dtype for value in distiller.half().double().state_dict().values()} == {torch.float64}
    assert teacher.stem.weight.dtype == torch.float64
    assert {value.dtype for value in distiller.half().state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("options", [RegionOptions("stride"), RegionOptions()])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_boxes_of_any_precision_lie_on_cells_as_the_same_numbers_in_float32_do(dtype, options):
    boxes = torch.tensor([[1032.0, 516.0, 1088.0, 572.0], [8.0, 24.0, 1192.0, 36.0]])
    assert torch.equal(boxes.to(dtype).float(), boxes)
    exact, lower = (Regions([one], [(600, 1200)], [(301, 303)], [4], options) for one in (boxes, boxes.to(dtype)))
    assert torch.equal(lower.rois(0), exact.rois(0))
    assert torch.equal(lower.foreground(0), exact.foreground(0))


def test_a_box_that_is_not_a_number_is_said_in_a_sentence():
    student, _, distiller = build()
    with pytest.raises(
        ShapeError, match=r"a box of image 1 is \[nan, 1.0, 9.0, 9.0\]: expected x1, y1, x2, y2 in pixels"
    ):
        step(student, distiller, boxes=[BOXES[0], torch.tensor([[math.nan, 1.0, 9.0, 9.0]])])
