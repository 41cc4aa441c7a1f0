"""Tiny students, their checkpoints, their ONNX files, and annotations on which their mAP is well above zero."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import cskd_train.mm  # noqa: F401  (mends mmcv before any test imports it)
from cskd_deploy import cli

from .students import student_config, write_checkpoint

ABSENT = ["torch", "mmcv", "mmdet", "onnx", "onnxslim", "cskd_core", "cskd_train"]


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


class Exported(NamedTuple):
    """A student's checkpoint and its ONNX file."""

    checkpoint: Path
    model: Path


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


@pytest.fixture(scope="session")
def classes(shapes_root) -> tuple[str, ...]:
    data = json.loads((shapes_root / "annotations" / "val.json").read_text())
    return tuple(category["name"] for category in data["categories"])


@pytest.fixture(scope="session")
def exported(tmp_path_factory, classes) -> Callable[..., Exported]:
    """A student of a family, exported at its own size, made when it is first asked for: `exported("FCOS").model`.

    What is given by name is that of `model_config`.
    """
    from cskd_deploy.exporter.onnx import export

    @functools.cache
    def make(family: str, **sizes: int) -> Exported:
        folder = tmp_path_factory.mktemp(family)
        path = write_checkpoint(folder / "best.pth", classes, student_config(classes, family=family, **sizes))
        return Exported(path, export(path, folder / "student.onnx").path)

    return make


@pytest.fixture(scope="session")
def checkpoint(exported) -> Path:
    return exported("RetinaNet").checkpoint


@pytest.fixture(scope="session")
def lying_checkpoint(tmp_path_factory, classes) -> Path:
    """A student whose test scale is wider than high."""
    folder = tmp_path_factory.mktemp("lying")
    return write_checkpoint(folder / "student.pth", classes, student_config(classes, scale=(160, 120)), seed=1)


@pytest.fixture(scope="session")
def model_file(exported) -> Path:
    return exported("RetinaNet").model


@pytest.fixture(scope="session")
def annotated(tmp_path_factory, shapes_root, exported, classes) -> Callable[[str], Path]:
    """Annotations of the validation images that hold every third of mmdet's own detections, moved a little.

    An untrained student finds none of the drawn shapes; on its own boxes its mAP is far from 0 and from 1, so that a
    wrong box, score or label shows. Category ids have gaps and stand in reverse order.
    """
    import numpy as np

    from cskd_deploy.exporter.student import load_student

    @functools.cache
    def make(family: str) -> Path:
        student = load_student(exported(family).checkpoint)
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

    return make


@pytest.fixture(scope="session")
def found_annotations(annotated) -> Path:
    return annotated("RetinaNet")


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
