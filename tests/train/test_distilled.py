"""A stock mmdet student under its distiller, as a config builds it: what it trains, sees and says."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from mmdet.datasets.pipelines import Compose

from cskd_train.errors import TrainError
from cskd_train.files.checkpoints import save
from cskd_train.files.config import load_config
from cskd_train.files.settings import check_settings
from cskd_train.mm.plain import build_without_pretrained

from .distilling import BATCH, IMAGES, METAS, distilled, store_teacher, store_weights, under


@pytest.fixture
def cfg(tiny_config):
    return load_config(tiny_config)


@pytest.fixture
def teacher_file(cfg, tmp_path):
    return store_weights(tmp_path / "teacher.pth", cfg.model)


@pytest.fixture
def save_teacher(tmp_path):
    return partial(store_teacher, tmp_path / "teacher.pth")


# What is trained


def test_a_step_logs_the_students_losses_and_every_term(cfg, tiny_config, teacher_file):
    model = distilled(cfg, tiny_config, teacher_file)
    model.train()
    step = model.train_step(BATCH, optimizer=None)
    terms = {"pyramid_full", "pyramid_roi", "pyramid_foreground", "pyramid_background", "tower_cls", "tower_reg"}
    terms |= {"prediction_cls", "prediction_reg", "assistant_cls", "assistant_reg"}
    assert set(step["log_vars"]) == {"loss", "loss_cls", "loss_bbox"} | {f"loss_{term}" for term in terms}
    parts = sum(value for name, value in step["log_vars"].items() if name != "loss")
    assert step["loss"].item() == pytest.approx(parts, rel=1e-6)
    assert step["num_samples"] == 2


def test_the_students_own_losses_are_those_of_the_plain_student(narrow_model, save_teacher, family):
    model = under(narrow_model(family), save_teacher(narrow_model(family, 50)))
    plain = copy.deepcopy(model.student)
    torch.manual_seed(0)
    together = model.student._parse_losses(model(**BATCH))[1]
    torch.manual_seed(0)
    alone = plain._parse_losses(plain(**BATCH))[1]
    own = set(alone) - {"loss"}
    assert len(own) >= 2
    assert {name: together[name] for name in own} == {name: alone[name] for name in own}
    assert together["loss"] > alone["loss"]


def test_the_teacher_is_in_no_parameter_and_no_state(narrow_model, save_teacher, family):
    model = under(narrow_model(family), save_teacher(narrow_model(family, 50)))
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"student", "distiller"}
    kept = {name.split(".")[1] for name in model.state_dict() if name.startswith("distiller.")}
    towers = {"tower"} if family in ("FCOS", "FasterRCNN") else set()
    assert kept == {"pyramid", "assistant"} | towers | ({"roi"} if family == "FasterRCNN" else set())
    assert set(model.student.state_dict()) == set(build_without_pretrained(narrow_model(family)).state_dict())


def test_teacher_weights_are_those_of_the_file(narrow_model, save_teacher, family):
    file = save_teacher(narrow_model(family, 50))
    model = under(narrow_model(family), file)
    model.train()
    expected = torch.load(file, weights_only=True)["state_dict"]
    loaded = model.distiller.teacher.detector.state_dict()
    changed = {name for name, value in expected.items() if name not in loaded or not loaded[name].equal(value)}
    assert {name.split(".")[0] for name in changed} == {"backbone"}  # norms, and the convolutions that took them in
    assert {name.split(".")[0] for name in set(loaded) - set(expected)} == {"backbone"}
    assert not model.distiller.teacher.detector.training


# What the teacher sees

CAFFE = {"type": "Normalize", "mean": [103.53, 116.28, 123.675], "std": [1.0, 1.0, 1.0], "to_rgb": False}
RGB = {"type": "Normalize", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "to_rgb": True}
PAD = {"type": "Pad", "size": (96, 64)}


def pictures_after(*steps):
    """(2, 3, 96, 64) as an mmdet pipeline of these steps gives two pictures, of 90 x 60 and of 96 x 64 pixels."""
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 256, (*meta["img_shape"][:2], 3), dtype=np.uint8) for meta in METAS]
    loaded = [Compose(steps)({"img": picture, "img_fields": ["img"]})["img"] for picture in pictures]
    return torch.stack([torch.from_numpy(picture.transpose(2, 0, 1).copy()) for picture in loaded])


def seen_by_teacher(model, images):
    """The tensor that the teacher's backbone gets in one step."""
    seen = []
    backbone = model.distiller.teacher.detector.backbone
    backbone.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model(**{**BATCH, "img": images})
    (found,) = seen
    return found


def test_a_caffe_teacher_sees_what_its_own_pipeline_makes_of_the_students_images(narrow_model, save_teacher):
    file = save_teacher(narrow_model("FCOS", 50), data={"train": {"pipeline": [CAFFE, PAD]}})
    model = under(narrow_model("FCOS"), file, pipeline=[RGB, PAD])
    images, expected = pictures_after(RGB, PAD), pictures_after(CAFFE, PAD)
    found = seen_by_teacher(model, images)
    assert (found - expected).abs().max() < 1e-4  # of pixel values 0..255
    assert found[0, :, :, 60:].eq(0).all()
    assert found[0, :, 90:].eq(0).all()
    assert (found - images).abs().max() > 50
    (note,) = model.notes
    assert "the teacher sees its own normalisation" in note
    assert "103.53" in note


@pytest.mark.parametrize(
    ("teacher_steps", "normalization"),
    [(CAFFE, "shared"), (RGB, "own")],
    ids=["shared as published", "equal"],
)
def test_a_teacher_sees_the_students_very_tensor(narrow_model, save_teacher, teacher_steps, normalization):
    file = save_teacher(narrow_model("FCOS", 50), data={"train": {"pipeline": [teacher_steps, PAD]}})
    model = under(narrow_model("FCOS"), file, pipeline=[RGB, PAD], teacher={"normalization": normalization})
    assert seen_by_teacher(model, IMAGES) is IMAGES
    assert model.notes == ()


@pytest.mark.parametrize(
    ("student_steps", "teacher_steps"),
    [([RGB, PAD], [PAD]), ([PAD], [RGB, PAD]), ([PAD], [CAFFE, PAD])],
    ids=["teacher without", "student without", "BGR"],
)
def test_a_pipeline_that_does_not_normalise_gives_pixels_as_they_are(
    narrow_model, save_teacher, student_steps, teacher_steps
):
    file = save_teacher(narrow_model("FCOS", 50), data={"train": {"pipeline": teacher_steps}})
    model = under(narrow_model("FCOS"), file, pipeline=student_steps)
    images, expected = (pictures_after(*steps).float() for steps in (student_steps, teacher_steps))
    found = seen_by_teacher(model, images)
    assert (found - expected).abs().max() < 1e-4 * max(expected.std(), 1)
    assert (found - images).abs().max() > 50
    (note,) = model.notes
    assert "the teacher sees its own normalisation" in note


def test_two_pipelines_that_do_not_normalise_give_the_very_tensor(narrow_model, save_teacher):
    file = save_teacher(narrow_model("FCOS", 50), data={"train": {"pipeline": [PAD]}})
    model = under(narrow_model("FCOS"), file, pipeline=[PAD])
    assert seen_by_teacher(model, IMAGES) is IMAGES
    assert model.notes == ()


@pytest.mark.parametrize(
    ("student_steps", "teacher_steps", "without"),
    [([RGB, PAD], [], "teacher"), ([], [RGB, PAD], "student")],
    ids=["teacher without", "student without"],
)
def test_a_config_without_a_pipeline_gives_the_teacher_the_students_tensor_and_says_so(
    narrow_model, save_teacher, student_steps, teacher_steps, without
):
    file = save_teacher(narrow_model("FCOS", 50), data={"train": {"pipeline": teacher_steps}})
    model = under(narrow_model("FCOS"), file, pipeline=student_steps)
    assert seen_by_teacher(model, IMAGES) is IMAGES
    (note,) = model.notes
    assert note.startswith(f"the {without}'s config has no pipeline")
    assert note.endswith("the teacher sees them as the student does")


@pytest.mark.parametrize(("in_strides", "units"), [(True, "pixels are converted to the student's strides"),
                                             (False, "strides are converted to the student's pixels")])  # fmt: skip
def test_other_units_of_an_fcos_teacher_are_noted(narrow_model, save_teacher, in_strides, units):
    student, teacher = narrow_model("FCOS"), narrow_model("FCOS", 50)
    student.bbox_head.norm_on_bbox, teacher.bbox_head.norm_on_bbox = in_strides, not in_strides
    assert under(student, save_teacher(teacher)).notes == (f"the teacher's box distances in {units}",)


def test_centerness_from_another_tower_is_noted_and_taught(narrow_model, save_teacher):
    student, teacher = narrow_model("FCOS"), narrow_model("FCOS", 50)
    teacher.bbox_head.centerness_on_reg = True
    model = under(student, save_teacher(teacher))
    (note,) = model.notes
    assert "the student predicts centerness from its cls tower, the teacher from its reg tower" in note
    model(**BATCH)["loss_prediction_centerness"].backward()
    head = model.student.bbox_head
    assert head.cls_convs[-1].conv.weight.grad.any()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in head.reg_convs.parameters())


def test_detectors_that_agree_leave_nothing_to_note(narrow_model, save_teacher, family):
    assert under(narrow_model(family), save_teacher(narrow_model(family, 50))).notes == ()


# What the student starts from


def test_a_student_starts_from_the_teachers_head_if_told_and_from_its_own_laterals(narrow_model, save_teacher, family):
    file = save_teacher(narrow_model(family, 50))
    expected = torch.load(file, weights_only=True)["state_dict"]
    alone = under(narrow_model(family), file).student.state_dict()
    model = under(narrow_model(family), file, init_student=True)
    weights = model.student.state_dict()
    heads = ("rpn_head.", "roi_head.") if family == "FasterRCNN" else ("bbox_head.",)
    of_head = [key for key in weights if key.startswith(heads)]
    assert all(torch.equal(weights[key], expected[key]) for key in of_head)
    assert any(not torch.equal(alone[key], expected[key]) for key in of_head)
    assert torch.equal(weights["neck.fpn_convs.0.conv.weight"], expected["neck.fpn_convs.0.conv.weight"])
    kept = [key for key in weights if key.startswith("backbone.") or "lateral" in key]
    assert all(torch.equal(weights[key], alone[key]) for key in kept)
    (note,) = model.notes
    skipped = 1 if family == "RetinaNet" else 0
    assert note.splitlines()[0].endswith(f" tensors copied, {skipped} not")
    assert ("not copied: neck.fpn_convs.3.conv.weight: (32, 256, 3, 3) in the teacher" in note) == bool(skipped)


def test_two_beginnings_of_a_student_are_refused(cfg):
    cfg.load_from = "first.pth"
    cfg.distill = {"teacher": {"checkpoint": "teacher.pth"}, "init_student": True}
    with pytest.raises(TrainError, match=r"load_from = 'first\.pth' and distill\.init_student=True"):
        check_settings(cfg)


# Classes

OURS = ("circle", "ring", "square", "star")
OF_TEACHER = ("cross", "star", "triangle", "disc", "ring", "square")


def test_other_classes_are_refused_with_both_lists(narrow_model, save_teacher, family):
    file = save_teacher(narrow_model(family, 50, classes=6), OF_TEACHER)
    with pytest.raises(TrainError) as error:
        under(narrow_model(family), file, classes=OURS)
    assert "student's classes are (circle, ring, square, star), the teacher's (cross, star, triang" in str(error.value)
    assert "distill.teacher.class_map=" in str(error.value)


@pytest.mark.parametrize(
    ("classes", "class_map", "chosen"),
    [(("ring", "star", "cross", "square"), {}, [4, 1, 0, 5]), (OURS, {"circle": "disc"}, [3, 4, 5, 1])],
    ids=["by name", "by a map"],
)
def test_the_teacher_predicts_the_students_classes_in_the_students_order(
    narrow_model, save_teacher, family, classes, class_map, chosen
):
    teacher = narrow_model(family, 50, classes=6)
    if family == "GFL":  # of two cells a single channel is its sign alone, whose rounding shows
        teacher.bbox_head.norm_cfg = {"type": "GN", "num_groups": 8}
    file = save_teacher(teacher, OF_TEACHER)
    model = under(narrow_model(family), file, classes=classes, teacher={"class_map": class_map})
    whole = build_without_pretrained(teacher).eval()
    whole.load_state_dict(torch.load(file, weights_only=True)["state_dict"])
    if family == "FasterRCNN":
        seen = []
        model.distiller.roi.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
        model(**BATCH)
        logits, deltas = whole.roi_head.bbox_head(seen[0].at_teacher[1])
        predictions = seen[0].predictions
        torch.testing.assert_close(predictions["cls"][1], logits[:, [*chosen, 6]])
        torch.testing.assert_close(predictions["reg"][1], deltas.unflatten(1, (6, 4))[:, chosen].flatten(1))
    else:
        with torch.no_grad():
            expected = whole.bbox_head(whole.extract_feat(IMAGES))[0]
        found = model.distiller.teacher.observe(IMAGES).predictions["cls"]
        for level, logits in enumerate(expected):
            by_anchor = logits.unflatten(1, (-1, 6))  # mmdet's channels: anchor by anchor
            torch.testing.assert_close(found[level], by_anchor[:, :, chosen].flatten(1, 2))
        assert torch.isfinite(model(**BATCH)["loss_assistant_cls"])


def test_a_class_map_that_leaves_a_class_out_is_refused_by_name(narrow_model, save_teacher):
    file = save_teacher(narrow_model("GFL", 50, classes=6), OF_TEACHER)
    with pytest.raises(TrainError, match="the teacher has no class 'circle'"):
        under(narrow_model("GFL"), file, classes=OURS, teacher={"class_map": {"star": "cross"}})


def test_a_teacher_with_other_classes_is_refused(cfg, tiny_config, tmp_path):
    other = copy.deepcopy(cfg)
    other.model.bbox_head.num_classes = 3
    save(tmp_path / "teacher.pth", {"state_dict": build_without_pretrained(other.model).state_dict(), "meta": {}})
    config = tmp_path / "teacher.py"
    config.write_text(f"_base_ = [{str(tiny_config)!r}]\nmodel = dict(bbox_head=dict(num_classes=3))\n")
    with pytest.raises(
        TrainError, match="the student has 6 classes and the teacher 3, and the teacher's names are unknown"
    ):
        distilled(cfg, tiny_config, tmp_path / "teacher.pth", config)
