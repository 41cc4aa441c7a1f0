"""Several images at a time: each gets what it would get alone, in every form that takes batches."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.backends.torch import mmdet_candidates
from cskd_deploy.detect.detector import Detector
from cskd_deploy.detect.preprocess import prepare
from cskd_deploy.errors import CheckFailed, DeployError
from cskd_deploy.exporter import onnx as onnx_export
from cskd_deploy.exporter.graph import whole
from cskd_deploy.exporter.student import load_student
from cskd_deploy.model.manifest import GraphForm

from .conftest import detect_with_mmdet
from .students import FAMILIES, student_config, write_checkpoint
from .test_bench import MANIFEST, Counting
from .test_export import assert_same, flat, triple

CLASSES = ("a", "b", "c")
ANY_INSIDE = GraphForm("uint8", nms="graph", batch=None)
ANY_OUTSIDE = GraphForm("uint8", batch=None)
FULL = 100  # detections of an image, at most


def smooth(size: tuple[int, int], seed: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC)


# Upright, empty and lying: all on a canvas of 128 x 128.
PICTURES = [smooth((120, 100), 1), np.full((90, 90, 3), 123, dtype=np.uint8), smooth((100, 120), 7)]


@pytest.fixture(scope="module")
def checkpoint_of(tmp_path_factory) -> Callable[[str], Path]:
    """A student of a family whose score threshold lies above all that it finds in the empty picture."""

    @functools.cache
    def make(family: str) -> Path:
        config = student_config(CLASSES, family=family, candidates=100)
        path = write_checkpoint(tmp_path_factory.mktemp(family) / "student.pth", CLASSES, config)
        student = load_student(path)
        empty = prepare(PICTURES[1], student.manifest().preprocessing)
        size = np.array([empty.resized_size], dtype=np.float32)
        best = float(mmdet_candidates(student.model, empty.tensor, size, with_factors=False)["scores"].max())
        test: dict[str, Any] = config["model"]["test_cfg"]
        test.get("rcnn", test)["score_thr"] = best + 0.01
        return write_checkpoint(path, CLASSES, config)

    return make


@pytest.fixture(scope="module")
def formed(checkpoint_of, tmp_path_factory) -> Callable[[str, GraphForm], Path]:
    """The file of a family in a form."""

    @functools.cache
    def make(family: str, form: GraphForm) -> Path:
        path = tmp_path_factory.mktemp("formed") / "student.onnx"
        return onnx_export.export(checkpoint_of(family), path, form=form).path

    return make


@pytest.fixture(scope="module")
def pair_file(checkpoint_of, tmp_path_factory) -> Path:
    """A file that takes two images of a fixed size."""
    path = tmp_path_factory.mktemp("pair") / "pair.onnx"
    form = GraphForm("float", nms="graph", batch=2)
    return onnx_export.export(checkpoint_of("RetinaNet"), path, input_sizes=[(128, 128)], form=form).path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Five pictures, two of them on another canvas, with annotations."""
    folder = tmp_path_factory.mktemp("pictures")
    pictures = [PICTURES[0], smooth((60, 170), 3), PICTURES[1], smooth((60, 170), 4), PICTURES[2]]
    images, boxes = [], []
    for number, picture in enumerate(pictures):
        cv2.imwrite(str(folder / f"{number}.png"), picture)
        height, width = picture.shape[:2]
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        box = {"id": number, "image_id": number, "category_id": 1, "bbox": [5, 5, 30, 40], "area": 1200, "iscrowd": 0}
        boxes.append(box)
    categories = [{"id": place, "name": name} for place, name in enumerate(CLASSES)]
    (folder / "found.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_with_nms_in_the_graph_each_image_of_a_batch_gets_what_simple_test_finds(
    family, formed, checkpoint_of, tmp_path
):
    student = load_student(checkpoint_of(family))
    expected = []
    for number, picture in enumerate(PICTURES):
        cv2.imwrite(str(tmp_path / f"{number}.png"), picture)
        expected.append(flat(detect_with_mmdet(student, tmp_path / f"{number}.png")))
    assert len(expected[1][1]) == 0 < min(len(expected[0][1]), len(expected[2][1]))
    with OnnxRuntimeBackend(formed(family, ANY_INSIDE)) as backend:
        assert backend.batch_size is None
        detector = Detector(backend)
        outputs = detector.infer(*map(detector.prepare, PICTURES))
        assert {name: values.shape for name, values in outputs.items()} == {
            "boxes": (3, FULL, 4),
            "scores": (3, FULL),
            "labels": (3, FULL),
        }
        for order in ([0, 1, 2], [2, 0, 1], [1], [2, 2, 1, 0]):
            found = detector.detect_batch([PICTURES[place] for place in order])
            for place, one in zip(order, found, strict=True):
                assert_same(expected[place], triple(one))


def test_faster_rcnn_with_nms_outside_takes_batches_too(formed):
    with (
        OnnxRuntimeBackend(formed("FasterRCNN", ANY_OUTSIDE)) as outside,
        OnnxRuntimeBackend(formed("FasterRCNN", ANY_INSIDE)) as inside,
    ):
        expected = [triple(Detector(inside).detect(picture)) for picture in PICTURES]
        found = Detector(outside).detect_batch(PICTURES)
        assert [len(one) for one in found] == [len(one[1]) for one in expected]
        for one, other in zip(expected, found, strict=True):
            assert_same(one, triple(other))


def test_a_fixed_batch_is_filled_up_and_gives_what_any_other_file_gives(pair_file, formed):
    with (
        OnnxRuntimeBackend(pair_file) as pair,
        OnnxRuntimeBackend(formed("RetinaNet", ANY_INSIDE)) as other,
    ):
        assert pair.batch_size == pair.manifest.graph.batch == 2
        assert pair.session.get_inputs()[0].shape == [2, 3, 128, 128]
        detector = Detector(pair)
        expected = [triple(Detector(other).detect(picture)) for picture in PICTURES]
        for place, picture in enumerate(PICTURES):
            assert_same(expected[place], triple(detector.detect(picture)))
        both = detector.detect_batch(PICTURES[1:])
        for one, found in zip(expected[1:], both, strict=True):
            assert_same(one, triple(found))
        with pytest.raises(DeployError, match=r"pair.onnx takes 2 images at a time, given 3"):
            detector.detect_batch(PICTURES)


def test_of_no_images_there_are_no_detections_and_no_inference(monkeypatch):
    backend = Counting("any.onnx", [])
    monkeypatch.setattr(backend, "infer", lambda feed: pytest.fail("inferred"))
    detector = Detector(backend)
    assert detector.detect_batch([]) == []
    with pytest.raises(DeployError, match="there is no image to infer from: give one at least"):
        detector.feed()
    detector.close()
    with pytest.raises(DeployError, match="has been closed"):
        detector.detect_batch([])


def test_batches_are_images_in_a_row_with_one_canvas():
    backend = Counting("any.onnx", [])
    detector = Detector(backend)
    sizes = [(32, 32), (30, 32), (32, 32), (200, 20), (32, 32), (32, 30)]
    assert list(detector.batches(sizes, lambda size: size, 2)) == [
        [(32, 32), (30, 32)],
        [(32, 32), (200, 20)],
        [(32, 32), (32, 30)],
    ]  # a graph of a fixed size has one canvas
    backend.manifest = detector.manifest = _dynamic()
    assert list(detector.batches(sizes, lambda size: size, 2)) == [
        [(32, 32), (30, 32)],
        [(32, 32)],
        [(200, 20)],
        [(32, 32), (32, 30)],
    ]
    assert list(detector.batches([], lambda size: size, 2)) == []
    assert [detector.batch(), detector.batch(3)] == [1, 3]
    backend.batch_size = 4
    assert [detector.batch(), detector.batch(4)] == [4, 4]
    with pytest.raises(DeployError, match="takes batches of 4 only, asked for 3"):
        detector.batch(3)


def _dynamic() -> Any:
    import dataclasses

    rule = dataclasses.replace(MANIFEST.preprocessing, scale=(64, 64), pad_divisor=32)
    return dataclasses.replace(MANIFEST, preprocessing=rule, graph=GraphForm(dynamic=True))


def test_eval_in_batches_gives_the_rows_of_single_images_in_their_order(deploy, formed, pair_file, folder, tmp_path):
    def rows(model: Path, *options: object) -> list[dict[str, Any]]:
        file = tmp_path / "rows.json"
        done = deploy("eval", model, "--ann", folder / "found.json", "--detections", file, "--json", *options)
        assert done.code == 0, done.err
        batches.append(json.loads(done.out)["batch"])
        found: list[dict[str, Any]] = json.loads(file.read_text())
        return found

    batches: list[int] = []
    model = formed("RetinaNet", ANY_INSIDE)
    single = rows(model)
    assert [row["image_id"] for row in single] == sorted(row["image_id"] for row in single)
    assert len({row["image_id"] for row in single}) == 4  # of five: one is empty
    for found in (rows(model, "--batch", 2), rows(model, "--batch", 7)):
        _assert_same_rows(single, found)
    squeezed = [rows(pair_file, *options) for options in ((), ("--batch", 2))]
    _assert_same_rows(*squeezed)
    assert batches == [1, 2, 7, 2, 2]
    refused = deploy("eval", pair_file, "--ann", folder / "found.json", "--batch", 3)
    assert refused.code == 2
    assert "pair.onnx takes batches of 2 only, asked for 3" in refused.err
    predicted = deploy("eval", "--predictions", tmp_path / "rows.json", "--ann", folder / "found.json", "--batch", 2)
    assert predicted.code == 2
    assert "leave --detections, --limit and --batch out" in predicted.err


def _assert_same_rows(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    assert len(first) == len(second) > 10
    for one, other in zip(first, second, strict=True):
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-2)


def test_infer_in_batches_finds_the_same_and_keeps_the_order(deploy, formed, folder, tmp_path):
    model = formed("RetinaNet", ANY_INSIDE)
    (folder / "broken.png").write_bytes(b"")
    try:
        single, batched = (
            json.loads(deploy("infer", model, folder, "--json", "-", *options).out) for options in ((), ("--batch", 3))
        )
    finally:
        (folder / "broken.png").unlink()
    assert [one["image"] for one in single["images"]] == [one["image"] for one in batched["images"]]
    assert len(single["images"]) == 5
    assert single["skipped"] == batched["skipped"] != []
    assert sum(len(one["detections"]) for one in single["images"]) > 0
    for one, other in zip(single["images"], batched["images"], strict=True):
        assert (one["height"], one["width"]) == (other["height"], other["width"])
        assert [found["class"] for found in one["detections"]] == [found["class"] for found in other["detections"]]


def test_files_of_lower_precision_take_batches(deploy, formed, folder, tmp_path):
    model = formed("RetinaNet", ANY_INSIDE)
    for options in (("fp16",), ("int8", "--calibration-images", folder)):
        target = tmp_path / f"{options[0]}.onnx"
        done = deploy("export", "--onnx", model, "--precision", *options, "--output", target)
        assert done.code == 0, done.err
        with OnnxRuntimeBackend(target) as backend:
            detector = Detector(backend)
            assert detector.manifest.graph == backend.manifest.graph
            assert backend.batch_size is None
            for picture, found in zip(PICTURES, detector.detect_batch(PICTURES), strict=True):
                alone = detector.detect(picture)
                assert len(found) == len(alone)
                np.testing.assert_allclose(found.scores, alone.scores, atol=2e-3)


def test_a_file_that_mixes_up_the_images_of_a_batch_is_not_written(checkpoint_of, tmp_path, monkeypatch):
    real = whole.Suppress.forward

    def rolled(self, *candidates):
        return tuple(values.roll(1, 0) for values in real(self, *candidates))

    monkeypatch.setattr(whole.Suppress, "forward", rolled)
    with pytest.raises(CheckFailed, match="NMS in the graph does not give what NMS outside gives"):
        onnx_export.export(checkpoint_of("RetinaNet"), tmp_path / "student.onnx", form=ANY_INSIDE)
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_fixed_batch_and_refuses_what_is_none(deploy, checkpoint_of, tmp_path):
    target = tmp_path / "student.onnx"
    arguments = ("export", "--checkpoint", checkpoint_of("GFL"), "--output", target, "--batch")
    for wrong in ("0", "-1", "all", "1.5"):
        done = deploy(*arguments, wrong)
        assert done.code == 2
        assert f"'{wrong}' is no batch size, expected a number from 1 on, or any" in done.err
    assert not target.exists()
    done = deploy(*arguments, 2)
    assert done.code == 0, done.err
    assert "input 2 x H x W x 3 uint8" in done.out
    with OnnxRuntimeBackend(target) as backend:
        assert backend.session.get_inputs()[0].shape == [2, "height", "width", 3]
        found = Detector(backend).detect_batch([PICTURES[2], PICTURES[0]])
        assert_same(triple(Detector(backend).detect(PICTURES[0])), triple(found[1]))
