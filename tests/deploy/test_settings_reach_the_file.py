"""No setting of the config is lost on the way into the file: thresholds, counts and the pipeline, all of them unusual.

The test scale is wider than high, and of the images two are higher than wide.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cskd_data.images import read_image
from cskd_deploy.accuracy.agreement import match
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.backends.torch import TorchBackend
from cskd_deploy.detect.detector import Detector
from cskd_deploy.exporter import onnx as onnx_export
from cskd_deploy.exporter.student import Student, load_student
from cskd_deploy.model.manifest import GraphForm

from .conftest import detect_with_mmdet
from .students import FAMILIES, write_checkpoint
from .test_export import assert_same, flat, triple
from .unusual import SCORES, SEEDS, config_with, settings_of

CLASSES = ("a", "b", "c")
# (height, width) and, with a scale of (160, 120) and a divisor of 64, the canvas that mmdet pads it to.
SIZES = {(170, 100): (192, 128), (90, 150): (128, 192), (300, 110): (192, 64)}
NMS_INSIDE = GraphForm("uint8", nms="graph")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for seed, size in enumerate(SIZES):
        small = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{seed}.png"), cv2.resize(small, size[::-1]))
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def unusual(tmp_path_factory) -> Any:
    """The checkpoint of a family with its settings: `unusual("GFL")`."""

    @functools.cache
    def make(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        config = config_with(family, CLASSES, settings_of(family))
        return write_checkpoint(folder / "student.pth", CLASSES, config, seed=SEEDS[family])

    return make


@pytest.fixture(scope="module")
def simple_test(unusual, pictures) -> Any:
    """What mmdet detects in each picture with a family's weights and its settings, or all but one of them."""
    from cskd_train.files.config import config_from_data
    from cskd_train.mm.detector import build_student

    @functools.cache
    def detect(family: str, left_out: str = "") -> list[Any]:
        settings = {path: value for path, value in settings_of(family).items() if path != left_out}
        config = config_with(family, CLASSES, settings)
        model = build_student(config_from_data(config)).eval()
        model.load_state_dict(load_student(unusual(family)).model.state_dict())
        student = Student(model, config, CLASSES, "", unusual(family))
        return [flat(detect_with_mmdet(student, path)) for path in pictures]

    return detect


def write_config(path: Path, config: dict[str, Any]) -> Path:
    path.write_text("".join(f"{key} = {value!r}\n" for key, value in config.items()))
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_without_any_one_of_the_settings_simple_test_finds_something_else(family, simple_test):
    """Otherwise the next tests would not notice that it is lost."""
    with_all = simple_test(family)
    idle = [
        path
        for path in settings_of(family)
        if all(match(*pair).share == 1 for pair in zip(with_all, simple_test(family, path), strict=True))
    ]
    assert idle == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dynamic_file_with_nms_finds_what_simple_test_finds_with_the_settings_of_the_config(
    family, unusual, simple_test, pictures, tmp_path
):
    file = onnx_export.export(unusual(family), tmp_path / "student.onnx", form=NMS_INSIDE).path
    with OnnxRuntimeBackend(file) as backend:
        detector = Detector(backend)
        for path, expected, canvas in zip(pictures, simple_test(family), SIZES.values(), strict=True):
            image = read_image(path)
            assert detector.prepare(image).tensor.shape == (1, *canvas, 3)
            assert len(expected[1]) > 3
            assert_same(expected, triple(detector.detect(image)))


@pytest.mark.parametrize("family", FAMILIES)
def test_pytorch_finds_what_simple_test_finds_with_the_settings_of_the_config(family, unusual, simple_test, pictures):
    with TorchBackend(unusual(family), threads=1) as backend:
        detector = Detector(backend)
        for path, expected in zip(pictures, simple_test(family), strict=True):
            assert_same(expected, triple(detector.detect(read_image(path))))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_file_in_place_of_the_stored_one_brings_its_own_settings(
    family, unusual, simple_test, pictures, tmp_path
):
    import torch

    stored = torch.load(unusual(family), weights_only=True)
    stored["meta"]["config"] = config_with(family, CLASSES, {})
    torch.save(stored, tmp_path / "student.pth")
    config = write_config(tmp_path / "unusual.py", config_with(family, CLASSES, settings_of(family)))
    manifests = [
        load_student(tmp_path / "student.pth").manifest(),
        load_student(tmp_path / "student.pth", config).manifest(),
        load_student(unusual(family)).manifest(),
    ]
    usual, given, expected = (dataclasses.replace(one, sha256="") for one in manifests)
    assert given == expected
    for rule in ("preprocessing", "postprocessing"):
        usual_rule, given_rule = (dataclasses.asdict(getattr(one, rule)) for one in (usual, given))
        same = {name for name in usual_rule if usual_rule[name] == given_rule[name]}
        assert same == {"preprocessing": {"keep_ratio", "canvases"}, "postprocessing": {"threshold_on"}}[rule]
    assert given.postprocessing.score_threshold == SCORES[family]
    with TorchBackend(tmp_path / "student.pth", config, threads=1) as backend:
        assert_same(simple_test(family)[0], triple(Detector(backend).detect(read_image(pictures[0]))))


def test_export_takes_the_settings_of_the_config_file_that_it_is_given(deploy, unusual, pictures, tmp_path):
    settings = {**settings_of("FCOS"), "model.test_cfg.max_per_img": 11, "model.test_cfg.nms_pre": 9}
    config = write_config(tmp_path / "other.py", config_with("FCOS", CLASSES, settings))
    file = tmp_path / "student.onnx"
    options = ("--checkpoint", unusual("FCOS"), "--config", config, "--input", "float", "--output", file)
    assert deploy("export", *options).code == 0
    student = load_student(unusual("FCOS"), config)
    with OnnxRuntimeBackend(file) as backend:
        detector = Detector(backend)
        for path, canvas in zip(pictures, SIZES.values(), strict=True):
            expected = flat(detect_with_mmdet(student, path))
            assert len(expected[1]) == 11
            assert detector.prepare(read_image(path)).tensor.shape == (1, 3, *canvas)
            assert_same(expected, triple(detector.detect(read_image(path))))
