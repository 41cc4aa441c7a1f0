"""FP16: the network in half precision, all else as it was.

The converter of ONNX Runtime (`onnxruntime.transformers.float16`) is not used: told to leave nodes in float32, it gives
two new nodes the same name, and rounds what passes between two such nodes to FP16. Box corners beyond 1024 would be
whole pixels.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from cskd_deploy.errors import CheckFailed
from cskd_deploy.lower.layers import HALF, layers

# Inputs that are float32 by the standard, whatever the first input is.
_ALWAYS_FLOAT = {"Resize": (1, 2)}
# Boxes have the type of the features here.
_FLOAT_OPERATORS = ("RoiAlign",)
_LARGEST = float(np.finfo(np.float16).max)


def to_float16(model: Any, keep: Collection[str]) -> Any:
    """A copy of an `onnx.ModelProto` whose network computes in FP16; inputs and outputs stay as they are.

    Args:
        keep: layers that stay in float32, by the names of `layers`.

    A quantised model, of opset 19 or later, gets FP16 scales within its network.

    Raises:
        CheckFailed: a weight is too large for FP16.
    """
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model)
    graph = inferred.graph
    floats = _float_tensors(graph)
    halved = {
        node.name
        for name, nodes in layers(graph).items()
        if name not in keep
        for node in nodes
        if node.op_type not in _FLOAT_OPERATORS
    }
    halved |= _dequantising_for(graph, halved)
    builder = _Builder(graph, {out for node in graph.node if node.name in halved for out in node.output} & floats)
    for node in graph.node:
        if node.name in halved:
            always = _ALWAYS_FLOAT.get(node.op_type, ())
            for place, name in enumerate(node.input):
                if name in floats and place not in always:
                    node.input[place] = builder.as_half(name)
            builder.nodes.append(node)
            for place, name in enumerate(node.output):
                if name in floats:
                    node.output[place] = builder.half_name(name)
        elif node.op_type == "Shape":  # which reads no values
            node.input[0] = builder.as_made(node.input[0])
            builder.nodes.append(node)
        else:
            for name in node.input:
                builder.as_float(name)
            builder.nodes.append(node)
    for output in graph.output:
        builder.as_float(output.name)
    del graph.node[:]
    graph.node.extend(builder.nodes)
    _drop_unused_initializers(graph)
    return inferred


def _dequantising_for(graph: Any, halved: Collection[str]) -> set[str]:
    """The names of the nodes that give integers as floats to halved nodes alone, as those of weights do."""
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.name)
    return {
        node.name
        for node in graph.node
        if node.op_type == "DequantizeLinear"
        and (readers_of := readers.get(node.output[0]))
        and all(name in halved for name in readers_of)
    }


def half_layers(model: Any) -> dict[str, list[str]]:
    """Of a model that `to_float16` made, the FP16 tensors that each layer gives."""
    return {
        name: halves
        for name, nodes in layers(model.graph).items()
        if (halves := [out for node in nodes for out in node.output if out.endswith(HALF)])
    }


class _Builder:
    """The nodes of the new graph, with a cast wherever a tensor is wanted in a type that it does not have."""

    def __init__(self, graph: Any, halves: Collection[str]) -> None:
        self.nodes: list[Any] = []
        self._graph = graph
        self._halves = halves  # tensors that the network makes, by their old names
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._there: set[str] = set()

    def half_name(self, name: str) -> str:
        return name + HALF

    def as_made(self, name: str) -> str:
        """The name of a tensor in the type that it was made in."""
        return self.half_name(name) if name in self._halves else name

    def as_half(self, name: str) -> str:
        """The name of a tensor's FP16 form, which is there from now on."""
        half = self.half_name(name)
        if name in self._weights:
            if half not in self._there:
                self._graph.initializer.append(_half(self._weights[name], half))
        elif name not in self._halves and half not in self._there:
            self._cast(name, half, "FLOAT16")
        self._there.add(half)
        return half

    def as_float(self, name: str) -> None:
        """Make sure that a tensor is there in float32 under its own name."""
        if name in self._halves and name not in self._there:
            self._cast(self.half_name(name), name, "FLOAT")
            self._there.add(name)

    def _cast(self, source: str, target: str, kind: str) -> None:
        from onnx import TensorProto, helper

        self.nodes.append(
            helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=getattr(TensorProto, kind))
        )


def _half(tensor: Any, name: str) -> Any:
    from onnx import numpy_helper

    values = numpy_helper.to_array(tensor)
    if values.size and not np.abs(values).max() <= _LARGEST:
        raise CheckFailed(
            f"the weights {tensor.name} reach {np.abs(values).max():.3g}, beyond the {_LARGEST:g} of FP16. No file was "
            "written. Keep their layer in float with --keep-float"
        )
    return numpy_helper.from_array(values.astype(np.float16), name)


def _float_tensors(graph: Any) -> set[str]:
    from onnx import TensorProto

    values = [*graph.input, *graph.output, *graph.value_info]
    names = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return names | {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}


def _drop_unused_initializers(graph: Any) -> None:
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
