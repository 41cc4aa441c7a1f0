"""The COCO recipes' students, exported as they are by default, on every size of photographs that COCO has.

At the full test scale of 1333 x 800 and with 80 classes; the weights are untrained and spread so that they find plenty.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from cskd_data.images import read_image
from cskd_deploy.accuracy.agreement import match
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.detect.detector import Detector
from cskd_deploy.exporter.onnx import export
from cskd_deploy.exporter.student import load_student
from cskd_train.files.config import config_to_data, load_config

from ..deploy.conftest import detect_with_mmdet
from ..deploy.students import write_checkpoint
from ..deploy.test_export import flat, triple
from ..deploy.test_geometry import COCO_SIZES, photograph

RECIPES = Path(__file__).parents[2] / "configs" / "student"


@pytest.mark.reliability
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", ["retinanet", "fcos", "gfl", "faster_rcnn"])
def test_a_coco_recipe_finds_what_simple_test_finds_on_every_size_of_coco(family, tmp_path):
    config = config_to_data(load_config(RECIPES / f"{family}_r18_fpn_ms_1x_coco.py"))
    config["model"]["backbone"]["init_cfg"] = None
    classes = importlib.import_module("mmdet.core.evaluation.class_names").coco_classes()
    checkpoint = write_checkpoint(tmp_path / "student.pth", tuple(classes), config)
    student = load_student(checkpoint)
    unequal, detections = [], 0
    with OnnxRuntimeBackend(export(checkpoint, tmp_path / "student.onnx").path) as backend:
        detector = Detector(backend)
        for seed, size in enumerate(COCO_SIZES):
            path = photograph(size, tmp_path / "image.png", seed)
            agreement = match(flat(detect_with_mmdet(student, path)), triple(detector.detect(read_image(path))))
            detections += agreement.reference
            if agreement.share < 1:
                unequal.append((size, agreement))
    print(f"{family}: {detections} detections on {len(COCO_SIZES)} sizes, unequal on {len(unequal)}: {unequal}")
    assert detections > 10 * len(COCO_SIZES)
    assert not unequal
