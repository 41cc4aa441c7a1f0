"""What a detector is called in tables and messages, whatever its backbone."""

from __future__ import annotations

import io

import pytest
from mmcv import Config
from rich.console import Console

from cskd_train.project import distill as module
from cskd_train.report.words import detector, short

from .test_distill import write_project


@pytest.mark.parametrize(
    ("backbone", "named"),
    [
        ({"type": "ResNet", "depth": 18}, "Faster R-CNN ResNet-18"),
        ({"type": "ResNeXt", "depth": 101}, "Faster R-CNN ResNeXt-101"),
        ({"type": "MobileNetV2", "out_indices": (2, 4, 6)}, "Faster R-CNN MobileNetV2"),
        ({"type": "HRNet", "extra": {}}, "Faster R-CNN HRNet"),
        (None, "Faster R-CNN"),
    ],
)
def test_a_detector_of_any_backbone_has_a_name(backbone, named):
    model = {"type": "FasterRCNN", **({} if backbone is None else {"backbone": backbone})}
    assert short(Config({"model": model})) == named
    assert named.split()[-1] in detector({"model": model})
    assert detector({}) == short({}) == ""


def test_a_student_without_a_depth_comes_to_its_training(shapes_root, tmp_path, monkeypatch):
    folder = write_project(tmp_path / "cells", shapes_root)
    narrow = "dict(_delete_=True, type='MobileNetV2', widen_factor=0.25, out_indices=(2, 4, 6, 7))"
    path = folder / "student.py"
    path.write_text(f"{path.read_text()}model = dict(backbone={narrow}, neck=dict(in_channels=[8, 24, 80, 320]))\n")
    console = Console(file=io.StringIO(), width=300)
    way = module._Way(folder, None, True, None, "cpu", console)
    best = way._best("student")

    def ran(*_):
        best.parent.mkdir(parents=True)
        best.touch()
        return "ran"

    monkeypatch.setattr(module, "run", ran)
    monkeypatch.setattr(way, "_plan_again", lambda: None)
    assert way._train("student") == "ran"
    assert "student alone, RetinaNet MobileNetV2" in console.file.getvalue()
