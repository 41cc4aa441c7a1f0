"""The first convolution on blocks of pixels: another order of the same integers, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import cskd_deploy
import cskd_deploy.lower.conversion as conversion
from cskd_data.images import list_images
from cskd_deploy.lower.space_to_depth import with_blocks


def quantised_conv(
    kernel: tuple[int, int], pads: tuple[int, int, int, int], channels: int = 3, **attributes: Any
) -> onnx.ModelProto:
    """One convolution of stride 2 in QDQ form, of an image of any size; its zero point is not 0."""
    generator = np.random.default_rng(sum(kernel) + channels)
    given = {"strides": [2, 2], "dilations": [1, 1], "group": 1, "pads": list(pads), **attributes}
    weights = generator.integers(-64, 65, (8, channels // given["group"], *kernel)).astype(np.int8)
    scales = generator.uniform(0.01, 0.02, 8).astype(np.float32)
    constants = {
        "scale": np.float32(0.02),
        "zero": np.uint8(117),
        "weights": weights,
        "scales": scales,
        "zeros": np.zeros(8, dtype=np.int8),
        "bias": generator.integers(-500, 500, 8).astype(np.int32),
        "bias_scales": scales * np.float32(0.02),
        "bias_zeros": np.zeros(8, dtype=np.int32),
        "out_scale": np.float32(0.1),
        "out_zero": np.uint8(101),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["weights", "scales", "zeros"], ["kernel"], axis=0),
        helper.make_node("DequantizeLinear", ["bias", "bias_scales", "bias_zeros"], ["offset"], axis=0),
        helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["rounded", "scale", "zero"], ["restored"]),
        helper.make_node("Conv", ["restored", "kernel", "offset"], ["map"], name="conv1", **given),
        helper.make_node("QuantizeLinear", ["map", "out_scale", "out_zero"], ["rounded_map"]),
        helper.make_node("DequantizeLinear", ["rounded_map", "out_scale", "out_zero"], ["result"]),
    ]
    graph = helper.make_graph(
        nodes,
        "one convolution",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, channels, "height", "width"])],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, [1, 8, "down", "right"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def on_blocks(model: onnx.ModelProto) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    with_blocks(changed)
    return changed


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def result(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (values,) = session.run(None, {"image": image})
    return values


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("kernel", "pads"),
    [
        ((7, 7), (3, 3, 3, 3)),  # ResNet's
        ((3, 3), (1, 1, 1, 1)),  # of a deep stem
        ((6, 6), (2, 2, 2, 2)),
        ((4, 4), (0, 0, 0, 0)),
        ((1, 1), (0, 0, 0, 0)),
        ((2, 5), (0, 2, 1, 1)),
        ((3, 7), (2, 0, 0, 3)),
    ],
)
def test_the_same_integers(kernel, pads, channels):
    model = quantised_conv(kernel, pads, channels)
    changed = on_blocks(model)
    onnx.checker.check_model(changed, full_check=True)
    assert "SpaceToDepth" in operators(changed)
    for number, size in enumerate([(32, 46), (50, 20)]):
        image = np.random.default_rng(number).uniform(-2.4, 2.6, (1, channels, *size)).astype(np.float32)
        expected = result(model, image)
        assert len(np.unique(expected)) > 20, "the result says something"
        np.testing.assert_array_equal(result(changed, image), expected)


@pytest.mark.parametrize(
    ("channels", "attributes"),
    [
        pytest.param(5, {}, id="more channels than are multiplied at once"),
        pytest.param(3, {"strides": [1, 1]}, id="stride 1"),
        pytest.param(3, {"strides": [2, 1]}, id="stride 1 along one side"),
        pytest.param(3, {"dilations": [2, 2]}, id="dilated"),
        pytest.param(4, {"group": 2}, id="in groups"),
    ],
)
def test_another_convolution_stays_as_it_is(channels, attributes):
    model = quantised_conv((3, 3), (1, 1, 1, 1), channels, **attributes)
    assert on_blocks(model) == model


@pytest.mark.parametrize("shared", ["rounded", "restored", "kernel"])
def test_what_something_else_reads_stays_as_it_is(shared):
    model = quantised_conv((3, 3), (1, 1, 1, 1))
    model.graph.node.append(helper.make_node("Shape", [shared], ["read"]))
    assert on_blocks(model) == model


def test_a_convolution_in_float_stays_as_it_is():
    model = quantised_conv((3, 3), (1, 1, 1, 1))
    nodes = [node for node in model.graph.node if node.output[0] not in ("rounded", "restored")]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    nodes[2].input[0] = "image"
    assert on_blocks(model) == model


def test_a_later_convolution_stays_as_it_is_whatever_its_channels():
    """Its map may have an odd height."""
    model = quantised_conv((3, 3), (1, 1, 1, 1))
    first = helper.make_node("Conv", ["image", "stem"], ["narrow"], name="stem", strides=[2, 2])
    model.graph.initializer.append(numpy_helper.from_array(np.ones((3, 3, 1, 1), dtype=np.float32), "stem"))
    next(node for node in model.graph.node if node.op_type == "QuantizeLinear").input[0] = "narrow"
    model.graph.node.insert(0, first)
    assert on_blocks(model) == model


def int8(source: Path, output: Path, images: Path, target: str = "cpu", keep: tuple[str, ...] = ()) -> onnx.ModelProto:
    calibration = conversion.CalibrationSettings(images, count=4)
    silent = dict.fromkeys(("progress", "warn"), lambda line: None)
    return onnx.load(conversion.convert_to_int8(source, output, target, calibration, keep, **silent).path)


@pytest.mark.parametrize("family", ["RetinaNet", "FasterRCNN"])
def test_the_file_gives_what_it_gave(family, exported, shapes_root, tmp_path, monkeypatch):
    source, images = exported(family).model, shapes_root / "images"
    changed = int8(source, tmp_path / "changed.onnx", images)
    monkeypatch.setattr(conversion, "with_blocks", lambda model: None)
    plain = int8(source, tmp_path / "plain.onnx", images)
    assert operators(changed).count("SpaceToDepth") == 1
    assert "SpaceToDepth" not in operators(plain)

    pictures = [cv2.imread(str(path)) for path in list_images(images)[:3]]
    with (
        cskd_deploy.load(tmp_path / "changed.onnx", threads=1) as one,
        cskd_deploy.load(tmp_path / "plain.onnx", threads=1) as other,
    ):
        for picture in (*pictures, pictures[0][:70], pictures[0][:, :70]):
            found, expected = one.detect(picture), other.detect(picture)
            assert len(found.scores)
            for part in ("boxes", "scores", "labels"):
                np.testing.assert_array_equal(getattr(found, part), getattr(expected, part))


@pytest.mark.parametrize(
    ("target", "keep", "divisor"),
    [
        pytest.param("tensorrt", (), 32, id="for TensorRT"),
        pytest.param("cpu", ("backbone.conv1",), 32, id="the layer in float"),
        pytest.param("cpu", (), 1, id="sizes that may be odd"),
    ],
)
def test_a_file_of_another_kind_has_no_blocks(target, keep, divisor, exported, shapes_root, tmp_path):
    source = tmp_path / "source.onnx"
    model = onnx.load(exported("RetinaNet").model)
    for entry in model.metadata_props:
        entry.value = entry.value.replace('"pad_divisor": 32', f'"pad_divisor": {divisor}')
    onnx.save(model, source)
    assert "SpaceToDepth" not in operators(int8(source, tmp_path / "int8.onnx", shapes_root / "images", target, keep))
