"""A file of lower precision gets its name only where it agrees with its FP32 file, and says how far it does."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from cskd_data.images import list_images
from cskd_deploy.accuracy.against_fp32 import FP16, INT8, Pictures, check_agreement, compare_with_fp32, limits
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.detect.detector import Detector
from cskd_deploy.errors import CheckFailed
from cskd_deploy.lower.int8 import Quantizer
from cskd_deploy.lower.layers import class_logits, layers
from cskd_deploy.model.manifest import AgreementWithFp32

from .students import FAMILIES, student_config, write_checkpoint

LOGITS = {
    "RetinaNet": {"bbox_head.retina_cls": 5},
    "FCOS": {"bbox_head.conv_cls": 5},
    "GFL": {"bbox_head.gfl_cls": 5},
    "ATSS": {"bbox_head.atss_cls": 5},
    "FasterRCNN": {"rpn_head.rpn_cls": 5, "bbox_head.fc_cls": 1},
}
AGREEMENT = AgreementWithFp32(
    sha256="0" * 64,
    images=8,
    random=False,
    detections=200,
    matched=0.97,
    overlap=0.96,
    correlation={"head.x_cls": (0.9991, None, 0.9995)},
    difference={"head.x_cls": (0.06, 0.0, 0.05)},
    spread={"head.x_cls": (1.5, 0.0, 2.0)},
)


@pytest.mark.parametrize("family", FAMILIES)
def test_class_logits_are_those_of_every_level_and_of_the_second_stage(family, exported):
    graph = onnx.load(str(exported(family).model)).graph
    found = class_logits(graph)
    assert {name: len(tensors) for name, tensors in found.items()} == LOGITS[family]
    numbers = [re.search(r"_cls(?:_(\d+))?/", name) for name in next(iter(found.values()))]
    assert [int(one.group(1) or 0) for one in numbers if one] == [0, 1, 2, 3, 4]  # as the head went through the levels


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_agrees_with_itself_to_the_last_bit(family, exported, shapes_root):
    paths = list_images(shapes_root / "images")
    with OnnxRuntimeBackend(exported(family).model) as one, OnnxRuntimeBackend(exported(family).model) as same:
        found = compare_with_fp32(Detector(one), Detector(same), Pictures(paths[:2], (128, 128)))
    assert (found.images, found.random, found.matched, found.overlap) == (2, False, 1.0, 1.0)
    assert found.detections > 100
    assert {name: len(levels) for name, levels in found.correlation.items()} == LOGITS[family]
    assert all(value == 1.0 for levels in found.correlation.values() for value in levels)
    assert all(value == 0.0 for levels in found.difference.values() for value in levels)
    assert all(0.2 < value < 5 for levels in found.spread.values() for value in levels)


def test_images_are_spread_over_the_files_or_random_where_there_are_none(shapes_root):
    every = list_images(shapes_root / "images")
    assert len(every) > 8
    some = Pictures(every, (96, 160))
    assert (len(some), len(list(some)), some.random, str(some)) == (8, 8, False, "8 images")
    none = Pictures([], (96, 160))
    assert [image.shape for image in none] == 4 * [(96, 160, 3)]
    assert (none.random, str(none)) == (True, "4 random images")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"matched": 0.49}, "49.0 % of 200 detections agree (at least 50 %"),
        ({"matched": 0.25, "detections": 4}, None),  # three boxes are within chance
        ({"overlap": 0.74}, "the detections that agree overlap by 0.740"),
        ({"correlation": {"head.x_cls": (0.9991, None, 0.98)}}, None),  # of logits that hardly differ
        ({"difference": {"head.x_cls": (0.06, 0.0, 0.59)}}, None),
        ({"difference": {"head.x_cls": (0.06, 0.0, 0.61)}}, "the logits of head.x_cls on level 2 differ by 0.61"),
        ({"difference": {"head.x_cls": (float("nan"), 0.0, 0.5)}}, "on level 0 differ by nan"),
        (
            {"correlation": {"head.x_cls": (0.9891, None, 1.0)}, "difference": {"head.x_cls": (0.21, 0.0, 0.0)}},
            "the logits of head.x_cls on level 0 correlate by 0.98910 (at least 0.99)",
        ),
    ],
)
def test_what_agrees_too_little_is_refused_with_the_figure_its_limit_and_the_way_out(change, message):
    found = dataclasses.replace(AGREEMENT, **change)
    if message is None:
        check_agreement(found, "this file", "int8-cpu", "Do this")
        return
    with pytest.raises(CheckFailed) as error:
        check_agreement(found, "this file", "int8-cpu", "Do this")
    assert message in str(error.value)
    assert str(error.value).startswith("this file does not find what the file that it is made of finds on 8 images: ")
    assert str(error.value).endswith("No file was written. Do this")


def test_each_precision_has_its_limits():
    assert [limits(name) for name in ("fp32", "fp16", "int8-cpu", "int8-tensorrt")] == [FP16, FP16, INT8, INT8]


@pytest.mark.parametrize(
    ("layer", "factor", "message"),
    [
        ("backbone.layer3.0.conv1", 3.0, "the logits of bbox_head.retina_cls on level"),
        ("bbox_head.retina_cls", 1.5, "the logits of bbox_head.retina_cls on level"),
        ("bbox_head.retina_reg", 3.0, "detections agree"),
    ],
)
@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_a_file_whose_scale_of_a_layer_is_wrong_is_never_written(
    layer, factor, message, target, deploy, exported, shapes_root, tmp_path, monkeypatch
):
    right = Quantizer.quantise

    def wrong(self: Quantizer, keep: Any) -> Any:
        model = right(self, keep)
        node = layers(model.graph)[layer][0]
        maker = next(one for one in model.graph.node if node.input[1] in one.output)
        for tensor in model.graph.initializer:
            if tensor.name == maker.input[1]:
                _scale(tensor, factor)
        return model

    monkeypatch.setattr(Quantizer, "quantise", wrong)
    options = ("--precision", "int8", "--target", target, "--calibration-images", shapes_root / "images")
    done = deploy("export", "--onnx", exported("RetinaNet").model, *options, "--output", tmp_path / "wrong.onnx")
    assert done.code == 1
    assert message in done.err
    assert "No file was written. Leave layers in float (--keep-float" in done.err
    assert "calibrate on more images" in done.err
    assert not list(tmp_path.iterdir())


def test_an_overflow_that_only_pictures_show_is_found_on_them(deploy, exported, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    columns = np.indices((90, 128))[1]
    for place, size in enumerate((1, 2)):  # stripes: no random image has such edges
        board = np.where((columns // size) % 2, 255, 0).astype(np.uint8)
        cv2.imwrite(str(folder / f"{place}.png"), np.repeat(board[:, :, None], 3, axis=2))
    stripes = Pictures(list_images(folder), (128, 128))
    first, second = "bbox_head.cls_convs.0.conv", "bbox_head.cls_convs.1.conv"
    model = onnx.load(str(exported("RetinaNet").model))
    seen, random = (_largest(model, first, images) for images in (stripes, Pictures([], (128, 128))))
    assert seen > 1.2 * random
    factor = 65504 / np.sqrt(seen * random)  # between the two; the next layer takes it back
    nodes = layers(model.graph)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in nodes[first][0].input[1:]:
        _scale(tensors[name], factor)
    _scale(tensors[nodes[second][0].input[1]], 1 / factor)
    onnx.save(model, str(tmp_path / "edges.onnx"))
    options = ("--onnx", tmp_path / "edges.onnx", "--precision", "fp16", "--output", tmp_path / "half.onnx")
    done = deploy("export", *options, "--calibration-images", folder)
    assert done.code == 1
    assert f"{first} gives values beyond the range of FP16, seen on 2 images. No file was written" in done.err
    assert f"--keep-float {first}" in done.err
    assert not (tmp_path / "half.onnx").exists()
    assert deploy("export", *options).code == 0  # nothing of it is seen without pictures


@pytest.mark.parametrize(
    ("precision", "images", "count"),
    [("fp16", False, 4), ("fp16", True, 6), ("int8", True, 8)],
)
def test_a_file_says_what_it_agreed_with_and_how_far(precision, images, count, deploy, exported, shapes_root, tmp_path):
    given = ("--calibration-images", shapes_root / "images") if images else ()
    if precision == "fp16" and images:
        given += ("--calibration-count", 6)
    output = tmp_path / "student.onnx"
    done = deploy("export", "--onnx", exported("FasterRCNN").model, "--precision", precision, "-o", output, *given)
    assert done.code == 0, done.err
    with OnnxRuntimeBackend(output) as backend:
        found = backend.manifest.agreement
        assert backend.manifest.requires == ()
    assert found is not None
    assert (found.images, found.random) == (count, not images)
    limit = limits(precision)
    # The second stage's logits are of the same proposals in both files: otherwise they would hardly correlate.
    for levels in found.correlation.values():
        assert all(value is not None and value > (0.99999 if precision == "fp16" else 0.99) for value in levels)
    assert found.matched > limit.matched
    kind = "images" if images else "random images"
    line = f"agrees with its source on {count} {kind}: {100 * found.matched:.1f} % of {found.detections} detections"
    assert line in done.out
    assert f"export: comparing with FP32 on {count} {kind}" in done.err
    for layer in LOGITS["FasterRCNN"]:
        assert f"correlation of {layer}: {found.correlation[layer][0]:.5f}" in done.out
    shown = json.loads(deploy("inspect", output, "--json").out)["metadata"]["agreement"]
    assert shown == json.loads(json.dumps(dataclasses.asdict(found)))
    assert "agreement.matched" in deploy("inspect", output).out


@pytest.mark.parametrize(
    ("family", "precision"), [("RetinaNet", "fp16"), ("GFL", "fp16"), ("FCOS", "int8"), ("FasterRCNN", "int8")]
)
def test_a_student_as_it_is_before_training_is_not_refused(family, precision, deploy, classes, shapes_root, tmp_path):
    import torch

    from cskd_train.files.checkpoints import save
    from cskd_train.files.config import config_from_data
    from cskd_train.mm.detector import build_student

    checkpoint = write_checkpoint(tmp_path / "best.pth", classes, student_config(classes, family=family))
    torch.manual_seed(1)
    model = build_student(config_from_data(student_config(classes, family=family)))
    model.init_weights()
    save(checkpoint, {**torch.load(checkpoint, weights_only=True), "state_dict": model.state_dict()})
    given = ("--calibration-images", shapes_root / "images") if precision == "int8" else ()
    done = deploy("export", "--checkpoint", checkpoint, "--precision", precision, *given)
    assert done.code == 0, done.err


def _scale(tensor: Any, factor: float) -> None:
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))


def _largest(model: Any, layer: str, images: Pictures) -> float:
    """The largest value that a layer gives on images, before what follows."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    names = [node.output[0] for node in layers(model.graph)[layer]]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    import onnxruntime

    session = onnxruntime.InferenceSession(shown.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = [value.name for value in session.get_inputs()]
    with_shapes = _backend_of(model)
    found = 0.0
    for image in images:
        feed = with_shapes.feed(with_shapes.prepare(image))
        values = session.run(names, {name: feed[name] for name in inputs})
        found = max(found, *(float(np.abs(value).max()) for value in values))
    return found


def _backend_of(model: Any) -> Detector:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, str(path))
        with OnnxRuntimeBackend(path) as backend:
            return Detector(backend)
