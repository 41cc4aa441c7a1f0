"""A stock mmdet student under its distiller, and the teachers that are refused."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch

from cskd_train.engine.checkpoints import save
from cskd_train.engine.config import load_config
from cskd_train.errors import TrainError
from cskd_train.mm.detector import build_distilled, build_student
from cskd_train.mm.families import family_of
from cskd_train.mm.plain import build_without_pretrained

CONFIGS = Path(__file__).parents[2] / "configs"
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
METAS = [
    {"img_shape": (64, 60, 3), "pad_shape": (64, 64, 3), "scale_factor": 1.0},
    {"img_shape": (64, 64, 3), "pad_shape": (64, 64, 3), "scale_factor": 1.0},
]
BOXES = [torch.tensor([[4.0, 6.0, 40.0, 50.0]]), torch.tensor([[10.0, 10.0, 60.0, 30.0], [0.0, 0.0, 16.0, 16.0]])]
LABELS = [torch.tensor([1]), torch.tensor([0, 5])]


@pytest.fixture
def cfg(tiny_config):
    return load_config(tiny_config)


@pytest.fixture
def teacher_file(cfg, tmp_path):
    torch.manual_seed(1)
    file = tmp_path / "teacher.pth"
    save(file, {"state_dict": build_without_pretrained(cfg.model).state_dict(), "meta": {}})
    return file


def distilled(cfg, tiny_config, teacher_file, teacher_config=None, **distill):
    torch.manual_seed(0)
    cfg.distill = {
        "teacher": {"config": str(teacher_config or tiny_config), "checkpoint": str(teacher_file)},
        **distill,
    }
    return build_distilled(build_student(cfg), cfg, "cpu")


def test_a_step_logs_the_students_losses_and_every_term(cfg, tiny_config, teacher_file):
    model = distilled(cfg, tiny_config, teacher_file)
    model.train()
    step = model.train_step(
        {"img": IMAGES, "img_metas": METAS, "gt_bboxes": BOXES, "gt_labels": LABELS}, optimizer=None
    )
    terms = {"pyramid", "pyramid_roi", "pyramid_fg", "pyramid_bg", "tower_cls", "tower_reg"}
    terms |= {"prediction_cls", "prediction_reg", "assistant_cls", "assistant_reg"}
    assert set(step["log_vars"]) == {"loss", "loss_cls", "loss_bbox"} | {f"loss_{term}" for term in terms}
    parts = sum(value for name, value in step["log_vars"].items() if name != "loss")
    assert step["loss"].item() == pytest.approx(parts, rel=1e-6)
    assert step["num_samples"] == 2


def test_the_students_own_losses_are_those_of_the_plain_student(cfg, tiny_config, teacher_file):
    model = distilled(cfg, tiny_config, teacher_file)
    plain = copy.deepcopy(model.student)
    arguments = {"img": IMAGES, "img_metas": METAS, "gt_bboxes": BOXES, "gt_labels": LABELS}
    together = model.student._parse_losses(model(**arguments))[1]
    alone = plain._parse_losses(plain(**arguments))[1]
    assert {name: together[name] for name in ("loss_cls", "loss_bbox")} == {
        name: alone[name] for name in ("loss_cls", "loss_bbox")
    }


def test_the_teacher_is_in_no_parameter_and_no_state(cfg, tiny_config, teacher_file):
    model = distilled(cfg, tiny_config, teacher_file)
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"student", "distiller"}
    kept = {
        name.removeprefix("distiller.").split(".")[0] for name in model.state_dict() if name.startswith("distiller")
    }
    assert kept == {"pyramid", "assistant"}
    assert set(model.student.state_dict()) == set(build_without_pretrained(cfg.model).state_dict())


def test_teacher_weights_are_those_of_the_file(cfg, tiny_config, teacher_file):
    model = distilled(cfg, tiny_config, teacher_file)
    expected = torch.load(teacher_file, weights_only=True)["state_dict"]
    loaded = model.distiller.teacher.detector.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())
    assert not model.distiller.teacher.detector.training


def test_a_batch_without_any_box_trains(cfg, tiny_config, teacher_file):
    model = distilled(cfg, tiny_config, teacher_file)
    none = {"gt_bboxes": [torch.zeros(0, 4)] * 2, "gt_labels": [torch.zeros(0, dtype=torch.long)] * 2}
    losses = model(img=IMAGES, img_metas=METAS, **none)
    loss, values = model.student._parse_losses(losses)
    loss.backward()
    assert all(math.isfinite(value) for value in values.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert values["loss_pyramid_roi"] == values["loss_pyramid_fg"] == values["loss_assistant_reg"] == 0


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


def test_a_checkpoint_of_another_architecture_is_refused(cfg, tiny_config, tmp_path):
    other = copy.deepcopy(cfg)
    other.model.neck.out_channels = other.model.bbox_head.in_channels = 16
    save(tmp_path / "teacher.pth", {"state_dict": build_without_pretrained(other.model).state_dict(), "meta": {}})
    with pytest.raises(TrainError, match=r"another architecture.*neck\.lateral_convs\.0\.conv\.weight has shape"):
        distilled(cfg, tiny_config, tmp_path / "teacher.pth")


def test_a_detector_without_a_family_is_refused_by_name(cfg):
    with pytest.raises(
        TrainError, match="a Linear cannot be distilled; supported detectors: RetinaNet, FCOS, GFL, FasterRCNN"
    ):
        family_of(torch.nn.Linear(1, 1))


def test_a_teacher_without_config_takes_the_one_in_its_checkpoint(cfg, tiny_config, teacher_file):
    with pytest.raises(TrainError, match="holds no config"):
        build_distilled(build_student(cfg), _with_distill(cfg, {"teacher": {"checkpoint": str(teacher_file)}}), "cpu")


def _with_distill(cfg, distill):
    cfg.distill = distill
    return cfg


def test_pretrained_weights_that_cannot_be_had_name_the_way_out(cfg, tmp_path):
    missing = str(tmp_path / "none.pth")
    cfg.model.backbone.init_cfg = {"type": "Pretrained", "checkpoint": missing}
    with pytest.raises(TrainError, match=r"--set model\.backbone\.init_cfg=None"):
        build_student(cfg)
