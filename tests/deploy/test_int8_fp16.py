"""INT8 with FP16 around it: what is in which type, and what a calibration keeps for the next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cskd_data.images import list_images, read_image
from cskd_deploy.accuracy.agreement import match
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.detect.detector import Detector
from cskd_deploy.lower.fp16 import to_float16
from cskd_deploy.lower.int8 import Quantizer
from cskd_deploy.lower.layers import WEIGHTED, network
from cskd_deploy.lower.mixed import residual_sums, with_fp16_around

from .engines import write_small_model

FLOAT, HALF, INT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8


@pytest.fixture(scope="module")
def converted(tmp_path_factory, exported, shapes_root) -> Path:
    """A RetinaNet in INT8 and FP16."""
    from click.testing import CliRunner

    from cskd_deploy.commands.export import command

    path = tmp_path_factory.mktemp("converted") / "student.int8+fp16.onnx"
    options = ["--onnx", exported("RetinaNet").model, "--precision", "int8+fp16", "--output", path]
    options += ["--calibration-images", shapes_root / "images", "--calibration-count", 4]
    done = CliRunner().invoke(command, [str(option) for option in options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return path


def test_layers_are_int8_between_fp16_and_nothing_of_the_network_is_fp32(converted, exported):
    model = onnx.load(str(converted))
    graph, types = model.graph, types_of(model)
    makers = {name: node for node in graph.node for name in node.output}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type in WEIGHTED]
    assert len(layers) > 40
    for node in layers:
        activation, weight = (makers[name] for name in node.input[:2])
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        assert weights[weight.input[0]].data_type == INT8
        assert {types[name] for name in (*node.input, *node.output)} == {HALF}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = weights[node.input[2]]
            assert (zero.data_type, numpy_helper.to_array(zero).any()) == (INT8, False)
    inside = {node.name for node in network(onnx.load(str(exported("RetinaNet").model)).graph)}
    for node in graph.node:
        kinds = {types[name] for name in (*node.input, *node.output) if name in types}
        if node.name in inside:
            assert FLOAT not in kinds or node.op_type == "Resize", node.name  # its scales are float by the standard
        elif node.op_type not in ("Cast", "QuantizeLinear", "DequantizeLinear", "Shape"):
            assert HALF not in kinds, node.name
    # Nothing is converted on the way from a rounded value to its layer, which would keep the two from being one kernel.
    casts = [makers[node.input[0]].op_type for node in graph.node if node.op_type == "Cast" and node.input[0] in makers]
    assert "DequantizeLinear" not in casts


def test_of_a_sum_the_shortcut_is_rounded_and_the_layer_before_it_is_not(converted):
    graph = onnx.load(str(converted)).graph
    makers = {name: node for node in graph.node for name in node.output}
    inside = {node.name for node in network(graph)}
    sums = [node for node in graph.node if node.op_type == "Add" and node.name in inside]
    kinds = [sorted(makers[name].op_type for name in node.input) for node in sums]
    assert kinds == [["Conv", "DequantizeLinear"]] * (8 + 2)  # the blocks of a ResNet-18, and the pyramid


def test_it_says_what_it_is_and_finds_what_fp32_finds(converted, exported, shapes_root):
    model = onnx.load(str(converted))
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 19)]
    assert model.ir_version == 9
    assert converted.stat().st_size < 0.3 * exported("RetinaNet").model.stat().st_size
    image = read_image(list_images(shapes_root / "images")[0])
    with OnnxRuntimeBackend(converted) as backend, OnnxRuntimeBackend(exported("RetinaNet").model) as plain:
        assert (backend.manifest.precision, backend.manifest.opset) == ("int8+fp16", 19)
        agreement = backend.manifest.agreement
        one, other = (Detector(each).detect(image) for each in (plain, backend))
    assert agreement is not None
    assert min(value for value in agreement.correlation["bbox_head.retina_cls"][:-1] if value is not None) > 0.99
    expected, found = ((each.boxes, each.scores, each.labels) for each in (one, other))
    assert match(expected, found, iou=0.5, score=0.1).share > 0.65


def convolution(name: str, source: str) -> Any:
    return helper.make_node("Conv", [source, "weights"], [name], f"/{name}/Conv")


def small_graph(*nodes: Any) -> Any:
    weights = np.random.default_rng(0).standard_normal((2, 2, 1, 1)).astype(np.float32)
    weights[1] *= 1e-6  # a channel of next to nothing
    constants = {"weights": weights, "half": np.full((1, 2, 1, 1), 0.5, np.float32)}
    shape = (1, 2, 8, 8)
    image, result = (helper.make_tensor_value_info(name, FLOAT, shape) for name in ("image", "result"))
    initializers = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    return helper.make_graph(list(nodes), "small", [image], [result], initializers)


def test_a_sum_fuses_with_a_layer_that_it_alone_reads():
    graph = small_graph(
        convolution("first", "image"),
        helper.make_node("Shape", ["second"], ["size"], "/Shape"),  # reads no values
        convolution("second", "first"),
        helper.make_node("Add", ["first", "second"], ["sum"], "/Add"),
        helper.make_node("Add", ["sum", "half"], ["shifted"], "/Add_1"),
        convolution("third", "shifted"),
        helper.make_node("Add", ["third", "first"], ["again"], "/Add_2"),
        helper.make_node("Add", ["third", "again"], ["twice"], "/Add_3"),
        convolution("result", "twice"),
    )
    assert [(one.name, one.layer, one.residual) for one in residual_sums(graph)] == [
        ("/Add", "/second/Conv", "first")  # `third` is read by two sums, and the constant is no map
    ]


def test_scales_are_those_that_fp16_has_and_the_result_is_the_same(tmp_path):
    graph = small_graph(
        convolution("first", "image"),
        convolution("second", "first"),
        helper.make_node("Add", ["second", "first"], ["sum"], "/Add"),
        convolution("result", "sum"),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "plain.onnx"))
    feeds = [{"image": np.random.default_rng(seed).standard_normal((1, 2, 8, 8), np.float32)} for seed in range(3)]
    quantizer = Quantizer(tmp_path / "plain.onnx", "tensorrt", iter(feeds), tmp_path)
    mixed = with_fp16_around(quantizer.quantise([]), quantizer.sums, quantizer.calibrated())
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in mixed.graph.initializer}
    scales = {
        node.input[1]: weights[node.input[1]] for node in mixed.graph.node if node.op_type.endswith("quantizeLinear")
    }
    assert scales
    for values in scales.values():
        np.testing.assert_array_equal(values, values.astype(np.float16).astype(values.dtype))
        assert (values >= 2.0**-20).all()
    plain = next(numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name == "weights")
    rounded = [
        (weights[node.input[0]], weights[node.input[1]].astype(np.float64).reshape(-1, 1, 1, 1))
        for node in mixed.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in weights
    ]
    assert rounded
    for integers, scale in rounded:  # rounded for the scale that they have now
        assert (np.abs(integers * scale - plain) <= 0.51 * scale).all()
    expected = run(model, feeds[0])
    found = run(mixed, feeds[0])
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


def test_an_output_that_is_a_constant_stays():
    graph = small_graph(convolution("middle", "image"), convolution("result", "middle"))
    graph.initializer.append(numpy_helper.from_array(np.arange(4), "labels"))
    graph.output.append(helper.make_tensor_value_info("labels", TensorProto.INT64, (4,)))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert "labels" in {tensor.name for tensor in to_float16(model, ()).graph.initializer}


# The calibration cache


@pytest.fixture
def small(tmp_path) -> Path:
    return write_small_model(tmp_path / "student.onnx")


def options(small: Path, cache: Path, *more: Any, precision: str = "int8+fp16") -> tuple[Any, ...]:
    output = small.with_name("low.onnx")
    return (
        "export",
        "--onnx",
        small,
        "--precision",
        precision,
        "--output",
        output,
        "--calibration-cache",
        cache,
        *more,
    )


def test_a_calibration_is_kept_and_read_again(small, deploy, shapes_root, tmp_path, monkeypatch):
    cache, images = tmp_path / "ranges.json", ("--calibration-images", shapes_root / "images")
    first = deploy(*options(small, cache, *images))
    assert first.code == 0, first.err
    assert "calibrating INT8 for tensorrt" in first.err
    data = json.loads(cache.read_text())
    count = len(list_images(shapes_root / "images"))
    assert (data["images"], data["method"]) == (count, "least squares of 4096 bins, symmetric")
    assert set(data["ranges"]) == {"image", "mapped"}
    low, high = data["ranges"]["image"]
    assert low == -high < 0
    written = (tmp_path / "low.onnx").read_bytes()

    monkeypatch.setattr(Quantizer, "_calibrate", lambda self: pytest.fail("calibrates again"))
    again = deploy(*options(small, cache, *images, "--json"))
    assert again.code == 0, again.err
    assert (tmp_path / "low.onnx").read_bytes() == written
    facts = json.loads(again.out)
    assert (facts["calibration_images"], facts["calibration_cache"]) == (count, str(cache))
    alone = deploy(*options(small, cache))  # without images
    assert alone.code == 0, alone.err
    assert f"with the ranges of {cache} ({count} images)" in alone.err
    assert "on 4 random images" in alone.out
    # INT8 with FP32 around it takes the same ranges.
    other = deploy(*options(small, cache, "--target", "tensorrt", precision="int8"))
    assert other.code == 0, other.err


def test_a_cache_of_something_else_is_refused_in_one_sentence(small, deploy, shapes_root, tmp_path):
    cache, images = tmp_path / "ranges.json", ("--calibration-images", shapes_root / "images")
    assert deploy(*options(small, cache, *images)).code == 0
    whole = cache.read_text()

    def refused(*more: Any, precision: str = "int8+fp16") -> str:
        (tmp_path / "low.onnx").unlink(missing_ok=True)
        done = deploy(*options(small, cache, *more, precision=precision))
        assert done.code == 2
        assert len([line for line in done.err.splitlines() if line.startswith("error: ")]) == 1
        assert not (tmp_path / "low.onnx").exists()
        return str(done.err)

    assert "of 12 other images than the 3 given: leave" in refused(*images, "--calibration-count", 3).replace(
        f"of {len(list_images(images[1]))} ", "of 12 "
    )
    assert "found by another method" in refused("--target", "cpu", precision="int8")
    data = json.loads(whole)
    for text, message in (
        ("ranges", "cannot be read as a calibration cache"),
        (json.dumps({**data, "format": "other"}), "its format is 'other'"),
        (json.dumps({**data, "version": 2}), "its version is 2, expected 1"),
        (json.dumps({**data, "images": "many"}), "found 'many', expected int"),
        (json.dumps({**data, "ranges": {"image": [0, float("nan")]}}), "the range of image is [0, nan]"),
        (json.dumps({**data, "ranges": {"image": [-1, 1]}}), "has no range of mapped"),
        (json.dumps({key: value for key, value in data.items() if key != "method"}), "'method' is missing"),
    ):
        cache.write_text(text)
        assert message in refused()
    cache.write_text(whole)
    model = onnx.load(str(small))
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "weights")
    weights.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(weights), "weights"))
    onnx.save(model, str(small))
    assert f"{cache} holds the ranges of another model (its FP32 graph differs)" in refused()
    cache.unlink()
    assert f"{cache} does not exist: give the images to calibrate on" in refused()
    assert "no layer is left to quantise" in refused(*images, "--keep-float", "neck")
    assert not cache.exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ("--precision", "int8+fp16", "--target", "cpu", "--calibration-images", "a"),
            "processors compute FP16 in FP32",
        ),
        (("--precision", "int8+fp16"), "--precision int8+fp16 needs images to calibrate on: give --calibration-images"),
        (("--precision", "fp16", "--calibration-cache", "a"), "--calibration-cache is for --precision int8"),
        (("--precision", "int8", "--calibration-cache", "a", "--calibration-count", "9"), "which images: give"),
    ],
)
def test_options_that_make_no_int8_are_refused(given, message, small, deploy, tmp_path):
    done = deploy("export", "--onnx", small, *given)
    assert done.code == 2
    assert message in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["student.onnx"]


def test_an_overflow_between_int8_layers_names_the_way_out(small, deploy, shapes_root, tmp_path):
    model = onnx.load(str(small))
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "weights")
    weights.CopyFrom(numpy_helper.from_array(6e4 * numpy_helper.to_array(weights), "weights"))
    onnx.save(model, str(small))
    images = ("--calibration-images", shapes_root / "images")
    done = deploy("export", "--onnx", small, "--precision", "int8+fp16", *images)
    assert done.code == 1
    assert "neck.identity gives values beyond the range of FP16" in done.err
    assert "No file was written. Give --precision int8" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["student.onnx"]


def types_of(model: Any) -> dict[str, int]:
    """Element type of every tensor."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = [*inferred.input, *inferred.output, *inferred.value_info]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return {**types, **{tensor.name: tensor.data_type for tensor in model.graph.initializer}}


def run(model: Any, feed: dict[str, np.ndarray]) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(["result"], feed)[0]
    return result
