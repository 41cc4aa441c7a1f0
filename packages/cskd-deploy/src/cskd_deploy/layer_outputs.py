"""What the layers of two ONNX files give for the same images, tensor by tensor of the same name."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cskd_data.images import read_image
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.detector import Detector
from cskd_deploy.errors import BackendMissing, DeployError

LAYERS = ("Conv", "Gemm", "MatMul", "ConvTranspose")
# Quantisation may merge an activation into its layer, which then has the activation's name.
_ACTIVATIONS = ("Relu", "Clip", "Sigmoid", "Add")
_CHOICES = ("TopK", "NonMaxSuppression")
HALF = "_fp16"  # after the name of a tensor in an FP16 file


@dataclass(frozen=True)
class LayerDifference:
    """How far a layer's output lies apart in two files, over all images."""

    name: str
    largest: float  # absolute difference
    mean: float  # absolute difference
    cosine: float  # of the two outputs as vectors, the smallest of any image

    def __str__(self) -> str:
        return f"{self.cosine:9.6f} {self.largest:11.3e} {self.mean:11.3e}  {self.name}"


class Output(NamedTuple):
    """An output of a layer in one file."""

    operator: str  # that gives it
    tensor: str  # that the next layer sees: it, or what quantisation makes of it


def compare_layers(
    first: Path, second: Path, paths: Sequence[Path], threads: int | None, progress: Callable[[int, int], None]
) -> tuple[LayerDifference, ...]:
    """The difference of each layer output that both files have, in the order of the graph.

    Of a quantised output the values after quantisation are taken, as the next layer sees them: an activation that was
    merged into its layer happens there. Layers after a choice among candidates are left out (the second stage of Faster
    R-CNN): another rounding chooses in another order, and their rows are not of the same candidates.

    Raises:
        BackendMissing: the onnx package is not installed.
        DeployError: the files share no layer output.
    """
    models = [_read(path) for path in (first, second)]
    outputs = [_outputs(model.graph) for model in models]
    names = _common_names(*outputs)
    if not names:
        raise DeployError(
            f"{first} and {second} have no layer output of the same name: were they made from the same export?"
        )
    sums = {name: [0.0, 0.0, 0, 1.0] for name in names}  # largest, sum, count, smallest cosine
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        detectors, tensors = [], []
        for place, model in enumerate(models):
            path = Path(folder) / f"{place}.onnx"
            tensors.append([outputs[place][name].tensor for name in names])
            path.write_bytes(_with_outputs(model, tensors[place]))
            detectors.append(Detector(stack.enter_context(OnnxRuntimeBackend(path, threads))))
        for done, path in enumerate(paths, start=1):
            image = read_image(path)
            values = [_run(detector, image, wanted) for detector, wanted in zip(detectors, tensors, strict=True)]
            for name, ours, theirs in zip(names, *values, strict=True):
                _add(sums[name], ours, theirs, name)
            progress(done, len(paths))
    return tuple(
        LayerDifference(name, largest, total / max(count, 1), cosine)
        for name, (largest, total, count, cosine) in sums.items()
    )


def _read(path: Path) -> Any:
    try:
        onnx = importlib.import_module("onnx")
    except ImportError as error:
        raise BackendMissing(f"--layers needs onnx, which cannot be imported ({error}): `pip install onnx`") from error
    return onnx.load(str(path), load_external_data=False)


def _common_names(first: dict[str, Output], second: dict[str, Output]) -> list[str]:
    """Outputs of a layer in either graph that are tensors of both, in the order of the first."""
    return [
        name
        for name, one in first.items()
        if name in second and (one.operator in LAYERS or second[name].operator in LAYERS)
    ]


def _outputs(graph: Any) -> dict[str, Output]:
    """The outputs of layers and activations by the name that they have in the FP32 file."""
    quantised = {node.input[0]: node.output[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    restored = {node.input[0]: node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    chosen: set[str] = set()  # tensors that hang on a choice
    found = {}
    for node in graph.node:  # in topological order
        if node.op_type in _CHOICES or chosen.intersection(node.input):
            chosen.update(node.output)
        elif node.op_type in (*LAYERS, *_ACTIVATIONS):
            for name in node.output:
                found[name.removesuffix(HALF)] = Output(node.op_type, restored.get(quantised.get(name, ""), name))
    return found


def _with_outputs(model: Any, names: Sequence[str]) -> bytes:
    """The model with further outputs; their types and shapes are the runtime's to find."""
    onnx = importlib.import_module("onnx")
    present = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    content: bytes = model.SerializeToString()
    return content


def _run(detector: Detector, image: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
    backend = detector.backend
    assert isinstance(backend, OnnxRuntimeBackend)
    feed = detector.feed(detector.prepare(image))
    inputs = {value.name for value in backend.session.get_inputs()}
    found: list[np.ndarray] = backend.session.run(list(names), {name: feed[name] for name in inputs})
    return found


def _add(sums: list[Any], ours: np.ndarray, theirs: np.ndarray, name: str) -> None:
    if ours.shape != theirs.shape:
        raise DeployError(
            f"layer output {name} is {ours.shape} in the first file and {theirs.shape} in the second: compare files of "
            "one input size"
        )
    ours, theirs = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
    apart = np.abs(ours - theirs)
    length = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    cosine = float(ours @ theirs) / length if length else float(not apart.any())
    sums[0] = max(sums[0], float(apart.max(initial=0.0)))
    sums[1] += float(apart.sum())
    sums[2] += apart.size
    sums[3] = min(sums[3], cosine)
