"""Every form of a graph finds the same: raw pixels or normalised, fixed or dynamic, NMS outside or inside."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from cskd_data.images import read_image
from cskd_deploy.accuracy.agreement import match
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.backends.torch import TorchBackend
from cskd_deploy.detect.detector import Detector
from cskd_deploy.detect.postprocess import select_detections
from cskd_deploy.detect.preprocess import PreparedImage, normalised, padded_pixels
from cskd_deploy.errors import CheckFailed, DeployError
from cskd_deploy.exporter import onnx as onnx_export
from cskd_deploy.exporter.graph.whole import Normalise, Suppress
from cskd_deploy.exporter.mmdet_config import preprocessing_of
from cskd_deploy.exporter.student import load_student
from cskd_deploy.model.manifest import GraphForm

from .conftest import detect_with_mmdet
from .students import GRAPHS, student_config
from .test_export import assert_same, flat, triple
from .test_postprocess import RULE, crowd

FLOAT = GraphForm("float")
ANY_BATCH = GraphForm("float", batch=None)
NMS_INSIDE = GraphForm("uint8", nms="graph")
SIZES = [(60, 170), (400, 250)]  # on canvases of 64 x 128 and 128 x 96


@pytest.fixture(scope="module")
def formed(exported, tmp_path_factory) -> Callable[[str, GraphForm], Path]:
    """The file of a family in a form."""

    @functools.cache
    def make(family: str, form: GraphForm) -> Path:
        path = tmp_path_factory.mktemp("formed") / "student.onnx"
        return onnx_export.export(exported(family).checkpoint, path, form=form).path

    return make


def smooth(size: tuple[int, int], seed: int = 2) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("to_rgb", [True, False])
def test_normalisation_in_the_graph_is_the_pipelines_and_masks_what_lies_outside_the_image(to_rgb):
    config = student_config(("a",))
    config["data"]["test"]["pipeline"][1]["transforms"][2]["to_rgb"] = to_rgb
    rule = dataclasses.replace(preprocessing_of(config), pad_value=-0.5)
    pictures = [np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8) for seed, size in SMALL]
    canvas = (64, 96)
    raw = np.concatenate([padded_pixels(picture, canvas) for picture in pictures])
    for place, picture in enumerate(pictures):  # whatever the padding holds
        raw[place, picture.shape[0] :], raw[place, :, picture.shape[1] :] = 77, 255
    shapes = torch.tensor([picture.shape[:2] for picture in pictures]).float()
    found = Normalise(rule)(torch.from_numpy(raw), shapes).numpy()
    expected = np.concatenate([normalised(picture, canvas, rule) for picture in pictures])
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-7)
    assert (found[0, :, 40:] == -0.5).all()
    assert (found[0, :, :, 90:] == -0.5).all()


SMALL = [(0, (40, 90)), (1, (64, 50))]


@pytest.mark.parametrize("family", GRAPHS)
def test_raw_pixels_and_a_normalised_image_give_the_same_detections(family, exported, formed, shapes_root):
    image = read_image(next((shapes_root / "images").iterdir()))
    with OnnxRuntimeBackend(exported(family).model) as raw, OnnxRuntimeBackend(formed(family, FLOAT)) as plain:
        assert dataclasses.replace(raw.manifest.graph, proposals=None) == GraphForm("uint8", dynamic=True)
        assert Detector(raw).prepare(image).tensor.dtype == np.uint8
        assert Detector(plain).prepare(image).tensor.dtype == np.float32
        ours, theirs = (triple(Detector(backend).detect(image)) for backend in (raw, plain))
    agreement = match(ours, theirs, score=1e-4)
    assert agreement.reference > 20
    assert agreement.share == 1
    assert agreement.largest_corner_difference < 1e-3


@pytest.mark.parametrize("form", [FLOAT, NMS_INSIDE], ids=["nms outside", "nms in the graph"])
@pytest.mark.parametrize("family", GRAPHS)
def test_a_dynamic_file_finds_what_simple_test_finds_with_its_own_padding(family, form, exported, formed, tmp_path):
    student = load_student(exported(family).checkpoint)
    with OnnxRuntimeBackend(formed(family, form)) as backend:
        detector = Detector(backend)
        for size, canvas in zip(SIZES, [(64, 128), (128, 96)], strict=True):
            path = tmp_path / "image.png"
            cv2.imwrite(str(path), smooth(size))
            image = read_image(path)
            axis = 1 if form.input == "uint8" else 2
            assert detector.prepare(image).tensor.shape[axis : axis + 2] == canvas
            expected = flat(detect_with_mmdet(student, path))
            assert len(expected[1]) > 10
            assert_same(expected, triple(detector.detect(image)))


@pytest.mark.parametrize("family", GRAPHS)
def test_nms_in_the_graph_gives_a_fixed_number_of_detections(family, formed, exported, shapes_root):
    image = read_image(next((shapes_root / "images").iterdir()))
    with (
        OnnxRuntimeBackend(formed(family, NMS_INSIDE)) as inside,
        OnnxRuntimeBackend(exported(family).model) as outside,
    ):
        detector = Detector(inside)
        outputs = detector.infer(detector.prepare(image))
        assert {name: values.shape for name, values in outputs.items()} == {
            "boxes": (1, 100, 4),
            "scores": (1, 100),
            "labels": (1, 100),
        }
        declared = onnx.load(inside.path).graph.output
        assert {value.name: tuple(one.dim_value for one in value.type.tensor_type.shape.dim) for value in declared} == {
            name: values.shape for name, values in outputs.items()
        }
        assert (np.diff(outputs["scores"][0]) <= 0).all()
        assert_same(triple(Detector(outside).detect(image)), triple(detector.detect(image)))


@pytest.mark.parametrize("family", [family for family in GRAPHS if family != "FasterRCNN"])
def test_a_batch_gives_what_its_images_give_alone(family, formed):
    with OnnxRuntimeBackend(formed(family, ANY_BATCH)) as backend:
        assert backend.batch_size is None
        detector = Detector(backend)
        images = [smooth((100, 80), 1), smooth((200, 170), 7)]
        prepared = [detector.prepare(image) for image in images]
        outputs = detector.infer(*prepared)
        assert outputs["boxes"].shape[0] == 2
        for place, image in enumerate(images):
            found = triple(detector.select(outputs, prepared[place], place))
            assert len(found[1]) > 10
            assert_same(triple(detector.detect(image)), found)
        with pytest.raises(DeployError, match="32 x 128, 128 x 128"):
            detector.feed(detector.prepare(smooth((20, 100))), prepared[0])


def test_one_image_at_a_time_unless_more_are_asked_for(formed):
    for family, form in (("FasterRCNN", FLOAT), ("RetinaNet", NMS_INSIDE)):
        with OnnxRuntimeBackend(formed(family, form)) as backend:
            assert backend.manifest.graph.batch == backend.batch_size == 1
            assert backend.session.get_inputs()[0].shape[0] == 1


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("clip", [False, True])
def test_suppression_in_the_graph_is_that_outside(agnostic, clip):
    rule = dataclasses.replace(RULE, nms_class_agnostic=agnostic, clip_boxes=clip, max_per_image=250)
    boxes, scores, labels = crowd(300, seed=4)
    judged = (
        np.random.default_rng(0).uniform(0, 0.2, 300).astype(np.float32)
    )  # most of them below the threshold or near
    prepared = PreparedImage(np.zeros(0), (110, 130), np.ones(4, dtype=np.float32))
    expected = select_detections(boxes, scores, labels, prepared, rule, judged)
    feed = [torch.from_numpy(values)[None] for values in (boxes, scores, labels, judged)]
    found = [values[0].numpy() for values in Suppress(rule)(*feed, torch.tensor([[110.0, 130.0]]))]
    count = len(expected)
    assert 100 < count < 250
    assert [len(values) for values in found] == [250] * 3
    assert not found[1][count:].any()
    np.testing.assert_array_equal(found[1][:count], expected.scores)
    np.testing.assert_array_equal(found[0][:count], expected.boxes)
    np.testing.assert_array_equal(found[2][:count], expected.labels)


def test_a_file_whose_nms_is_another_is_not_written(checkpoint, tmp_path, monkeypatch):
    real = Suppress.__init__

    def looser(self, rule):
        real(self, dataclasses.replace(rule, nms_iou_threshold=0.9))

    monkeypatch.setattr(Suppress, "__init__", looser)
    with pytest.raises(CheckFailed, match="NMS in the graph does not give what NMS outside gives"):
        onnx_export.export(checkpoint, tmp_path / "student.onnx", form=GraphForm("uint8", nms="graph"))
    assert list(tmp_path.iterdir()) == []


def test_the_pytorch_reference_pads_images_as_a_dynamic_file_does(formed, checkpoint):
    image = smooth((60, 170))
    with (
        OnnxRuntimeBackend(formed("RetinaNet", FLOAT)) as model,
        TorchBackend(checkpoint) as reference,
    ):
        assert Detector(reference).prepare(image).tensor.shape == (1, 3, 64, 128)
        assert_same(*(triple(Detector(backend).detect(image)) for backend in (reference, model)))


def test_mixed_sizes_cost_a_dynamic_file_nothing_and_a_fixed_one_a_note(
    deploy, formed, checkpoint, shapes_root, tmp_path
):
    import json

    data = json.loads((shapes_root / "annotations" / "val.json").read_text())
    images = []
    for number, size in enumerate([*SIZES, (128, 128)]):
        cv2.imwrite(str(tmp_path / f"{number}.png"), smooth(size))
        images.append({"id": number, "file_name": f"{number}.png", "height": size[0], "width": size[1]})
    # Boxes that mmdet finds, so that mAP tells something.
    student = load_student(checkpoint)
    boxes = []
    for image in images:
        for label, found in enumerate(detect_with_mmdet(student, tmp_path / image["file_name"])):
            for x1, y1, x2, y2, _ in found[::3].tolist():
                if min(x2 - x1, y2 - y1) > 2:
                    box = {"id": len(boxes) + 1, "image_id": image["id"], "category_id": label, "iscrowd": 0}
                    boxes.append({**box, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)})
    categories = [{"id": label, "name": name} for label, name in enumerate(student.classes)]
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps({**data, "images": images, "annotations": boxes, "categories": categories}))
    arguments = ("--ann", path, "--images", tmp_path, "--reference", checkpoint, "--max-drop", 100, "--json")
    model = onnx_export.export(checkpoint, tmp_path / "fixed.onnx", input_sizes=[(128, 128)]).path
    fixed = json.loads(deploy("eval", model, *arguments).out)
    dynamic = json.loads(deploy("eval", formed("RetinaNet", FLOAT), *arguments).out)
    assert abs(dynamic["drop_points"]) < 0.05
    assert dynamic["notes"] == []
    assert fixed["notes"][0].startswith("2 of 3 images are padded")
    assert abs(fixed["drop_points"]) > abs(dynamic["drop_points"])


def test_the_form_of_a_file_that_is_exported_already_cannot_be_chosen(deploy, model_file, tmp_path):
    arguments = ("--onnx", model_file, "--precision", "fp16", "--output", tmp_path / "half.onnx")
    done = deploy("export", *arguments, "--input-size", 128, 128, "--batch", "any", "--input", "float")
    assert done.code == 2
    assert "--input-size, --input, --batch: only with --checkpoint" in done.err


def test_the_command_writes_the_form_that_it_is_asked_for(deploy, checkpoint, tmp_path):
    target = tmp_path / "student.onnx"
    done = deploy("export", "--checkpoint", checkpoint, "--output", target, "--nms", "graph")
    assert done.code == 0
    assert "input 1 x H x W x 3 uint8, NMS in the graph" in done.out
    facts = deploy("inspect", target, "--json")
    assert "\"tensor(uint8) [1, 'height', 'width', 3]\"" in facts.out
