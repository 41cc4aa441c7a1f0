"""The distiller between two detectors that no framework has seen."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cskd_core.assistant import Assistant, PredictorSpec
from cskd_core.distiller import Distiller
from cskd_core.errors import ShapeError
from cskd_core.family import Batch, PyramidSpec, TowerSpec
from cskd_core.plan import DistillPlan, PyramidPlan, TowerPlan
from cskd_core.regions import Regions
from cskd_core.terms import PyramidTerm, TowerTerm

sys.path.insert(0, str(Path(__file__).parent))
from detectors import PlainDetector, PlainFamily

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
BOXES = [torch.tensor([[2.0, 3.0, 20.0, 18.0]]), torch.zeros(0, 4)]
SHAPES = [(32, 32), (28, 30)]
TERMS = {
    "pyramid_full", "pyramid_roi", "pyramid_foreground", "pyramid_background", "tower_cls", "tower_reg",
    "prediction_cls", "prediction_reg", "assistant_cls",
}  # fmt: skip


def build(student_channels=6, teacher_channels=8, teacher_tower=4, **plan):
    torch.manual_seed(0)
    student, teacher = PlainDetector(student_channels), PlainDetector(teacher_channels, teacher_tower)
    distiller = Distiller(student, teacher, PlainFamily(), DistillPlan.parse({"teacher": {"checkpoint": "-"}, **plan}))
    return student, teacher, distiller


def step(student, distiller, boxes=BOXES, images=IMAGES):
    with distiller.watch() as recording:
        student(images)
    return distiller(recording, Batch(images, boxes, SHAPES))


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
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    student.double()
    distiller.double()
    assert teacher.stem.weight.dtype == torch.float64
    terms = step(student, distiller, images=IMAGES.double())
    assert all(value.dtype == torch.float64 for value in terms.values())


def test_the_teacher_stays_in_eval_mode_where_a_module_that_holds_both_is_put_into_training():
    student, teacher, distiller = build()
    before = step(student, distiller)
    statistics = teacher.norm.running_mean.clone()
    torch.nn.ModuleDict({"student": student, "teacher": teacher, "distiller": distiller}).train()
    assert teacher.training
    after = step(student, distiller)
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert torch.equal(teacher.norm.running_mean, statistics)
    assert not teacher.training


def test_a_batch_without_any_box_gives_finite_terms_and_gradients():
    student, _, distiller = build()
    terms = step(student, distiller, boxes=[torch.zeros(0, 4)] * 2)
    assert terms["pyramid_roi"].item() == 0
    assert terms["pyramid_foreground"].item() == 0
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


def test_towers_of_other_widths_get_an_adapter_unless_the_plan_forbids_it():
    student, _, distiller = build(teacher_tower=5)
    assert {name: len(levels) for name, levels in distiller.tower.adapters.items()} == {"cls": 2, "reg": 2}
    step(student, distiller)["tower_cls"].backward()
    assert distiller.tower.adapters["cls"][0][0].weight.shape == (5, 4, 1, 1)
    assert all(p.grad.abs().sum() > 0 for p in distiller.tower.adapters["cls"].parameters())
    with pytest.raises(ShapeError, match="the cls tower has 4 channels in the student and 5 in the teacher"):
        build(teacher_tower=5, tower={"adapter": False})


def test_an_adapter_is_used_where_the_plan_asks_for_it():
    _, _, plain = build()
    _, _, adapted = build(tower={"adapter": True})
    assert not list(plain.tower.parameters())
    assert len(list(adapted.tower.parameters())) == 2 * 2 * 2 * 2  # towers, levels, stages, weight and bias


def test_what_distillation_adds_starts_as_the_convolutions_of_the_published_heads():
    torch.manual_seed(0)
    predictors = Assistant({
        "cls": PredictorSpec("cls", 64, 80, classifies=True), "reg": PredictorSpec("reg", 64, 36)
    }).predictors  # fmt: skip
    widths = {"cls": TowerSpec(64, 1)}, {"cls": TowerSpec(96, 1)}
    adapters = [PyramidTerm([(64, 96)], PyramidPlan()).adapters[0], TowerTerm(*widths, 1, TowerPlan()).adapters["cls"]]
    convolutions = [one for module in (*adapters, predictors) for one in module.modules() if hasattr(one, "weight")]
    assert len(convolutions) == 4
    for one in convolutions:
        assert one.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert one.weight.mean().abs().item() < 0.001
        expected = 0.01 if one is predictors["cls"] else 0.5
        torch.testing.assert_close(one.bias.sigmoid(), torch.full_like(one.bias, expected))


@pytest.mark.parametrize(
    ("plan", "changed"),
    [
        (
            {"regions": {"coord_base": "stride"}},
            {"pyramid_roi", "pyramid_foreground", "pyramid_background", "prediction_reg"},
        ),
        ({"regions": {"inclusive_end": False}}, {"pyramid_foreground", "pyramid_background", "prediction_reg"}),
        ({"loss": {"count_outside": False}}, {"pyramid_foreground", "pyramid_background"}),
        ({"loss": {"guidance_min": 0.5}}, TERMS - {"assistant_cls"}),
        ({"level_reduce": "mean"}, TERMS - {"assistant_cls"}),
        ({"prediction": {"norm": "foreground"}}, {"prediction_cls"}),
        ({"prediction": {"norm": "mean"}}, {"prediction_reg"}),
        ({"prediction": {"norm": "masked"}}, {"prediction_cls", "prediction_reg"}),
        ({"loss": {"detach_guidance": True}}, set()),
    ],
)
def test_an_option_changes_the_terms_it_is_about_and_no_other(plan, changed):
    boxes = [torch.tensor([[2.0, 3.0, 16.0, 18.0]]), torch.tensor([[5.0, 4.0, 28.0, 27.0]])]
    student, _, distiller = build()
    published = step(student, distiller, boxes)
    student, _, distiller = build(**plan)
    other = step(student, distiller, boxes)
    # One channel alone is at distance 0 from a positive one: its term does not depend on the guidance.
    moved = {name for name in TERMS if not torch.allclose(published[name], other[name], rtol=1e-6, atol=0)}
    assert moved - {"prediction_cls", "prediction_reg"} == changed - {"prediction_cls", "prediction_reg"}
    assert moved <= changed


def test_levels_joined_by_their_mean_are_the_sum_over_their_number():
    student, _, distiller = build()
    total = step(student, distiller)
    student, _, distiller = build(level_reduce="mean")
    mean = step(student, distiller)
    for name in TERMS - {"assistant_cls"}:
        assert mean[name].item() == pytest.approx(total[name].item() / 2, rel=1e-5)


@pytest.mark.parametrize("kind", ["mse", "pkd", "cwd"])
def test_another_kind_of_pyramid_loss_takes_the_place_of_the_four_terms_and_changes_no_other(kind):
    student, _, distiller = build()
    published = step(student, distiller)
    student, teacher, distiller = build(pyramid={"kind": kind})
    terms = step(student, distiller)
    assert set(terms) == {name for name in TERMS if not name.startswith("pyramid_")} | {f"pyramid_{kind}"}
    assert all(torch.equal(terms[name], published[name]) for name in set(terms) & TERMS)
    terms[f"pyramid_{kind}"].backward()
    assert all(p.grad is not None and p.grad.any() for p in distiller.pyramid.parameters() if p.dim() > 1)
    assert student.stem.weight.grad.any()
    assert all(p.grad is None for p in teacher.parameters())
    mean = step(*build(pyramid={"kind": kind, "weight": 3}, level_reduce="mean")[::2])
    assert mean[f"pyramid_{kind}"].item() == pytest.approx(3 / 2 * terms[f"pyramid_{kind}"].item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["mse", "pkd", "cwd"])
def test_another_kind_of_pyramid_loss_needs_no_box_and_stays_in_float32_under_autocast(kind):
    student, _, distiller = build(pyramid={"kind": kind})
    terms = step(student, distiller, boxes=[torch.zeros(0, 4)] * 2)
    assert torch.equal(terms[f"pyramid_{kind}"], step(student, distiller)[f"pyramid_{kind}"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lower = step(student, distiller)[f"pyramid_{kind}"]
    assert lower.dtype == torch.float32
    assert lower.item() == pytest.approx(terms[f"pyramid_{kind}"].item(), rel=0.05)


def test_pyramids_of_other_strides_are_refused():
    class Deeper(PlainFamily):
        def pyramid(self, detector):
            return PyramidSpec(detector.channels, (4, 8, 16) if detector.channels == 8 else (4, 8))

    with pytest.raises(ShapeError, match=r"differ: \(4, 8\) in the student, \(4, 8, 16\) in the teacher"):
        Distiller(PlainDetector(6), PlainDetector(8), Deeper(), DistillPlan.parse({"teacher": {"checkpoint": "-"}}))


class CoarseTeacher(PlainFamily):
    """A teacher without the student's finest level."""

    def pyramid(self, detector):
        return PyramidSpec(detector.channels, (8,) if detector.channels == 8 else (4, 8))

    def read(self, detector, recording):
        seen = super().read(detector, recording)
        return replace(seen, pyramid=seen.pyramid[-1:]) if detector.channels == 8 else seen


def test_where_the_finest_level_is_left_out_boxes_lie_on_the_others_by_their_own_strides():
    torch.manual_seed(0)
    student, teacher = PlainDetector(6), PlainDetector(8)
    heads = dict.fromkeys(("tower", "prediction", "assistant"))
    plan = DistillPlan.parse({"teacher": {"checkpoint": "-"}, "regions": {"coord_base": "stride"}, **heads})
    distiller = Distiller(student, teacher, CoarseTeacher(), plan)
    assert distiller.notes == ["the student's pyramid levels of stride 4 are not compared: the teacher has none"]
    images = torch.randn(2, 3, 48, 32)
    found = step(student, distiller, images=images)
    regions = Regions(BOXES, SHAPES, [(6, 4)], [8], plan.regions)
    expected = distiller.pyramid(student.pyramid(images)[1:], teacher.pyramid(images)[1:], regions)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    compared = distiller.compared_pyramids(images, 2 * images)
    assert list(compared) == [8]
    adapted, of_teacher = compared[8]
    torch.testing.assert_close(adapted, distiller.pyramid.adapters[0](student.pyramid(images)[1]))
    torch.testing.assert_close(of_teacher, teacher.pyramid(2 * images)[1])


def test_an_adapter_is_as_wide_as_the_levels_of_its_stride_are():
    class Widths(PlainFamily):
        def pyramid(self, detector):
            return PyramidSpec((7, 9, 11), (2, 4, 8)) if detector.channels == 8 else PyramidSpec((3, 5), (4, 8))

    plan = DistillPlan.parse({"teacher": {"checkpoint": "-"}, **dict.fromkeys(("tower", "prediction", "assistant"))})
    adapters = Distiller(PlainDetector(6), PlainDetector(8), Widths(), plan).pyramid.adapters
    assert [tuple(adapter.weight.shape[:2]) for adapter in adapters] == [(9, 3), (11, 5)]


@pytest.mark.parametrize("left_out", [None, "prediction", "assistant"])
def test_predictions_of_other_channels_are_refused_by_name(left_out):
    class More(PlainFamily):
        def prediction_channels(self, detector):
            return {"cls": detector.channels}

    plan = DistillPlan.parse({"teacher": {"checkpoint": "-"}, **({left_out: None} if left_out else {})})
    with pytest.raises(ShapeError, match="the prediction 'cls' has 6 channels in the student and 8 in the teacher"):
        Distiller(PlainDetector(6), PlainDetector(8), More(), plan)


@pytest.mark.parametrize("shared", [["stem"], ["stem", "down", "norm", "first", "second", "predictor"]])
def test_a_teacher_that_shares_parameters_with_the_student_is_refused_before_anything_is_frozen(shared):
    student, teacher = PlainDetector(6), PlainDetector(6)
    for name in shared:
        setattr(teacher, name, getattr(student, name))
    plan = DistillPlan.parse({"teacher": {"checkpoint": "-"}})
    with pytest.raises(ShapeError, match=rf"share parameters \({2 * len(shared)} of the student's, such as stem\."):
        Distiller(student, teacher, PlainFamily(), plan)
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert teacher.training


def test_two_forwards_within_one_watch_are_refused():
    student, _, distiller = build()
    with distiller.watch() as recording:
        student(IMAGES)
        student(IMAGES)
    with pytest.raises(ShapeError, match=r"ran 2 times within one watch\(\), and 1 times in the teacher"):
        distiller(recording, Batch(IMAGES, BOXES, SHAPES))


def test_each_image_has_its_tensor_of_boxes():
    student, _, distiller = build()
    with pytest.raises(
        ShapeError, match=r"2 images and 1 tensors of boxes: expected one of each, \(0, 4\) for an image"
    ):
        step(student, distiller, BOXES[:1])
    terms = step(student, distiller, [torch.zeros(0)] * 2)
    assert all(torch.equal(value, terms[name]) for name, value in step(student, distiller, [BOXES[1]] * 2).items())
