"""A tiny student, its checkpoint, its ONNX file, and annotations on which its mAP is well above zero."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import cskd_train.mm  # noqa: F401  (mends mmcv before any test imports it)
from cskd_deploy import cli

SIZE = (128, 128)
ABSENT = ["torch", "mmcv", "mmdet", "onnx", "onnxslim", "cskd_core", "cskd_train"]


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def deploy(capsys, monkeypatch) -> Command:
    """Run `cskd-deploy` in this process: `deploy("bench", path, ...)`. A traceback fails the test."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return Outcome(int(stop.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def edge_deploy() -> Command:
    """Run `cskd-deploy` in a process that cannot import what an edge box has not: torch, mmdet, onnx, cskd-train."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({ABSENT})); from cskd_deploy.cli import main; main(sys.argv[1:])"
    )

    def run(*arguments: object) -> Outcome:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert "Traceback" not in done.stderr, done.stderr
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


def student_config(classes: tuple[str, ...], scale: tuple[int, int] = SIZE) -> dict[str, Any]:
    """RetinaNet R18 with a narrow neck and head, as plain data."""
    norm = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "to_rgb": True}
    transforms = [
        {"type": "Resize", "keep_ratio": True},
        {"type": "RandomFlip"},
        {"type": "Normalize", **norm},
        {"type": "Pad", "size_divisor": 32},
        {"type": "ImageToTensor", "keys": ["img"]},
        {"type": "Collect", "keys": ["img"]},
    ]
    augment = {"type": "MultiScaleFlipAug", "img_scale": scale, "flip": False, "transforms": transforms}
    split = {"type": "CocoDataset", "classes": classes, "ann_file": "val.json", "img_prefix": "images/"}
    return {
        "model": {
            "type": "RetinaNet",
            "backbone": {"type": "ResNet", "depth": 18, "norm_cfg": {"type": "BN"}, "out_indices": (0, 1, 2, 3)},
            "neck": {
                "type": "FPN",
                "in_channels": [64, 128, 256, 512],
                "out_channels": 32,
                "start_level": 1,
                "add_extra_convs": "on_input",
                "num_outs": 5,
            },
            "bbox_head": {
                "type": "RetinaHead",
                "num_classes": len(classes),
                "in_channels": 32,
                "feat_channels": 32,
                "stacked_convs": 2,
                "anchor_generator": {
                    "type": "AnchorGenerator",
                    "octave_base_scale": 4,
                    "scales_per_octave": 3,
                    "ratios": [0.5, 1.0, 2.0],
                    "strides": [8, 16, 32, 64, 128],
                },
                "bbox_coder": {"type": "DeltaXYWHBBoxCoder"},
                "loss_cls": {"type": "FocalLoss", "use_sigmoid": True},
                "loss_bbox": {"type": "L1Loss"},
            },
            "train_cfg": None,
            "test_cfg": {
                "nms_pre": 300,
                "min_bbox_size": 0,
                "score_thr": 0.05,
                "nms": {"type": "nms", "iou_threshold": 0.5},
                "max_per_img": 100,
            },
        },
        "data": {
            "workers_per_gpu": 0,
            "test": {**split, "pipeline": [{"type": "LoadImageFromFile"}, augment]},
        },
    }


def write_checkpoint(path: Path, classes: tuple[str, ...], config: dict[str, Any] | None = None, seed: int = 0) -> Path:
    """A checkpoint of an untrained student whose scores and boxes are spread as a trained one's are.

    The last layers are rescaled so that logits have mean -3 and deviation 1.5 on a random image, deltas deviation 0.3:
    a few hundred candidates above the threshold, and overlaps for NMS to remove.
    """
    import torch

    from cskd_train.engine.checkpoints import save
    from cskd_train.engine.config import config_from_data
    from cskd_train.mm.detector import build_student

    config = config or student_config(classes)
    torch.manual_seed(seed)
    model = build_student(config_from_data(config)).eval()
    head: Any = model.bbox_head
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # as after training: neither zero nor one
                module.weight.uniform_(0.5, 1.0)
                module.bias.uniform_(-0.1, 0.1)
        for convolution in (*head.cls_convs, *head.reg_convs):
            torch.nn.init.kaiming_normal_(convolution.conv.weight)
        logits, deltas = head(model.extract_feat(torch.randn(1, 3, *SIZE)))
        spread = torch.cat([level.flatten() for level in logits]).std()
        head.retina_cls.weight *= 1.5 / spread
        head.retina_cls.bias.fill_(-3)
        head.retina_reg.weight *= 0.3 / torch.cat([level.flatten() for level in deltas]).std()
    meta = {
        "format": "cskd",
        "version": 1,
        "config": config,
        "CLASSES": list(classes),
        "epoch": 1,
        "iter": 1,
        "metrics": {"bbox_mAP": 0.0},
        "seed": seed,
        "versions": {},
        "distilled": False,
    }
    save(path, {"state_dict": model.state_dict(), "meta": meta})
    return path


@pytest.fixture(scope="session")
def classes(shapes_root) -> tuple[str, ...]:
    data = json.loads((shapes_root / "annotations" / "val.json").read_text())
    return tuple(category["name"] for category in data["categories"])


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, classes) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("student") / "best.pth", classes)


@pytest.fixture(scope="session")
def model_file(tmp_path_factory, checkpoint) -> Path:
    """The checkpoint, exported at its own size."""
    from cskd_deploy.onnx_export import export

    return export(checkpoint, tmp_path_factory.mktemp("export") / "student.onnx").path


@pytest.fixture(scope="session")
def found_annotations(tmp_path_factory, shapes_root, checkpoint, classes) -> Path:
    """Annotations of the validation images that hold every third of mmdet's own detections, moved a little.

    An untrained student finds none of the drawn shapes; on its own boxes its mAP is far from 0 and from 1, so that a
    wrong box, score or label shows. Category ids have gaps and stand in reverse order.
    """
    import numpy as np

    from cskd_deploy.student import load_student

    student = load_student(checkpoint)
    data = json.loads((shapes_root / "annotations" / "val.json").read_text())
    ids = {name: 7 * (len(classes) - label) for label, name in enumerate(classes)}
    generator = np.random.default_rng(0)
    boxes = []
    for image in data["images"]:
        per_class = detect_with_mmdet(student, shapes_root / "images" / image["file_name"])
        for name, found in zip(classes, per_class, strict=True):
            for x1, y1, x2, y2, _ in found[::3]:
                x, y, w, h = (np.array([x1, y1, x2 - x1, y2 - y1]) + generator.normal(0, 1, 4)).tolist()
                if w > 2 and h > 2:
                    box = {"image_id": image["id"], "category_id": ids[name], "bbox": [x, y, w, h]}
                    boxes.append({**box, "id": len(boxes) + 1, "area": w * h, "iscrowd": 0})
    categories = [{"id": ids[name], "name": name} for name in reversed(classes)]
    path = tmp_path_factory.mktemp("found") / "found.json"
    path.write_text(json.dumps({"images": data["images"], "annotations": boxes, "categories": categories}))
    return path


def detect_with_mmdet(student: Any, path: Path, pipeline: Any = None) -> list[Any]:
    """mmdet's own test pipeline (or another) and `simple_test` on an image file: an (n, 5) array a class."""
    import torch

    tensor, meta = prepare_with_mmdet(pipeline or student.config["data"]["test"]["pipeline"], path)
    with torch.no_grad():
        found: list[Any] = student.model.simple_test(tensor, [meta], rescale=True)[0]
    return found


def prepare_with_mmdet(pipeline: Any, path: Path) -> tuple[Any, dict[str, Any]]:
    """What mmdet's pipeline makes of an image file: the batch of one, and its meta information."""
    from mmdet.datasets.pipelines import Compose

    batch = Compose(pipeline)({"img_prefix": None, "img_info": {"filename": str(path)}})
    return batch["img"][0][None], batch["img_metas"][0].data
