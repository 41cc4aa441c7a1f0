"""INT8 with FP16 around it, in one file for TensorRT.

TensorRT's networks are strongly typed: what the file leaves in FP32 is computed in FP32. So what stands between
quantised layers is FP16 here, and the scales are FP16 too, for DequantizeLinear gives the type of its scale. That takes
opset 19.

Of a residual sum the input that comes along the shortcut is quantised, as NVIDIA recommends (TensorRT's documentation,
"Explicit Quantization", Q/DQ layer-placement): then a convolution, the sum after it and the Relu are one INT8 kernel,
which reads and writes 8 bits. With a float shortcut that kernel's output is float.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cskd_deploy.lower.fp16 import to_float16
from cskd_deploy.lower.layers import WEIGHTED, network

OPSET = 19  # the first in which QuantizeLinear and DequantizeLinear take FP16
IR_VERSION = 9  # that opset 19 came with
_LARGEST_INT8 = 127
# Scales below are made this large: FP16 has four bits left for them, and what they would resolve is nothing to a sum.
_LEAST_SCALE = 2.0**-20

Ranges = Mapping[str, tuple[float, float]]  # least and largest value by tensor


@dataclass(frozen=True)
class ResidualSum:
    """A sum that TensorRT can compute within the layer before it."""

    name: str  # of its node
    layer: str  # the node of the layer with weights, of whose output nothing else reads the values
    residual: str  # the other input


def residual_sums(graph: Any) -> list[ResidualSum]:
    """Those of the network of a float `onnx.GraphProto`."""
    makers = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node if node.op_type != "Shape" for name in node.input)
    readers.update(value.name for value in graph.output)
    constants = {tensor.name for tensor in graph.initializer}
    found = []
    for node in network(graph):
        if node.op_type != "Add" or constants.intersection(node.input):
            continue
        for name, other in (tuple(node.input), tuple(node.input)[::-1]):
            if name in makers and makers[name].op_type in WEIGHTED and readers[name] == 1:
                found.append(ResidualSum(node.name, makers[name].name, other))
                break
    return found


def with_fp16_around(model: Any, sums: Sequence[ResidualSum], ranges: Ranges) -> Any:
    """A quantised `onnx.ModelProto` (`int8.Quantizer`, target tensorrt) whose network is FP16 where it is not INT8.

    Args:
        sums: of the float network; one whose layer is not quantised stays as it is.
        ranges: of the residual inputs at least.

    Raises:
        CheckFailed: a weight or bias is too large for FP16.
    """
    import onnx

    _quantise_residuals(model.graph, sums, ranges)
    _round_scales(model.graph)
    model = onnx.version_converter.convert_version(model, OPSET)
    model.ir_version = IR_VERSION
    return to_float16(model, ())


def _quantise_residuals(graph: Any, sums: Sequence[ResidualSum], ranges: Ranges) -> None:
    nodes = {node.name: node for node in graph.node}
    makers = {name: node.op_type for node in graph.node for name in node.output}
    pairs: dict[str, list[Any]] = {}  # of QuantizeLinear and DequantizeLinear, by the tensor that they round
    for one in sums:
        # What a quantised layer reads is rounded for its other readers, too: most shortcuts are.
        node = nodes[one.name]
        if makers.get(nodes[one.layer].input[0]) == "DequantizeLinear" and one.residual in node.input:
            if one.residual not in pairs:
                pairs[one.residual] = _new_pair(graph, one.residual, ranges)
            node.input[list(node.input).index(one.residual)] = pairs[one.residual][1].output[0]
    ordered = []
    for node in graph.node:
        ordered.append(node)
        for name in node.output:
            ordered += pairs.get(name, [])
    del graph.node[:]
    graph.node.extend(ordered)


def _new_pair(graph: Any, tensor: str, ranges: Ranges) -> list[Any]:
    from onnx import helper, numpy_helper

    scale, zero, rounded, restored = (f"{tensor}_residual_{part}" for part in ("scale", "zero", "int8", "float"))
    largest = max(abs(end) for end in ranges[tensor])
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(largest / _LARGEST_INT8, dtype=np.float32), scale),
            numpy_helper.from_array(np.array(0, dtype=np.int8), zero),
        ]
    )
    return [
        helper.make_node("QuantizeLinear", [tensor, scale, zero], [rounded], name=f"{tensor}_residual_quantize"),
        helper.make_node("DequantizeLinear", [rounded, scale, zero], [restored], name=f"{tensor}_residual_dequantize"),
    ]


def _round_scales(graph: Any) -> None:
    """Make every scale one that FP16 has, and round integer weights anew for their new scales."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    before: dict[str, np.ndarray] = {}
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        name = node.input[1]
        if name not in before:
            before[name] = numpy_helper.to_array(constants[name])
            scales = np.maximum(before[name], _LEAST_SCALE).astype(np.float16).astype(np.float32)
            constants[name].CopyFrom(numpy_helper.from_array(scales, name))
        if node.input[0] in constants:
            weights = numpy_helper.to_array(constants[node.input[0]])
            shape = [-1 if axis == _axis(node) else 1 for axis in range(weights.ndim)] if before[name].ndim else []
            factor = (before[name] / numpy_helper.to_array(constants[name])).reshape(shape)
            rounded = np.rint(weights * factor).clip(-_LARGEST_INT8, _LARGEST_INT8).astype(np.int8)
            constants[node.input[0]].CopyFrom(numpy_helper.from_array(rounded, node.input[0]))


def _axis(node: Any) -> int:
    """Of the channels that have scales of their own; 1 by the standard."""
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
