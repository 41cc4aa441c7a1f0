"""Every recipe under configs/: it says what it trains, it trains a step, and what it trains detects."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv.runner import build_optimizer
from mmdet.datasets import CocoDataset
from torch import nn

from cskd_core.plan import DistillPlan, PyramidPlan
from cskd_train.files.checkpoints import FORMAT, FORMAT_VERSION, save
from cskd_train.files.config import config_to_data, load_config
from cskd_train.mm.detector import build_distilled, build_student
from cskd_train.mm.plain import build_without_pretrained

ROOT = Path(__file__).parents[2]
EVERY = {path.stem: path for path in sorted((ROOT / "configs").glob("*/*.py")) if path.parent.name != "_base_"}
DISTILLED = [name for name in EVERY if "_distill_" in name]
PLAIN = [name for name in EVERY if name not in DISTILLED]
ON_COCO = [name for name in EVERY if "_coco" in name]
TEACHERS = [name for name, path in EVERY.items() if path.parent.name == "teacher"]

PUBLISHED = {
    "cskd_faster_rcnn_r101_distill_r50_fpn_coco_2x",
    "cskd_faster_rcnn_r50_distill_r18_fpn_coco_1x",
    "cskd_fcos_r101_distill_r18_fpn_coco_1x",
    "cskd_fcos_r101_distill_r50_fpn_coco_2x",
    "cskd_fcos_r50_distill_r18_fpn_coco_1x",
    "cskd_gfl_r101_distill_r50_fpn_coco_2x",
    "cskd_gfl_r50_distill_r18_fpn_coco_1x",
    "cskd_retina_r101_distill_r18_fpn_coco_1x",
    "cskd_retina_r101_distill_r50_fpn_coco_2x",
    "cskd_retina_r50_distill_r18_fpn_coco_1x",
}
"""docs/algorithm.md 8.2."""

WEIGHTS = {
    "cskd_fcos_r101_distill_r18_fpn_coco_1x": ((2, 2), (2, 5), (1, 2)),
    "cskd_retina_r101_distill_r18_fpn_coco_1x": ((1, 2), (5, 2), (1, 2)),
    "cskd_retina_r101_distill_r50_fpn_coco_2x": ((1, 2), (5, 2), (1, 2)),
}
"""Pyramid, tower, prediction where they are not all (1, 0.5) (docs/algorithm.md 8.3)."""

DETECTORS = {
    "cascade_rcnn": "CascadeRCNN",
    "faster_rcnn": "FasterRCNN",
    "fcos": "FCOS",
    "gfl": "GFL",
    "retina": "RetinaNet",
    "retinanet": "RetinaNet",
}
SCHEDULES = {"FasterRCNN": (0.02, 0.001, 640), "GFL": (0.01, 1 / 3, 480)}
"""Learning rate, warm-up ratio, least short side where they are not (0.01, 1/3, 640) (docs/algorithm.md 8.2)."""

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
BOXES = [torch.tensor([[4.0, 6.0, 40.0, 50.0]]), torch.tensor([[10.0, 10.0, 60.0, 30.0], [0.0, 0.0, 16.0, 16.0]])]
LABELS = [torch.tensor([1]), torch.tensor([0, 2])]


def metas(cfg):
    """Of `IMAGES`, the first with four padded columns."""
    normalization = {key: np.array(value) for key, value in cfg.img_norm_cfg.items()}
    common = {"ori_shape": (64, 64, 3), "pad_shape": (64, 64, 3), "batch_input_shape": (64, 64), "flip": False}
    common |= {"scale_factor": np.ones(4, dtype=np.float32), "img_norm_cfg": normalization, "filename": "none.png"}
    return [{**common, "img_shape": (64, 60, 3)}, {**common, "img_shape": (64, 64, 3)}]


def classes_of(cfg):
    return tuple(cfg.get("classes", CocoDataset.CLASSES))


def untrained(cfg):
    """The student of a config from random weights, every score counting as a detection."""
    cfg.model.backbone.init_cfg = None
    cfg.model.test_cfg.get("rcnn", cfg.model.test_cfg).score_thr = 0.0
    torch.manual_seed(0)
    student = build_student(cfg)
    student.CLASSES = classes_of(cfg)
    student.train()
    return student


def train_one_step(model, cfg):
    """One step as the recipe's optimizer takes it; gives the logged losses."""
    optimizer = build_optimizer(model, cfg.optimizer)
    batch = {"img": IMAGES, "img_metas": metas(cfg), "gt_bboxes": BOXES, "gt_labels": LABELS}
    step = model.train_step(batch, optimizer)
    step["loss"].backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if cfg.optimizer_config.grad_clip:
        torch.nn.utils.clip_grad_norm_(trained, **cfg.optimizer_config.grad_clip)
    optimizer.step()
    return step["log_vars"]


def check_gradients(model):
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


def check_detections(student, cfg):
    """The student finds boxes, all of them inside of the image."""
    student.eval()
    with torch.no_grad():
        (classes,) = student(img=[IMAGES[:1]], img_metas=[metas(cfg)[:1]], return_loss=False, rescale=True)
    assert len(classes) == len(classes_of(cfg))
    found = np.concatenate(classes)
    assert 1 <= len(found) <= 100
    assert np.isfinite(found).all()
    assert found[:, :4].min() >= 0
    assert found[:, [0, 2]].max() <= 60
    assert found[:, [1, 3]].max() <= 64


def twin_of(name):
    """The file that a distilled recipe builds on."""
    (base,) = re.findall(r'^_base_ = \["(.+)"\]$', EVERY[name].read_text(), flags=re.MULTILINE)
    return (EVERY[name].parent / base).resolve()


def teacher_config(name):
    """The config of a recipe's teacher; one without a name stands beside the recipe and wrote the checkpoint."""
    teacher = load_config(EVERY[name]).distill.teacher
    return teacher.get("config") or EVERY[Path(teacher.checkpoint).parent.name]


@pytest.fixture
def teacher_file(tmp_path, monkeypatch):
    """Write an untrained teacher of a recipe to a file, with its config beside the weights; gone after the test."""
    monkeypatch.chdir(ROOT)  # the paths in recipes start there
    file = tmp_path / "teacher.pth"

    def write(name):
        cfg = load_config(teacher_config(name))
        torch.manual_seed(1)
        meta = {"format": FORMAT, "version": FORMAT_VERSION, "config": config_to_data(cfg), "CLASSES": classes_of(cfg)}
        save(file, {"state_dict": build_without_pretrained(cfg.model).state_dict(), "meta": meta})
        return file

    yield write
    file.unlink(missing_ok=True)


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_recipe_trains_a_step_and_detects(name):
    cfg = load_config(EVERY[name])
    student = untrained(cfg)
    before = student.neck.lateral_convs[0].conv.weight.clone()
    losses = train_one_step(student, cfg)
    assert all(math.isfinite(value) for value in losses.values())
    check_gradients(student)
    assert not torch.equal(student.neck.lateral_convs[0].conv.weight, before)
    check_detections(student, cfg)


@pytest.mark.parametrize("name", DISTILLED)
def test_a_distilled_recipe_trains_a_step_and_detects(name, teacher_file):
    cfg = load_config(EVERY[name], {"distill.teacher.checkpoint": str(teacher_file(name))})
    model = build_distilled(untrained(cfg), cfg, "cpu")
    model.train()
    before = {name: value.clone() for name, value in model.distiller.named_parameters()}
    losses = train_one_step(model, cfg)
    assert all(math.isfinite(value) for value in losses.values())
    blocks = {"pyramid", "tower", "prediction", "roi", "assistant"} & set(cfg.distill)
    assert [block for block in blocks if not any(loss.startswith(f"loss_{block}") for loss in losses)] == []
    check_gradients(model)
    assert not [name for name, value in model.distiller.named_parameters() if torch.equal(value, before[name])]
    check_detections(model.student, cfg)


def test_the_ten_published_recipes_are_all_there():
    assert {path.stem for path in EVERY.values() if path.parent.name == "cskd"} >= PUBLISHED


@pytest.mark.parametrize("name", DISTILLED)
def test_a_recipe_without_its_distill_block_is_its_twin(name):
    twin = twin_of(name)
    assert EVERY[twin.stem] == twin
    data = config_to_data(load_config(EVERY[name]))
    del data["distill"]
    assert data == config_to_data(load_config(twin))


@pytest.mark.parametrize("name", DISTILLED)
def test_the_name_of_a_distilled_recipe_says_what_it_distils(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    pattern = r"cskd_(\w+)_r(\d+)_distill_(?:(\w+)_)?r(\d+)_(\w+)"
    taught_by, teacher_depth, family, student_depth, rest = re.fullmatch(pattern, name).groups()
    student, teacher = load_config(EVERY[name]).model, load_config(teacher_config(name)).model
    assert (student.type, teacher.type) == (DETECTORS[family or taught_by], DETECTORS[taught_by])
    assert (teacher.backbone.depth, student.backbone.depth) == (int(teacher_depth), int(student_depth))
    assert re.fullmatch(rf"\w+_r{student_depth}_\w+", twin_of(name).stem)
    assert twin_of(name).stem.split("_")[-1] in (rest.split("_")[-1], "coco")


@pytest.mark.parametrize("name", PLAIN)
def test_the_name_of_a_plain_recipe_says_what_it_trains(name):
    family, depth = re.match(r"(\w+?)_r(\d+)_", name).groups()
    model = load_config(EVERY[name]).model
    assert (model.type, model.backbone.depth) == (DETECTORS[family], int(depth))


@pytest.mark.parametrize("name", EVERY)
def test_the_learning_rate_falls_within_the_epochs(name):
    cfg = load_config(EVERY[name])
    steps = list(cfg.lr_config.step)
    assert steps == sorted(set(steps))
    assert 0 < steps[0] <= steps[-1] < cfg.runner.max_epochs
    if found := re.search(r"_([12])x", name):
        assert (cfg.runner.max_epochs, steps) == ((12, [8, 11]) if found[1] == "1" else (24, [16, 22]))


@pytest.mark.parametrize("name", ON_COCO)
def test_a_recipe_for_coco_has_the_published_settings(name):
    cfg = load_config(EVERY[name])
    learning_rate, warmup_ratio, short_side = SCHEDULES.get(cfg.model.type, (0.01, 1 / 3, 640))
    optimizer, schedule = cfg.optimizer, cfg.lr_config
    assert (optimizer.type, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == (
        "SGD",
        learning_rate,
        0.9,
        1e-4,
    )
    assert (schedule.policy, schedule.warmup, schedule.warmup_iters) == ("step", "linear", 500)
    assert schedule.warmup_ratio == warmup_ratio
    assert dict(cfg.auto_scale_lr) == {"enable": True, "base_batch_size": 16}
    backbone, clip = cfg.model.backbone, cfg.optimizer_config.grad_clip
    of_teacher, of_student = (4, 1, None), (2, -1, {"max_norm": 35, "norm_type": 2})
    assert (cfg.data.samples_per_gpu, backbone.frozen_stages, clip) == (of_teacher if name in TEACHERS else of_student)
    assert (backbone.norm_eval, backbone.norm_cfg.requires_grad) == (True, cfg.model.type != "FCOS")
    (resize,) = stages(cfg.data.train.pipeline, "Resize")
    assert resize.img_scale == [(1333, short_side), (1333, 800)]
    assert resize.multiscale_mode == "range"
    for split in (cfg.data.val, cfg.data.test):
        assert [stage.img_scale for stage in stages(split.pipeline, "MultiScaleFlipAug")] == [(1333, 800)]


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ON_COCO])
def test_a_recipe_for_a_processor_takes_its_learning_rate_as_it_stands(name):
    assert "auto_scale_lr" not in load_config(EVERY[name])


@pytest.mark.parametrize("name", ON_COCO)
def test_images_are_normalised_as_the_pretrained_backbone_takes_them(name):
    cfg = load_config(EVERY[name])
    backbone = cfg.model.backbone
    of_caffe = backbone.init_cfg.checkpoint == f"open-mmlab://detectron/resnet{backbone.depth}_caffe"
    assert of_caffe or backbone.init_cfg.checkpoint == f"torchvision://resnet{backbone.depth}"
    assert backbone.style == ("caffe" if of_caffe else "pytorch")
    assert of_caffe == (cfg.model.type == "FCOS" and backbone.depth != 18)
    rgb = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "to_rgb": True}
    bgr = {"mean": [103.53, 116.28, 123.675], "std": [1.0, 1.0, 1.0], "to_rgb": False}
    for split in (cfg.data.train, cfg.data.val, cfg.data.test):
        (normalize,) = stages(split.pipeline, "Normalize")
        assert {key: normalize[key] for key in rgb} == (bgr if of_caffe else rgb) == dict(cfg.img_norm_cfg)


def stages(pipeline, kind):
    """Every stage of a kind in a pipeline, inner ones too."""
    return [
        found
        for stage in pipeline
        for found in ([stage] if stage.type == kind else []) + stages(stage.get("transforms", []), kind)
    ]


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_weights_are_the_published_ones(name):
    pyramid, tower, prediction = WEIGHTS.get(name, ((1, 0.5), (1, 0.5), (1, 0.5)))
    plan = DistillPlan.parse(load_config(EVERY[name]).distill)
    assert plan.pyramid == PyramidPlan(pyramid, pyramid, pyramid, pyramid)
    assert (plan.tower.cls, plan.tower.reg, plan.prediction.weight) == (tower, tower, prediction)
    # All else, the weights of the second stage too, is at its default.
    named = {"pyramid": plan.pyramid, "tower": plan.tower, "prediction": plan.prediction}
    assert plan == replace(DistillPlan(plan.teacher), **named)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_teacher_is_the_one_that_its_config_trains(name):
    teacher = load_config(EVERY[name]).distill.teacher
    trained_as = Path(teacher.config.removeprefix("mmdet::")).stem
    if teacher.checkpoint.startswith("https://"):
        folder, file = teacher.checkpoint.split("/")[-2:]
        assert folder == trained_as
        assert re.fullmatch(rf"{trained_as}_[\w.-]+-[0-9a-f]{{8}}\.pth", file)
    else:
        assert ROOT / teacher.config == EVERY[trained_as]
        assert teacher.checkpoint == f"work_dirs/{trained_as}/best.pth"


@pytest.mark.parametrize("name", [name for name in PLAIN if name in ON_COCO and name.startswith("fcos")])
def test_the_biases_of_fcos_convolutions_learn_faster_and_undecayed_and_nothing_else_does(name):
    cfg = load_config(EVERY[name])
    student = build_without_pretrained(cfg.model)
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    groups = build_optimizer(student, cfg.optimizer).param_groups
    changed = {names[id(group["params"][0])] for group in groups if (group["lr"], group["weight_decay"]) == (0.02, 0)}
    convolutions = [name for name, module in student.named_modules() if isinstance(module, nn.Conv2d)]
    assert changed == {f"{name}.bias" for name in convolutions} & set(names.values())
    assert "bbox_head.conv_reg.bias" in changed
