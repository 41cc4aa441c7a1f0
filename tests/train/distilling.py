"""A stock mmdet student under its distiller, as a config builds it, and a batch for it."""

from __future__ import annotations

import torch
from mmcv import Config

from cskd_train.files.checkpoints import FORMAT, FORMAT_VERSION, save
from cskd_train.files.config import config_to_data
from cskd_train.mm.detector import build_distilled, build_student
from cskd_train.mm.plain import build_without_pretrained

IMAGES = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
METAS = [
    {"img_shape": (90, 60, 3), "pad_shape": (96, 64, 3), "scale_factor": 1.0},
    {"img_shape": (96, 64, 3), "pad_shape": (96, 64, 3), "scale_factor": 1.0},
]
BOXES = [torch.tensor([[4.0, 6.0, 40.0, 50.0]]), torch.tensor([[10.0, 10.0, 60.0, 30.0], [0.0, 0.0, 16.0, 16.0]])]
LABELS = [torch.tensor([1]), torch.tensor([0, 3])]
BATCH = {"img": IMAGES, "img_metas": METAS, "gt_bboxes": BOXES, "gt_labels": LABELS}


def store_teacher(file, model, classes=(), **config):
    """Write a checkpoint of cskd-train, random weights in it; keywords stand in its config."""
    torch.manual_seed(1)
    config = config_to_data({"model": model, **config})
    meta = {"format": FORMAT, "version": FORMAT_VERSION, "config": config, "CLASSES": list(classes)}
    save(file, {"state_dict": build_without_pretrained(model).state_dict(), "meta": meta})
    return file


def store_weights(file, model):
    """Write weights alone, of the detector of a `model` config."""
    torch.manual_seed(1)
    save(file, {"state_dict": build_without_pretrained(model).state_dict(), "meta": {}})
    return file


def distilled(cfg, tiny_config, teacher_file, teacher_config=None, **distill):
    torch.manual_seed(0)
    cfg.distill = {
        "teacher": {"config": str(teacher_config or tiny_config), "checkpoint": str(teacher_file)},
        **distill,
    }
    return build_distilled(build_student(cfg), cfg, "cpu")


def under(model, teacher_file, classes=None, pipeline=None, teacher=None, **distill):
    """The detector of a `model` config under the teacher of a checkpoint of cskd-train."""
    torch.manual_seed(0)
    cfg = Config({"model": model, "distill": {"teacher": {"checkpoint": str(teacher_file), **(teacher or {})}}})
    cfg.distill.update(distill)
    if pipeline:
        cfg.data = {"train": {"pipeline": pipeline}}
    student = build_student(cfg)
    if classes:
        student.CLASSES = classes
    return build_distilled(student, cfg, "cpu")
