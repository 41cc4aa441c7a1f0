"""A distilled recipe on generated shapes, in one file, that any commit of this project can train."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from cskd_data.shapes import generate
from cskd_train import mm  # noqa: F401  (before any mmcv import)
from cskd_train.files.config import config_to_data, load_config
from cskd_train.mm.plain import build_without_pretrained

sys.path.insert(0, str(Path(__file__).parent))
from width import scaled

DEMO = Path(__file__).parents[1] / "configs" / "demo"
NAMES = {"RetinaNet": "retinanet", "FCOS": "fcos", "GFL": "gfl", "FasterRCNN": "faster_rcnn"}
STUDENTS = {**NAMES, "RetinaNet": "retina"}  # as the distilled recipes are called
SETTINGS = (
    "model",
    "data",
    "optimizer",
    "optimizer_config",
    "lr_config",
    "runner",
    "evaluation",
    "log_config",
    "distill",
)
VALIDATION_IMAGES = 2  # what is measured is training


def write_recipe(
    folder: Path, family: str, *, images: int, size: tuple[int, int], batch_size: int, workers: int, width: float = 1
) -> Path:
    """Draw the images, write a teacher of random weights and the config; where they are there already, nothing changes.

    Args:
        size: height and width of the images, which go into the network as they are.
        width: channels of student and teacher over those of the demo's recipe, where a ResNet has half of its own.

    Returns:
        The config: the demo's recipe under that teacher, one epoch.
    """
    data_root = folder / "data"
    generate(data_root, images=images, val_images=VALIDATION_IMAGES, size=size, seed=0)
    teacher = load_config(DEMO / f"{NAMES[family]}_r50_shapes.py")
    teacher.model = scaled(teacher.model, width)
    torch.manual_seed(0)
    detector = build_without_pretrained(teacher.model)
    detector.init_weights()  # type: ignore[operator]
    weights = folder / f"{family}_teacher.pth"
    torch.save({"state_dict": detector.state_dict(), "meta": {}}, weights)
    student = load_config(DEMO / f"cskd_{STUDENTS[family]}_r50_distill_r18_shapes.py")
    student.model = scaled(student.model, width)
    student.distill.teacher = {
        "config": str(_written(folder / f"{family}_teacher.py", teacher)),
        "checkpoint": str(weights),
    }
    student.data.samples_per_gpu, student.data.workers_per_gpu = batch_size, workers
    for split in ("train", "val", "test"):
        student.data[split].data_root = str(data_root)
        _resize(student.data[split].pipeline, size)
    student.runner.max_epochs = 1
    student.log_config = {"interval": 1}
    return _written(folder / f"{family}.py", student)


def _resize(pipeline: list[Any], size: tuple[int, int]) -> None:
    for transform in pipeline:
        if "img_scale" in transform:
            transform["img_scale"] = (max(size), min(size))


def _written(path: Path, cfg: Any) -> Path:
    """The settings alone, without the names that a config file computes them from."""
    settings = {key: value for key, value in config_to_data(cfg).items() if key in SETTINGS}
    path.write_text("".join(f"{key} = {value!r}\n" for key, value in settings.items()), encoding="utf-8")
    return path
