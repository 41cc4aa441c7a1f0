"""The default export lays every image out as mmdet does; a fixed size or a pair is a choice, and its cost is said."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from cskd_data.images import read_image
from cskd_deploy.accuracy.agreement import match
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.detect.detector import Detector
from cskd_deploy.exporter.onnx import export, geometry_cost
from cskd_deploy.exporter.student import load_student
from cskd_deploy.model.manifest import GraphForm

from .conftest import Exported, detect_with_mmdet
from .engines import MANIFEST
from .students import GRAPHS, student_config, write_checkpoint
from .test_export import assert_same, flat, triple

# (width, height) of 256 photographs drawn from COCO's, each distinct size once.
with (Path(__file__).with_name("coco_sizes.csv")).open() as table:
    COCO_SIZES = [(int(row["height"]), int(row["width"])) for row in csv.DictReader(table)]


@pytest.fixture(scope="module")
def lying(tmp_path_factory, classes) -> Callable[[str], Exported]:
    """A student of a family whose test scale is 160 x 120, exported as it is by default."""

    @functools.cache
    def make(family: str) -> Exported:
        folder = tmp_path_factory.mktemp(family)
        config = student_config(classes, scale=(160, 120), family=family)
        path = write_checkpoint(folder / "student.pth", classes, config, seed=3)
        return Exported(path, export(path, folder / "student.onnx").path)

    return make


def photograph(size: tuple[int, int], path: Path, seed: int) -> Path:
    small = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("family", GRAPHS)
def test_detections_on_every_size_of_coco_are_those_of_simple_test(family, lying, tmp_path):
    student = load_student(lying(family).checkpoint)
    upright = 0
    with OnnxRuntimeBackend(lying(family).model) as backend:
        detector = Detector(backend)
        for seed, size in enumerate(COCO_SIZES):
            path = photograph(size, tmp_path / "image.png", seed)
            expected = flat(detect_with_mmdet(student, path))
            assert len(expected[1]) > 10
            assert_same(expected, triple(detector.detect(read_image(path))))
            upright += size[0] > size[1]
    assert len(COCO_SIZES) == 91
    assert upright > 20


def test_a_pair_of_orientations_keeps_the_scale_of_both(lying, tmp_path):
    """The images of both shapes of the pair are those of the exact file; another shape is padded."""
    checkpoint, exact = lying("RetinaNet")
    pair = export(checkpoint, tmp_path / "pair.onnx", input_sizes=[(128, 160), (160, 128)]).path
    shapes = {}
    with OnnxRuntimeBackend(exact) as one, OnnxRuntimeBackend(pair) as two:
        detectors = Detector(one), Detector(two)
        for size in ((120, 160), (480, 640), (160, 120), (400, 300), (200, 300)):
            image = read_image(photograph(size, tmp_path / "image.png", 5))
            first, second = (detector.detect(image) for detector in detectors)
            shapes[size] = tuple(detector.prepare(image).tensor.shape[1:3] for detector in detectors)
            if shapes[size][0] == shapes[size][1]:
                assert match(triple(first), triple(second)).share == 1
    assert shapes == {
        (120, 160): ((128, 160), (128, 160)),
        (480, 640): ((128, 160), (128, 160)),
        (160, 120): ((160, 128), (160, 128)),
        (400, 300): ((160, 128), (160, 128)),
        (200, 300): ((128, 160), (128, 160)),
    }


def test_export_says_what_a_fixed_size_and_a_pair_cost_in_geometry(deploy, lying, tmp_path):
    checkpoint = lying("RetinaNet").checkpoint
    arguments = ("export", "--checkpoint", checkpoint, "--output", tmp_path / "student.onnx")
    default = deploy(*arguments)
    assert default.code == 0
    assert "input 1 x H x W x 3 uint8" in default.out
    assert "geometry" not in default.out
    fixed = deploy(*arguments, "--input-size", 128, 160)
    assert "a photograph of 640 x 480 is as in mmdet" in fixed.out
    assert "a photograph of 480 x 640 is shrunk to 80 % of mmdet's 120 x 160" in fixed.out
    assert "leave --input-size out" in fixed.out
    square = deploy(*arguments, "--input-size", 160, 160)
    assert "a photograph of 640 x 480 gets 32 rows and 0 columns more padding than in mmdet" in square.out
    pair = deploy(*arguments, "--input-size", 128, 160, "--input-size", 160, 128)
    assert "input 1 x 128 x 160 or 160 x 128 x 3 uint8" in pair.out
    assert pair.out.count("is as in mmdet") == 2
    assert "leave --input-size out" not in pair.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--input-size", 128, 160, "--input-size", 128, 160), "once, or twice with two sizes"),
        (("--input-size", 96, 96, "--input-size", 128, 160, "--input-size", 160, 128), "once, or twice with two sizes"),
        (("--input-size", 128, 160, "--input-size", 160, 100), "for example 160 128"),
    ],
)
def test_sizes_and_batches_that_cannot_be_are_refused(deploy, lying, tmp_path, options, message):
    target = tmp_path / "student.onnx"
    done = deploy("export", "--checkpoint", lying("RetinaNet").checkpoint, "--output", target, *options)
    assert done.code == 2
    assert message in done.err
    assert not target.exists()


@pytest.mark.parametrize(
    ("size", "cost"),
    [
        ((128, 256), None),
        ((64, 64), "is stretched to 64 x 64, 12.5 % of the pixels of mmdet's 256 x 128, and in another ratio"),
        ((64, 128), "is stretched to 128 x 64, 25 % of the pixels of mmdet's 256 x 128"),
        ((128, 224), "is stretched to 224 x 128, 87.5 % of the pixels of mmdet's 256 x 128, and in another ratio"),
        ((160, 64), "is stretched to 64 x 128, 25 % of the pixels of mmdet's 256 x 128, and in another ratio"),
        ((192, 256), "gets 64 rows and 0 columns more padding than in mmdet"),
    ],
)
def test_what_a_fixed_size_costs_where_images_are_stretched_is_one_line_for_all(size, cost):
    rule = dataclasses.replace(MANIFEST.preprocessing, keep_ratio=False, scale=(256, 128), input_size=size)
    lines = geometry_cost(dataclasses.replace(MANIFEST, preprocessing=rule))
    if cost is None:
        assert lines == []
        return
    assert lines[0] == f"geometry: every image {cost}"
    assert [line.partition(" for a graph")[0] for line in lines[1:]] == ["geometry: leave --input-size out"]


@pytest.mark.parametrize("sizes", [(), ((128, 160),)])
def test_any_batch_gives_what_single_images_give(lying, tmp_path, sizes):
    checkpoint, _ = lying("GFL")
    model = export(checkpoint, tmp_path / "any.onnx", input_sizes=sizes, form=GraphForm("uint8", batch=None)).path
    with OnnxRuntimeBackend(model) as backend:
        assert backend.batch_size is None
        detector = Detector(backend)
        prepared = [
            detector.prepare(read_image(photograph((240, 320), tmp_path / "image.png", seed))) for seed in range(3)
        ]
        together = detector.infer(*prepared)
        for place, one in enumerate(prepared):
            single = detector.select(detector.infer(one), one)
            assert match(triple(single), triple(detector.select(together, one, place))).share == 1


def test_a_file_says_which_batch_and_which_canvases_it_takes(lying, tmp_path):
    checkpoint, model = lying("FCOS")
    pair = export(
        checkpoint, tmp_path / "pair.onnx", input_sizes=[(128, 160), (160, 128)], form=GraphForm("float", batch=None)
    )
    with OnnxRuntimeBackend(pair.path) as backend:
        assert backend.manifest == pair.manifest
        assert backend.manifest.preprocessing.canvases == ((128, 160), (160, 128))
        assert backend.manifest.graph == GraphForm("float", dynamic=True, batch=None)
    with OnnxRuntimeBackend(model) as backend:
        assert backend.manifest.preprocessing.canvases == ()
        assert json.loads(json.dumps(backend.manifest.to_dict()))["graph"]["batch"] == 1
