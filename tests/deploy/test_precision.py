"""Lower precision: what is rounded and what is not, for which target."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from cskd_data.errors import DataError
from cskd_data.images import list_images, read_image
from cskd_deploy.accuracy.agreement import match
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.detect.detector import Detector
from cskd_deploy.lower.calibration import calibration_feeds, calibration_images
from cskd_deploy.lower.fp16 import to_float16
from cskd_deploy.lower.layers import WEIGHTED, layers, network

from .engines import put_rtx
from .students import FAMILIES

TARGETS = ("cpu", "tensorrt")
LEAST_MATCHED = {"RetinaNet": 0.65, "FCOS": 0.85, "GFL": 0.75, "ATSS": 0.75, "FasterRCNN": 0.65}
HEADS = ("bbox_head.retina_cls", "bbox_head.retina_reg")


@pytest.fixture(scope="module")
def converted(tmp_path_factory, exported, shapes_root) -> Callable[..., Path]:
    """A student's file in another precision, made once: `converted("FCOS", "int8", "cpu")`."""
    from click.testing import CliRunner

    from cskd_deploy.commands.export import command

    made: dict[Any, Path] = {}

    def make(family: str, precision: str, target: str = "") -> Path:
        key = family, precision, target
        if key not in made:
            made[key] = tmp_path_factory.mktemp("converted") / "student.onnx"
            options = ["--onnx", exported(family).model, "--precision", precision, "--output", made[key]]
            if precision == "int8":
                options += ["--target", target, "--calibration-images", shapes_root / "images"]
                options += ["--calibration-count", 4]
            done = CliRunner().invoke(command, [str(option) for option in options], catch_exceptions=False)
            assert done.exit_code == 0, done.output
        return made[key]

    return make


# FP16


@pytest.mark.parametrize("family", FAMILIES)
def test_fp16_rounds_the_network_and_nothing_else(family, converted, exported):
    graph = _graph(converted(family, "fp16"))
    types = _types(graph)
    weighted = [node for node in graph.node if node.op_type in WEIGHTED]
    assert weighted
    for node in weighted:
        assert {types[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT16}
    inside = {node.name for node in network(_graph(exported(family).model)) if node.op_type != "RoiAlign"}
    for node in graph.node:
        if node.name not in inside and node.op_type not in ("Cast", "Shape"):  # which reads no values
            assert TensorProto.FLOAT16 not in {types[name] for name in (*node.input, *node.output) if name}
    # No rounding on the way between nodes that are float32 both.
    halves = {out for node in graph.node if node.op_type == "Cast" for out in node.output if types[out] == 10}
    assert all(node.name in inside for node in graph.node if halves.intersection(node.input))
    assert converted(family, "fp16").stat().st_size < 0.55 * exported(family).model.stat().st_size


@pytest.mark.parametrize("family", FAMILIES)
def test_fp16_finds_nearly_what_fp32_finds(family, converted, exported, shapes_root):
    with OnnxRuntimeBackend(exported(family).model) as plain, OnnxRuntimeBackend(converted(family, "fp16")) as half:
        for path in list_images(shapes_root / "images")[:3]:
            image = read_image(path)
            ours, theirs = (_triple(Detector(backend).detect(image)) for backend in (plain, half))
            assert match(ours, theirs, iou=0.9, score=0.02).share > 0.94


def test_fp16_leaves_named_layers_in_float32(exported):
    graph = to_float16(onnx.load(str(exported("RetinaNet").model)), ["bbox_head.retina_cls"]).graph
    types = _types(graph)
    for name, nodes in layers(graph).items():
        if nodes[0].op_type in WEIGHTED:
            kind = TensorProto.FLOAT if name == "bbox_head.retina_cls" else TensorProto.FLOAT16
            assert {types[node.input[1]] for node in nodes} == {kind}


@pytest.mark.parametrize(
    ("factor", "message"),
    [(1e7, "beyond the 65504 of FP16"), (1e5, "bbox_head.cls_convs.1.conv gives values beyond the range of FP16")],
)
def test_an_overflow_in_fp16_is_told_and_leaves_no_file(factor, message, deploy, exported, tmp_path):
    model = onnx.load(str(exported("RetinaNet").model))
    last = layers(model.graph)["bbox_head.cls_convs.1.conv"][0]
    for tensor in model.graph.initializer:
        if tensor.name == last.input[1]:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))
    onnx.save(model, str(tmp_path / "huge.onnx"))
    done = deploy("export", "--onnx", tmp_path / "huge.onnx", "--precision", "fp16")
    assert done.code == 1
    assert message in done.err
    assert "--keep-float" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["huge.onnx"]


# INT8


@pytest.mark.parametrize(
    ("family", "target"), [*((family, "cpu") for family in FAMILIES), ("RetinaNet", "tensorrt"), ("FCOS", "tensorrt")]
)
def test_int8_runs_is_small_and_keeps_the_metadata(family, target, converted, exported, shapes_root):
    path = converted(family, "int8", target)
    assert path.stat().st_size < 0.3 * exported(family).model.stat().st_size
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(str(path))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert model.ir_version == 8
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert list(metadata) == ["cskd_manifest"]
    image = read_image(list_images(shapes_root / "images")[0])
    with OnnxRuntimeBackend(path) as backend, OnnxRuntimeBackend(exported(family).model) as plain:
        assert backend.manifest.precision == f"int8-{target}"
        before, after = plain.manifest.to_dict(), backend.manifest.to_dict()
        own = ("precision", "versions", "agreement")
        assert {key: after[key] for key in before if key not in own} == {
            key: before[key] for key in before if key not in own
        }
        assert after["versions"]["onnxruntime"]
        ours, theirs = (_triple(Detector(one).detect(image)) for one in (plain, backend))
        agreement = backend.manifest.agreement
    # Rounding decides among the overlapping boxes of random weights; the logits that it decides by are nearly the same.
    assert match(ours, theirs, iou=0.5, score=0.1).share > LEAST_MATCHED[family]
    assert agreement is not None
    logits = [value for levels in agreement.correlation.values() for value in levels[:-1]]
    assert min(value for value in logits if value is not None) > 0.99


@pytest.mark.parametrize("family", ["RetinaNet", "FasterRCNN"])
def test_int8_for_the_cpu_is_unsigned_with_integer_weights_and_biases(family, converted):
    graph = _graph(converted(family, "int8", "cpu"))
    scales, zeros, dequantised = _quantisation(graph)
    for node in (node for node in graph.node if node.op_type in WEIGHTED):
        kinds = [dequantised[name].data_type if name in dequantised else None for name in node.input]
        assert kinds == [None, TensorProto.INT8, TensorProto.INT32]
        assert len(scales[node.input[1]]) == numpy_helper.to_array(dequantised[node.input[1]]).shape[0]  # per channel
        assert not zeros[node.input[1]].any()
    points = [zeros[node.output[0]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert {point.dtype for point in points} == {np.dtype(np.uint8)}
    # The range of what follows a Relu begins at 0; the Relu is that range's lower end.
    assert any(point == 0 for point in points)
    assert not any(node.op_type == "Relu" for node in graph.node)
    # Sums of decoding stay in float: a quantised sum has both operands and the result quantised.
    sums = [node for node in graph.node if node.op_type == "Add" and _is_quantised(graph, node)]
    assert len(sums) == {"RetinaNet": 8 + 2, "FasterRCNN": 8 + 3}[family]


@pytest.mark.parametrize("family", ["RetinaNet", "FCOS"])
def test_int8_for_tensorrt_is_symmetric_without_integer_biases(family, converted):
    graph = _graph(converted(family, "int8", "tensorrt"))
    scales, zeros, dequantised = _quantisation(graph)
    assert all(not point.any() and point.dtype == np.int8 for point in zeros.values())
    assert not any(tensor.data_type == TensorProto.INT32 for tensor in dequantised.values())
    types = _types(graph)
    for node in (node for node in graph.node if node.op_type in WEIGHTED):
        assert dequantised[node.input[1]].data_type == TensorProto.INT8
        assert len(scales[node.input[1]]) == numpy_helper.to_array(dequantised[node.input[1]]).shape[0]
        assert types[node.input[2]] == TensorProto.FLOAT
        # What a layer gives is not quantised before a Relu, which TensorRT fuses.
        followers = {one.op_type for one in graph.node if node.output[0] in one.input}
        assert "Relu" not in followers or "QuantizeLinear" not in followers


RTX = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt-rtx is not installed: pip install -r requirements/dev.txt",
)


@RTX
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_tensorrt_parser_takes_the_lower_precisions(precision, converted, tmp_path, tmp_path_factory, monkeypatch):
    from cskd_deploy.backends.tensorrt.export import export_engine
    from cskd_deploy.backends.tensorrt.settings import BuildSettings

    put_rtx(monkeypatch, tmp_path_factory.mktemp("modules"))

    path = converted("FCOS", precision, "tensorrt" if precision == "int8" else "")
    result = export_engine(path, tmp_path / "student.engine", BuildSettings())
    assert result.manifest.precision == {"fp16": "fp16", "int8": "int8-tensorrt"}[precision]


@pytest.mark.parametrize("target", TARGETS)
def test_named_layers_are_not_quantised(target, deploy, exported, shapes_root, tmp_path):
    images = shapes_root / "images"
    names = ("--keep-float", "bbox_head.retina_*", "--keep-float", "neck")
    options = ("--precision", "int8", "--target", target, "--calibration-images", images, "--calibration-count", 2)
    output = tmp_path / "kept.onnx"
    done = deploy("export", "--onnx", exported("RetinaNet").model, *options, *names, "--output", output, "--json")
    assert done.code == 0
    kept = json.loads(done.out)["kept_in_float"]
    assert {*HEADS, "neck.lateral_convs.0.conv", "neck.fpn_convs.4.conv"} <= set(kept)
    graph = _graph(output)
    _, _, dequantised = _quantisation(graph)
    for name, nodes in layers(graph).items():
        if nodes[0].op_type in WEIGHTED:
            rounded = {node.input[1] in dequantised for node in nodes}
            assert rounded == {name not in kept}


def test_a_student_of_dynamic_size_is_quantised_too(deploy, exported, shapes_root, tmp_path):
    from cskd_deploy.exporter.onnx import export
    from cskd_deploy.model.manifest import GraphForm

    export(exported("FCOS").checkpoint, tmp_path / "dynamic.onnx", form=GraphForm("uint8", nms="graph"))
    options = ("--precision", "int8", "--calibration-images", shapes_root / "images", "--calibration-count", 2)
    done = deploy("export", "--onnx", tmp_path / "dynamic.onnx", *options, "--output", tmp_path / "int8.onnx")
    assert done.code == 0
    graph = _graph(tmp_path / "int8.onnx")
    assert all(node.input[1] in _quantisation(graph)[2] for node in graph.node if node.op_type in WEIGHTED)


def test_a_checkpoint_becomes_an_int8_file_named_for_its_target(deploy, checkpoint, shapes_root, tmp_path):
    copy = tmp_path / "best.pth"
    copy.write_bytes(checkpoint.read_bytes())
    options = ("--precision", "int8", "--calibration-images", shapes_root / "images", "--calibration-count", 3)
    done = deploy("export", "--checkpoint", copy, *options, "--json")
    assert done.code == 0
    facts = json.loads(done.out)
    assert facts["path"] == str(tmp_path / "best.int8-cpu.onnx")
    assert facts["calibration_images"] == 3
    assert facts["manifest"]["precision"] == "int8-cpu"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.int8-cpu.onnx", "best.pth"]
    assert "calibration 3/3 images" in done.err
    shown = deploy("inspect", tmp_path / "best.int8-cpu.onnx")
    assert "int8-cpu" in shown.out
    assert "QuantizeLinear" in shown.out


# Calibration


def test_calibration_images_are_spread_over_the_folder_or_the_annotations(shapes_root, classes):
    folder = shapes_root / "images"
    every = list_images(folder)
    assert calibration_images(folder, 100, None, classes) == every
    some = calibration_images(folder, 3, None, classes)
    assert some == [every[0], every[round((len(every) - 1) / 2)], every[-1]]
    listed = calibration_images(folder, 100, shapes_root / "annotations" / "val.json", classes)
    assert listed == [path for path in every if path.name.startswith("val")]
    looked_for = calibration_images(None, 100, shapes_root / "annotations" / "val.json", classes)
    assert list(map(os.path.realpath, looked_for)) == list(map(os.path.realpath, listed))


def test_images_to_calibrate_on_are_listed_with_any_labels_or_none(shapes_root, classes, tmp_path):
    folder, listing = shapes_root / "images", tmp_path / "listing.json"
    images = json.loads((shapes_root / "annotations" / "val.json").read_text())["images"]
    expected = [path for path in list_images(folder) if path.name.startswith("val")]
    other = [{"id": 7, "name": "other"}]
    box = {"id": 1, "image_id": images[0]["id"], "category_id": 7, "bbox": [1, 2, 9, 9], "area": 81, "iscrowd": 0}
    for content in (
        {"annotations": [], "categories": []},
        {"annotations": [], "categories": other},
        {"annotations": [box], "categories": other},
        {},
    ):
        listing.write_text(json.dumps({"images": images, **content}))
        assert calibration_images(folder, 100, listing, classes) == expected
    listing.write_text(json.dumps({"images": images, "annotations": [box], "categories": []}))
    with pytest.raises(DataError, match="categories is an empty list"):
        calibration_images(folder, 100, listing, classes)
    listing.write_text("{")
    with pytest.raises(DataError, match=r"listing\.json"):
        calibration_images(folder, 100, listing, classes)


@pytest.mark.parametrize(("count", "warned"), [(7, True), (32, False)])
def test_few_calibration_images_are_warned_of(count, warned, deploy, exported, shapes_root, tmp_path):
    every = list_images(shapes_root / "images")
    for place in range(count):
        (tmp_path / f"{place}.png").symlink_to(every[place % len(every)])
    options = ("--precision", "int8", "--calibration-images", tmp_path, "--output", tmp_path / "student.onnx")
    done = deploy("export", "--onnx", exported("RetinaNet").model, *options)
    assert done.code == 0
    assert (f"export: warning: {count} calibration images are few" in done.err) == warned


def test_calibration_feeds_are_those_of_inference(model_file, shapes_root):
    paths = list_images(shapes_root / "images")[:2]
    counted: list[tuple[int, int]] = []
    with OnnxRuntimeBackend(model_file) as backend:
        detector = Detector(backend)
        feeds = list(calibration_feeds(detector, paths, ["image"], lambda *done: counted.append(done)))
        for path, feed in zip(paths, feeds, strict=True):
            expected = detector.feed(detector.prepare(read_image(path)))
            assert list(feed) == ["image"]
            np.testing.assert_array_equal(feed["image"], expected["image"])
    assert counted == [(1, 2), (2, 2)]


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--precision", "int8"), "give --calibration-images"),
        (("--precision", "int8", "--calibration-images", "nowhere"), "nowhere does not exist"),
        (("--precision", "int8", "--calibration-images", "{empty}"), "holds no image"),
        (("--precision", "int8", "--calibration-images", "{damaged}"), "bad.jpg is no image"),
        (("--precision", "int8", "--calibration-images", "{images}", "--keep-float", "neck.x"), "is no layer"),
        (("--precision", "int8", "--calibration-images", "{images}", "--keep-float", "*"), "no layer is left"),
        (("--precision", "fp16", "--keep-float", "nothing"), "is no layer"),
        (("--calibration-images", "{images}"), "is for --precision fp16 or int8, or --format trt"),
        (("--precision", "fp16", "--calibration-count", "5"), "which images: give --calibration-images"),
        (("--precision", "int8", "--calibration-images", "{images}", "--calibration-count", "1"), "on one image"),
        (("--precision", "int8", "--calibration-images", "{plain}"), "each of the 3 calibration images has a single"),
        (("--precision", "fp16", "--target", "cpu"), "is for --precision int8"),
        (("--keep-float", "neck"), "is for --precision fp16 or int8"),
        (("--precision", "int8", "--calibration-images", "{images}", "--target", "cpu", "--format", "trt"), "TensorRT"),
    ],
)
def test_bad_options_and_folders_are_one_clear_message(options, message, deploy, exported, shapes_root, tmp_path):
    folders = {name: tmp_path / name for name in ("empty", "damaged", "plain")}
    for folder in folders.values():
        folder.mkdir()
    folders["images"] = shapes_root / "images"
    for value in (0, 128, 255):
        cv2.imwrite(str(folders["plain"] / f"{value}.png"), np.full((40, 60, 3), (value, 0, 9), dtype=np.uint8))
    for name in ("bad.jpg", "worse.jpg"):
        (folders["damaged"] / name).write_bytes(b"no picture")
    given = [option.format(**folders) for option in options]
    done = deploy("export", "--onnx", exported("RetinaNet").model, "--output", tmp_path / "student.onnx", *given)
    assert done.code == 2
    assert message in done.err
    assert len([line for line in done.err.splitlines() if line.startswith("error: ")]) == 1
    assert not (tmp_path / "student.onnx").exists()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_what_is_rounded_already_is_not_rounded_again(precision, deploy, converted, shapes_root, tmp_path):
    images = ("--calibration-images", shapes_root / "images") if precision == "int8" else ()
    for source in (converted("RetinaNet", "int8", "cpu"), converted("RetinaNet", "fp16")):
        options = ("--precision", precision, *images, "--output", tmp_path / "twice.onnx")
        done = deploy("export", "--onnx", source, *options)
        assert done.code == 2
        assert "has been converted before" in done.err
        assert not list(tmp_path.iterdir())


def _graph(path: Path) -> Any:
    return onnx.load(str(path)).graph


def _triple(found: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return found.boxes, found.scores, found.labels


def _types(graph: Any) -> dict[str, int]:
    """Element type of every tensor."""
    inferred = onnx.shape_inference.infer_shapes(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    ).graph
    values = [*inferred.input, *inferred.output, *inferred.value_info]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return {**types, **{tensor.name: tensor.data_type for tensor in graph.initializer}}


def _quantisation(graph: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Any]]:
    """Of every quantised or dequantised tensor the scale and zero point; the integer weights by what they become."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    scales, zeros, dequantised = {}, {}, {}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scales[node.output[0]] = numpy_helper.to_array(weights[node.input[1]])
            zeros[node.output[0]] = numpy_helper.to_array(weights[node.input[2]])
            if node.input[0] in weights:
                dequantised[node.output[0]] = weights[node.input[0]]
    return scales, zeros, dequantised


def _is_quantised(graph: Any, node: Any) -> bool:
    makers = {out: one.op_type for one in graph.node for out in one.output}
    takers = {one.op_type for one in graph.node if node.output[0] in one.input}
    return all(makers.get(name) == "DequantizeLinear" for name in node.input) and takers == {"QuantizeLinear"}
