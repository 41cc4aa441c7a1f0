"""INT8 for processors gives the same numbers with every instruction set; a file that does not says so on loading."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend, import_onnxruntime
from cskd_deploy.lower.calibration import calibration_feeds
from cskd_deploy.lower.int8 import PRESETS, Quantizer
from cskd_deploy.measure import environment
from cskd_deploy.measure.environment import describe, instruction_sets, lacks
from cskd_deploy.model.manifest import MANIFEST_KEY, manifest_from_metadata

from .test_bench import MANIFEST

AVX2 = "model name\t: Some Atom\nflags\t\t: fpu sse4_1 avx2 movbe fma\n"
ICE_LAKE = "flags\t\t: sse4_1 avx2 avx512f avx512vl avx512_vnni\n"
ALDER_LAKE = "flags : avx_vnni avx2 sse4_1\nflags : of another core\n"
ARM = "BogoMIPS\t: 50.00\nFeatures\t: fp asimd evtstrm asimddp i8mm\n"
SETS = instruction_sets()
HERE = "without VNNI" if lacks(("vnni",), SETS) else "with VNNI or in 32 bits"


@pytest.mark.parametrize(
    ("text", "sets", "missing"),
    [
        (AVX2, ("sse4_1", "avx2"), ("vnni",)),
        (ICE_LAKE, ("sse4_1", "avx2", "avx512f", "avx512_vnni"), ()),
        (ALDER_LAKE, ("sse4_1", "avx2", "avx_vnni"), ()),
        (ARM, ("i8mm", "neon", "dotprod"), ()),
        ("processor : 0\n", (), ()),  # the system does not tell: nothing is claimed
    ],
)
def test_instruction_sets_are_read_from_the_system(text, sets, missing, tmp_path):
    (tmp_path / "cpuinfo").write_text(text)
    assert instruction_sets(tmp_path / "cpuinfo") == sets
    assert lacks(("vnni",), sets) == missing
    assert lacks((), sets) == ()
    assert instruction_sets(tmp_path / "nowhere") == ()


def test_doctor_and_every_record_name_them(deploy, monkeypatch):
    monkeypatch.setattr("cskd_deploy.commands.doctor.instruction_sets", lambda: ("avx2", "avx_vnni"))
    monkeypatch.setattr(environment, "instruction_sets", lambda: ("avx2", "avx_vnni"))
    (line,) = [line for line in deploy("doctor").out.splitlines() if line.startswith("ok      processor")]
    assert line.endswith("; avx2, avx_vnni")
    assert describe(threads=1)["instruction_sets"] == ["avx2", "avx_vnni"]


@pytest.mark.parametrize(
    ("schema", "precision", "requires"),
    [(3, "int8-cpu", ("vnni",)), (2, "int8-tensorrt", ()), (3, "fp32", ()), (4, "int8-cpu", ())],
)
def test_only_int8_files_of_earlier_versions_require_vnni(schema, precision, requires):
    data = json.loads(dataclasses.replace(MANIFEST, precision=precision).to_metadata()[MANIFEST_KEY])
    found = manifest_from_metadata({MANIFEST_KEY: json.dumps({**data, "schema": schema})}, "x.onnx")
    assert (found.requires, found.agreement) == (requires, None)


@pytest.mark.parametrize(("sets", "noted"), [(("sse4_1", "avx2"), True), (("avx2", "avx_vnni"), False), ((), False)])
def test_a_file_that_a_processor_computes_otherwise_says_so_on_loading(sets, noted, exported, tmp_path, monkeypatch):
    model = onnx.load(str(exported("FCOS").model))
    (entry,) = model.metadata_props
    entry.value = json.dumps({**json.loads(entry.value), "requires": ["vnni"]})
    onnx.save(model, str(tmp_path / "former.onnx"))
    monkeypatch.setattr("cskd_deploy.backends.onnxruntime.instruction_sets", lambda: sets)
    with OnnxRuntimeBackend(exported("FCOS").model) as backend:
        assert backend.notes == ()
    with OnnxRuntimeBackend(tmp_path / "former.onnx") as backend:
        line = f"{backend.path}: its numbers differ on this processor, which lacks VNNI: export it again"
        assert backend.notes == ((line,) if noted else ())


# The kernels


class Layer(NamedTuple):
    """A quantised convolution of a file: its integers, and how sums become the next layer's values."""

    name: str
    model: Any  # the layer alone, from integers to integers
    weights: np.ndarray  # (out, in, rows, columns)
    bias: np.ndarray
    factors: np.ndarray  # (out,): of a sum to a step of the output
    zero_in: int
    zero_out: int
    strides: tuple[int, int]
    pads: tuple[int, int]


@pytest.fixture(scope="module", params=[True, False], ids=["7 bits", "8 bits"])
def quantised(request, tmp_path_factory, exported, shapes_root) -> tuple[bool, Any]:
    """RetinaNet for processors with weights of 7 bits, as the preset has them, and of 8."""
    from cskd_data.images import list_images
    from cskd_deploy.detect.detector import Detector

    preset = PRESETS["cpu"]
    with pytest.MonkeyPatch.context() as patch, OnnxRuntimeBackend(exported("RetinaNet").model) as backend:
        if not request.param:
            patch.setitem(PRESETS, "cpu", dataclasses.replace(preset, seven_bits=False))
        paths = list_images(shapes_root / "images")[:2]
        feeds = calibration_feeds(Detector(backend), paths, ["image", "image_shape"], lambda done, total: None)
        model = Quantizer(exported("RetinaNet").model, "cpu", feeds, tmp_path_factory.mktemp("int8")).quantise(())
    return request.param, model


def test_no_sum_of_two_products_exceeds_16_bits_with_weights_of_7(quantised):
    seven, model = quantised
    extremes = {int(np.abs(tensor).max()) for tensor in _weights(model).values()}
    assert extremes == ({64} if seven else {127})
    assert (2 * 255 * max(extremes) <= np.iinfo(np.int16).max) == seven


@pytest.mark.parametrize("pattern", ["photograph", "bright"])
def test_saturating_sums_are_the_exact_ones_with_weights_of_7_bits_only(pattern, quantised):
    seven, model = quantised
    different = 0
    for layer in _layers(model):
        values = _input(layer, pattern)
        different += int((_sums(layer, values, saturating=True) != _sums(layer, values)).sum())
    assert (different == 0) == (seven or pattern == "photograph")


@pytest.mark.parametrize("pattern", ["photograph", "bright"])
@pytest.mark.parametrize("sets", [pytest.param(SETS, id=f"on a processor {HERE}: {' '.join(SETS)}")])
def test_onnx_runtime_computes_in_exact_integers(pattern, sets, quantised):
    seven, model = quantised
    if not seven and lacks(("vnni",), sets):
        pytest.skip("weights of 8 bits are not exact here")
    runtime = import_onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    for layer in _layers(model):
        values = _input(layer, pattern)
        session = runtime.InferenceSession(layer.model.SerializeToString(), options, ["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: values})
        scaled = _sums(layer, values).astype(np.float32) * layer.factors[:, None, None]
        expected = (np.rint(scaled) + layer.zero_out).clip(0, 255)
        np.testing.assert_array_equal(found[0], expected, err_msg=layer.name)


def _weights(model: Any) -> dict[str, np.ndarray]:
    """The integers of every weight, by the name of what they become."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    return {
        node.output[0]: numpy_helper.to_array(stored[node.input[0]])
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] in stored
        and stored[node.input[0]].data_type == onnx.TensorProto.INT8
    }


def _layers(model: Any) -> list[Layer]:
    """Some convolutions that take integers and give integers, of the backbone and the head."""
    makers = {name: node for node in model.graph.node for name in node.output}
    takers = {name: node for node in model.graph.node for name in node.input}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = []
    wanted = ("/backbone/layer1/layer1.0/conv1/Conv", "/backbone/layer2/layer2.0/downsample/", "/bbox_head/retina_cls")
    for node in model.graph.node:
        if node.op_type != "Conv" or not node.name.startswith(wanted):
            continue
        before, weights, bias = (makers[name] for name in node.input)
        after = takers[node.output[0]]
        assert (before.op_type, after.op_type) == ("DequantizeLinear", "QuantizeLinear")
        integers = stored[weights.input[0]]
        scales = [stored[one.input[1]].astype(np.float32) for one in (before, weights, after)]
        attributes = {one.name: tuple(one.ints) for one in node.attribute}
        found.append(
            Layer(
                name=node.name,
                model=_alone(model, [before, weights, bias, node, after]),
                weights=integers,
                bias=stored[bias.input[0]],
                factors=scales[0] * scales[1] / scales[2],
                zero_in=int(stored[before.input[2]]),
                zero_out=int(stored[after.input[2]]),
                strides=attributes.get("strides", (1, 1)),
                pads=attributes.get("pads", (0, 0, 0, 0))[:2],
            )
        )
    assert len(found) == 1 + 1 + 5
    return found


def _alone(model: Any, nodes: list[Any]) -> Any:
    """A model of some nodes, from the first one's input to the last one's output, both integers."""
    used = {name for node in nodes for name in node.input}
    begin, end = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None)
        for name in (nodes[0].input[0], nodes[-1].output[0])
    )
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in used]
    graph = onnx.helper.make_graph(nodes, "layer", [begin], [end], tensors)
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=8)


def _input(layer: Layer, pattern: str) -> np.ndarray:
    """Integers `(1, channels, 5, 7)`: below a quarter of the range, or all at its end."""
    shape = (1, layer.weights.shape[1], 5, 7)
    if pattern == "bright":
        return np.full(shape, 255, dtype=np.uint8)
    return np.random.default_rng(3).integers(0, 64, shape, dtype=np.uint8)


def _sums(layer: Layer, values: np.ndarray, saturating: bool = False) -> np.ndarray:
    """The layer's sums as integers, `(out, rows, columns)`.

    Args:
        saturating: as AVX2's kernels have them: the products of two neighbouring channels are added in 16 bits.
    """
    rows, columns = layer.weights.shape[2:]
    (top, left), (down, across) = layer.pads, layer.strides
    padding = ((0, 0), (top, top), (left, left))
    padded = np.pad(values[0].astype(np.int64), padding, constant_values=layer.zero_in)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (rows, columns), axis=(1, 2))[:, ::down, ::across]
    weights = layer.weights.astype(np.int64)
    sums = np.zeros((len(weights), *windows.shape[1:3]), dtype=np.int64)
    for row in range(rows):
        for column in range(columns):
            products = weights[:, :, row, column][:, :, None, None] * windows[None, :, :, :, row, column]
            if saturating:
                products = (products[:, ::2] + products[:, 1::2]).clip(-(2**15), 2**15 - 1)
            sums += products.sum(axis=1)
    sums -= layer.zero_in * weights.sum(axis=(1, 2, 3))[:, None, None]
    return sums + layer.bias[:, None, None]
