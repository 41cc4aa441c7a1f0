"""Which layers of an exported graph cost most: by counting, or by ONNX Runtime's own clock."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cskd_deploy.backends.base import IMAGE_SHAPE, INPUT
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.detect.detector import Detector
from cskd_deploy.errors import DeployError
from cskd_deploy.measure.bench import random_images

Shape = tuple[int | None, ...]
MULTIPLYING = ("Conv", "Gemm", "MatMul")
RUNS = 10


@dataclass(frozen=True)
class CountedLayer:
    """A convolution or a product of matrices."""

    name: str
    operator: str
    output: str  # its shape
    macs: int | None  # multiplications with addition for one image; None where the shape depends on the data
    parameters: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class TimedLayer:
    """A node as ONNX Runtime ran it, after its optimisations."""

    name: str
    operator: str
    milliseconds: float  # mean of a run
    share: float  # of all nodes

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)


def count_layers(model: Any, input_size: tuple[int, int]) -> list[CountedLayer]:
    """The layers of an `onnx.ModelProto`, those with most multiplications first.

    Args:
        model: changed: dimensions that are dynamic are set to one image of `input_size`.
        input_size: (height, width).
    """
    from onnx import shape_inference

    _fix_inputs(model.graph, input_size)
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {value.name: _shape(value) for value in (*graph.value_info, *graph.input, *graph.output)}
    weights = {value.name: tuple(value.dims) for value in graph.initializer}
    # Of a quantised or converted weight the stored tensor counts.
    for node in graph.node:
        if node.op_type in ("DequantizeLinear", "Cast") and node.input[0] in weights:
            weights[node.output[0]] = weights[node.input[0]]
    shapes.update(weights)
    found = []
    for node in graph.node:
        if node.op_type in MULTIPLYING:
            parameters = sum(math.prod(weights[name]) for name in node.input if name in weights)
            output = " x ".join("?" if size is None else str(size) for size in shapes.get(node.output[0], ()))
            found.append(CountedLayer(node.name, node.op_type, output, _macs(node, shapes), parameters))
    return sorted(found, key=lambda layer: -(layer.macs or 0))


def time_layers(path: Path, threads: int | None = None, allow_external_data: bool = False) -> list[TimedLayer]:
    """Run a model some times on a random image under ONNX Runtime's profiler; the slowest nodes first.

    Raises:
        DeployError: the file cannot be used.
    """
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "profile"
        options = {"allow_external_data": allow_external_data, "profile": prefix}
        with OnnxRuntimeBackend(path, threads, **options) as backend:  # type: ignore[arg-type]
            detector = Detector(backend)
            prepared = detector.prepare(random_images(detector.manifest.preprocessing.input_size, count=1)[0])
            for _ in range(RUNS + 1):
                detector.infer(prepared)
            events = json.loads(backend.end_profile().read_text())
    return timed_layers(events)


def timed_layers(events: list[Mapping[str, Any]]) -> list[TimedLayer]:
    """The nodes among the events of ONNX Runtime's profile, without the first run of each, which is not warm.

    Raises:
        DeployError: there is none.
    """
    times: dict[str, list[float]] = {}
    operators = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            name = name.removesuffix("_kernel_time")
            times.setdefault(name, []).append(event["dur"] / 1e3)
            operators[name] = str(event["args"].get("op_name", ""))
    if not times:
        raise DeployError("ONNX Runtime's profile names no node")
    runs = max(map(len, times.values()))
    means = {name: sum(values[len(values) // runs :]) / max(runs - 1, 1) for name, values in times.items()}
    total = sum(means.values())
    slowest = sorted(means, key=lambda name: -means[name])
    return [TimedLayer(name, operators[name], means[name], means[name] / total if total else 0.0) for name in slowest]


def _macs(node: Any, shapes: Mapping[str, Shape]) -> int | None:
    """Values of the output, times values that each of them is a sum of."""
    output, weight = shapes.get(node.output[0], ()), shapes.get(node.input[1], ())
    if not output or not weight or None in output or None in weight:
        return None
    if node.op_type == "Conv":
        terms = weight[1:]  # (input channels of a group, kernel height, kernel width)
    else:
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        terms = weight[-1:] if transposed or len(weight) == 1 else weight[-2:-1]
    return math.prod(size or 0 for size in (*output, *terms))


def _fix_inputs(graph: Any, input_size: tuple[int, int]) -> None:
    for value in graph.input:
        dimensions = value.type.tensor_type.shape.dim
        if value.name == IMAGE_SHAPE:
            dimensions[0].dim_value = 1
        elif value.name == INPUT:
            # uint8 pixels have the channels last
            height = 1 if dimensions[3].dim_value == 3 and dimensions[1].dim_value != 3 else 2
            for place, size in ((0, 1), (height, input_size[0]), (height + 1, input_size[1])):
                dimensions[place].dim_value = size
    # Shapes that were written down for dynamic sizes would stand against the fixed ones.
    del graph.value_info[:]


def _shape(value: Any) -> Shape:
    tensor = value.type.tensor_type
    return tuple(size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim)
