"""Teachers and students that are refused, by name and with the way out, and such as do with less than they should."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from mmcv import Config

from cskd_core.errors import TapError
from cskd_train.errors import TrainError
from cskd_train.files.checkpoints import save
from cskd_train.files.config import load_config
from cskd_train.mm.detector import build_distilled, build_student
from cskd_train.mm.families import family_of
from cskd_train.mm.plain import build_without_pretrained

from .distilling import BATCH, distilled, store_teacher, store_weights, under


@pytest.fixture
def cfg(tiny_config):
    return load_config(tiny_config)


@pytest.fixture
def teacher_file(cfg, tmp_path):
    return store_weights(tmp_path / "teacher.pth", cfg.model)


@pytest.fixture
def save_teacher(tmp_path):
    return partial(store_teacher, tmp_path / "teacher.pth")


def test_a_checkpoint_of_another_architecture_is_refused(cfg, tiny_config, tmp_path):
    other = copy.deepcopy(cfg)
    other.model.neck.out_channels = other.model.bbox_head.in_channels = 16
    save(tmp_path / "teacher.pth", {"state_dict": build_without_pretrained(other.model).state_dict(), "meta": {}})
    with pytest.raises(TrainError, match=r"another architecture.*neck\.lateral_convs\.0\.conv\.weight has shape"):
        distilled(cfg, tiny_config, tmp_path / "teacher.pth")


def test_what_is_no_detector_is_refused_by_name():
    with pytest.raises(TapError, match="a Linear cannot be distilled: it is no mmdet detector"):
        family_of(torch.nn.Linear(1, 1))


def test_a_detector_without_a_neck_is_refused(narrow_model, save_teacher, family):
    cfg = Config({"model": narrow_model(family)})
    cfg.distill = {"teacher": {"checkpoint": str(save_teacher(narrow_model(family, 50)))}}
    student = build_student(cfg)
    del student.neck
    with pytest.raises(TapError, match=f"^a {family} without a neck cannot be distilled"):
        build_distilled(student, cfg, "cpu")


def test_a_two_stage_teacher_that_cannot_sample_is_refused(narrow_model, save_teacher):
    teacher = narrow_model("FasterRCNN", 50)
    del teacher["train_cfg"]
    with pytest.raises(TrainError, match=r"the teacher's config has no model\.train_cfg\.rcnn: .* training config"):
        under(narrow_model("FasterRCNN"), save_teacher(teacher))


@pytest.mark.parametrize("one_stage", ["RetinaNet", "FCOS", "GFL"])
def test_a_one_stage_teacher_needs_no_training_settings(narrow_model, save_teacher, one_stage):
    whole, bare = narrow_model(one_stage, 50), narrow_model(one_stage, 50)
    del bare["train_cfg"]
    found, expected = (under(narrow_model(one_stage), save_teacher(teacher))(**BATCH) for teacher in (bare, whole))
    assert found.keys() == expected.keys() > {"loss_assistant_cls"}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_a_student_without_proposal_settings_takes_those_of_the_test_as_mmdet_does(narrow_model, save_teacher):
    student = narrow_model("FasterRCNN")
    del student.train_cfg["rpn_proposal"]
    student.test_cfg.rpn.max_per_img = 7
    model, seen = under(student, save_teacher(narrow_model("FasterRCNN", 50))), []
    model.distiller.roi.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model(**BATCH)
    assert len(seen[0].fc[0][0]) == 2 * 7 + 3  # proposals of two images, and their true boxes


def test_a_teacher_without_config_takes_the_one_in_its_checkpoint(cfg, tiny_config, teacher_file):
    cfg.distill = {"teacher": {"checkpoint": str(teacher_file)}}
    with pytest.raises(TrainError, match="holds no config"):
        build_distilled(build_student(cfg), cfg, "cpu")


def test_pretrained_weights_that_cannot_be_had_name_the_way_out(cfg, tmp_path):
    missing = str(tmp_path / "none.pth")
    cfg.model.backbone.init_cfg = {"type": "Pretrained", "checkpoint": missing}
    with pytest.raises(TrainError, match=r"--set model\.backbone\.init_cfg=None"):
        build_student(cfg)


def test_a_second_stage_alone_compares_classes_too(narrow_model, save_teacher):
    teacher = save_teacher(narrow_model("FasterRCNN", 50, classes=6))
    alone = {"prediction": None, "assistant": None}
    with pytest.raises(TrainError, match=r"student has 4 classes and the teacher 6.*distill\.teacher\.class_map"):
        under(narrow_model("FasterRCNN"), teacher, **alone)
    losses = under(narrow_model("FasterRCNN"), teacher, roi=None, **alone)(**BATCH)
    assert {"loss_tower_rpn", "loss_pyramid_full"} <= losses.keys()
