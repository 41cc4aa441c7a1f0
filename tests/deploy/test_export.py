"""The exported file is the student: same detections as mmdet, everything needed inside, never a wrong file."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.core.evaluation.class_names import coco_classes

from cskd_data.images import read_image
from cskd_deploy.accuracy.agreement import match
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.backends.torch import TorchBackend
from cskd_deploy.detect.detector import Detector
from cskd_deploy.detect.preprocess import placement
from cskd_deploy.errors import DeployError
from cskd_deploy.exporter import onnx as onnx_export
from cskd_deploy.exporter.student import load_student
from cskd_deploy.model.manifest import GraphForm
from cskd_train.files.config import config_to_data, load_config

from .conftest import Exported, detect_with_mmdet
from .students import FAMILIES, student_config, write_checkpoint
from .unusual import config_with

RECIPES = Path(__file__).parents[2] / "configs" / "student"


@pytest.fixture(scope="module")
def lying_model(lying_checkpoint) -> Path:
    return onnx_export.export(lying_checkpoint, lying_checkpoint.with_suffix(".onnx"), input_sizes=[(128, 160)]).path


@pytest.fixture(scope="module")
def fixed(tmp_path_factory, exported):
    """A student of a family at a fixed size: `fixed("FCOS").model`."""

    @functools.cache
    def make(family: str) -> Exported:
        checkpoint = exported(family).checkpoint
        path = tmp_path_factory.mktemp(family) / "fixed.onnx"
        return Exported(checkpoint, onnx_export.export(checkpoint, path, input_sizes=[(128, 128)]).path)

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_detections_of_every_validation_image_are_those_of_simple_test(family, exported, shapes_root):
    student = load_student(exported(family).checkpoint)
    with OnnxRuntimeBackend(exported(family).model) as backend:
        detector = Detector(backend)
        for path in sorted((shapes_root / "images").iterdir()):
            expected = flat(detect_with_mmdet(student, path))
            assert len(expected[1]) > 20
            assert_same(expected, triple(detector.detect(read_image(path))))


def test_a_coco_recipe_finds_its_80_classes_where_simple_test_does(tmp_path, shapes_root):
    """Narrow and on small images; in full size, all four: tests/reliability/test_geometry_full_size.py."""
    config = config_to_data(load_config(RECIPES / "retinanet_r18_fpn_ms_1x_coco.py"))
    config["model"]["backbone"] |= {"init_cfg": None, "base_channels": 8}
    config["model"]["neck"] |= {"in_channels": [8, 16, 32, 64], "out_channels": 32}
    config["model"]["bbox_head"] |= {"in_channels": 32, "feat_channels": 32}
    config["data"]["test"]["pipeline"][1]["img_scale"] = (128, 96)
    classes = tuple(coco_classes())
    checkpoint = write_checkpoint(tmp_path / "student.pth", classes, config)
    student = load_student(checkpoint)
    seen = set()
    with OnnxRuntimeBackend(onnx_export.export(checkpoint, tmp_path / "student.onnx").path) as backend:
        detector = Detector(backend)
        assert backend.manifest.classes == classes
        for path in sorted((shapes_root / "images").iterdir())[:3]:
            expected = flat(detect_with_mmdet(student, path))
            assert_same(expected, triple(detector.detect(read_image(path))))
            seen |= set(expected[2].tolist())
    assert len(seen) > 3
    assert max(seen) > 20


@pytest.mark.parametrize("written", [["tea cup"], "tea cup", "names.txt", None])
def test_a_checkpoint_without_classes_has_those_that_its_config_names(tmp_path, monkeypatch, written):
    monkeypatch.chdir(tmp_path)
    Path("names.txt").write_text("tea cup\n")
    own = student_config(("tea cup",))
    stored = write_checkpoint(tmp_path / "student.pth", ("tea cup",), own)
    plain = torch.load(stored, weights_only=True)
    torch.save({"state_dict": plain["state_dict"]}, tmp_path / "plain.pth")
    own["data"]["test"]["classes"] = written
    (config := tmp_path / "config.json").write_text(json.dumps(own))
    if written is None:
        with pytest.raises(DeployError, match=r"neither the checkpoint .* nor its config names the classes"):
            load_student(tmp_path / "plain.pth", config)
    else:
        assert load_student(tmp_path / "plain.pth", config).classes == ("tea cup",)


@pytest.mark.parametrize("size", [(120, 160), (60, 170), (300, 400), (200, 150), (400, 101)])
def test_detections_on_images_of_another_aspect_are_those_of_simple_test_with_the_same_padding(
    size, lying_model, lying_checkpoint, tmp_path
):
    assert_same_on_the_canvas(size, (128, 160), lying_checkpoint, lying_model, tmp_path)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "RetinaNet"])
@pytest.mark.parametrize("size", [(60, 170), (400, 250)])
def test_every_family_finds_what_simple_test_finds_on_a_padded_image(family, size, fixed, tmp_path):
    assert_same_on_the_canvas(size, (128, 128), *fixed(family), tmp_path)


def random_picture(size, folder):
    path = folder / "image.png"
    small = np.random.default_rng(2).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC))
    return path


def assert_same_on_the_canvas(size, canvas, checkpoint, model, folder):
    student = load_student(checkpoint)
    path = random_picture(size, folder)
    with OnnxRuntimeBackend(model) as backend:
        found = Detector(backend).detect(read_image(path))
        rule = backend.manifest.preprocessing
    assert rule.input_size == canvas

    # mmdet with this image's size on the canvas, padded to the whole of it.
    resized = placement(size, rule).resized_size
    pipeline = student_config(student.classes, scale=resized[::-1])["data"]["test"]["pipeline"]
    pipeline[1]["transforms"][0]["keep_ratio"] = False
    pipeline[1]["transforms"][3] = {"type": "Pad", "size": rule.input_size}
    expected = flat(detect_with_mmdet(student, path, pipeline))
    assert len(expected[1]) > 10
    assert_same(expected, triple(found))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pytorch_reference_gives_the_same_detections_through_the_same_interface(family, exported, shapes_root):
    image = read_image(next((shapes_root / "images").iterdir()))
    with OnnxRuntimeBackend(exported(family).model) as model, TorchBackend(exported(family).checkpoint) as reference:
        assert reference.manifest.preprocessing == model.manifest.preprocessing
        assert reference.manifest.graph.dynamic == model.manifest.graph.dynamic
        assert reference.manifest.postprocessing == model.manifest.postprocessing
        assert_same(*(triple(Detector(backend).detect(image)) for backend in (reference, model)))


@pytest.mark.parametrize(
    ("family", "head"),
    [("RetinaNet", "FreeAnchorRetinaHead"), ("RetinaNet", "PISARetinaHead"), ("AutoAssign", None), ("FSAF", None)],
)
def test_heads_that_differ_in_training_alone_find_what_simple_test_finds(family, head, tmp_path):
    settings = {"model.test_cfg.score_thr": 0.12, "model.test_cfg.nms.iou_threshold": 0.6}
    if head:
        settings["model.bbox_head.type"] = head
    config = config_with(family, ("a", "b", "c"), settings)
    if head == "FreeAnchorRetinaHead":
        del config["model"]["bbox_head"]["loss_cls"]  # as its own configs
    checkpoint = write_checkpoint(tmp_path / "student.pth", ("a", "b", "c"), config)
    form = GraphForm("uint8", nms="graph")
    with OnnxRuntimeBackend(onnx_export.export(checkpoint, tmp_path / "student.onnx", form=form).path) as backend:
        assert backend.manifest.family == family.lower()
        detector, student = Detector(backend), load_student(checkpoint)
        for size, canvas in {(150, 90): (128, 96), (70, 130): (96, 128)}.items():
            path = random_picture(size, tmp_path)
            expected = flat(detect_with_mmdet(student, path))
            assert detector.prepare(read_image(path)).tensor.shape == (1, *canvas, 3)
            assert len(expected[1]) > 10
            assert_same(expected, triple(detector.detect(read_image(path))))


def test_fcos_keeps_detections_whose_centerness_takes_them_below_the_score_threshold(exported, shapes_root):
    path = next((shapes_root / "images").iterdir())
    student = load_student(exported("FCOS").checkpoint)
    student.model.test_cfg.max_per_img = student.model.bbox_head.test_cfg.max_per_img = 1000
    with OnnxRuntimeBackend(exported("FCOS").model) as backend:
        rule = dataclasses.replace(backend.manifest.postprocessing, max_per_image=1000)
        backend.manifest = dataclasses.replace(backend.manifest, postprocessing=rule)
        found = Detector(backend).detect(read_image(path))
    assert (rule.threshold_on, rule.score_threshold) == ("class_scores", 0.05)
    assert (found.scores < 0.05).sum() > 20
    assert_same(flat(detect_with_mmdet(student, path)), triple(found))


@pytest.mark.parametrize(
    ("family", "priors_a_cell", "outputs"),
    [
        ("RetinaNet", 9, []),
        ("FCOS", 1, ["class_scores"]),
        ("GFL", 1, []),
        ("ATSS", 1, ["class_scores"]),
        ("FasterRCNN", None, []),
    ],
)
def test_a_file_of_a_fixed_size_is_clean_static_and_says_what_it_is(family, priors_a_cell, outputs, fixed, classes):
    import onnx

    checkpoint, model_file = fixed(family)
    model = onnx.load(str(model_file))
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert model.ir_version == 8
    shapes = {
        value.name: [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    if priors_a_cell:  # 300 of each level, or all: 16 x 16, 8 x 8, 4 x 4, 2 x 2 and 1 cells
        count = sum(min(300, cells * priors_a_cell * len(classes)) for cells in (256, 64, 16, 4, 1))
    else:  # 300 proposals
        count = 300 * len(classes)
    expected = {"boxes": [1, count, 4], **{name: [1, count] for name in ("scores", "labels", *outputs)}}
    assert shapes == {"image": [1, 128, 128, 3], "image_shape": [1, 2], **expected}
    metadata = json.loads(next(entry.value for entry in model.metadata_props if entry.key == "cskd_manifest"))
    assert metadata["family"] == {"FasterRCNN": "faster_rcnn"}.get(family, family.lower())
    assert metadata["classes"] == list(classes)
    assert metadata["sha256"] == load_student(checkpoint).sha256
    assert metadata["postprocessing"]["nms_iou_threshold"] == 0.5


def test_export_prints_what_it_made_and_how_it_was_verified(deploy, checkpoint, tmp_path):
    target = tmp_path / "new folder" / "student.onnx"
    done = deploy("export", "--checkpoint", checkpoint, "--output", target, "--input-size", 96, 160)
    assert done.code == 0
    assert str(target) in done.out
    assert "1 x 96 x 160 x 3 uint8" in done.out
    assert "verified against mmdet" in done.out
    assert f"{target.stat().st_size / 1e6:.1f} MB" in done.out
    assert [line for line in done.err.splitlines() if line.startswith("export: ")]
    assert [path.name for path in target.parent.iterdir()] == ["student.onnx"]


def test_export_beside_the_checkpoint_prints_json(deploy, checkpoint, tmp_path):
    copy = tmp_path / "student.pth"
    copy.write_bytes(checkpoint.read_bytes())
    done = deploy("export", "--checkpoint", copy, "--json")
    facts = json.loads(done.out)
    assert facts["path"] == str(tmp_path / "student.onnx")
    verified = facts["verification"]
    assert verified["matched"] + verified["ties"] >= verified["candidates"] > 100
    assert verified["largest_score_difference"] < 1e-4


def test_a_config_file_serves_a_plain_mmdet_checkpoint(deploy, checkpoint, classes, tmp_path):
    import torch

    plain = tmp_path / "plain.pth"
    contents = torch.load(checkpoint, weights_only=True)
    torch.save({"state_dict": contents["state_dict"], "meta": {"CLASSES": list(classes)}}, plain)
    refused = deploy("export", "--checkpoint", plain)
    assert refused.code == 2
    assert "--config" in refused.err

    config = tmp_path / "student.py"
    config.write_text("".join(f"{key} = {value!r}\n" for key, value in student_config(classes).items()))
    done = deploy("export", "--checkpoint", plain, "--config", config)
    assert done.code == 0
    assert (tmp_path / "plain.onnx").is_file()


def test_a_graph_that_computes_something_else_is_not_left_behind(deploy, checkpoint, tmp_path, monkeypatch):
    target = tmp_path / "student.onnx"
    target.write_bytes(b"the file of yesterday")
    simplified = onnx_export._simplified

    def spoilt(student, traced):
        model = simplified(student, traced)
        weights = next(value for value in model.graph.initializer if list(value.dims)[-2:] == [3, 3])
        weights.raw_data = (np.frombuffer(weights.raw_data, np.float32) * 1.05).tobytes()
        return model

    monkeypatch.setattr(onnx_export, "_simplified", spoilt)
    done = deploy("export", "--checkpoint", checkpoint, "--output", target)
    assert done.code == 1
    assert "does not compute what mmdet does" in done.err
    assert target.read_bytes() == b"the file of yesterday"
    assert [path.name for path in tmp_path.iterdir()] == ["student.onnx"]


def assert_same(expected, found):
    """The same detections: boxes within a hundredth of a pixel, scores within a thousandth."""
    agreement = match(expected, found, score=1e-3)
    assert agreement.share == 1, agreement
    assert agreement.largest_corner_difference < 1e-2


def flat(per_class):
    """mmdet's (n, 5) array a class as boxes, scores, labels."""
    rows = np.concatenate(per_class)
    labels = np.concatenate([np.full(len(found), label) for label, found in enumerate(per_class)])
    return rows[:, :4], rows[:, 4], labels


def triple(detections):
    return detections.boxes, detections.scores, detections.labels
