"""Deployment of distilled detectors: export, benchmark, evaluation.

    import cv2
    import cskd_deploy

    with cskd_deploy.load("student.onnx") as detector:
        detections = detector.detect(cv2.imread("photo.jpg"))
        for box, score, label in zip(detections.boxes, detections.scores, detections.labels):
            print(detector.classes[label], score, box)  # x1, y1, x2, y2 in pixels of the photo

Nothing is imported before it is used: `load` needs the runtime of the file, `export` needs PyTorch and cskd-train.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cskd_deploy.detect.detector import Detector
    from cskd_deploy.detect.postprocess import Detections
    from cskd_deploy.errors import BackendMissing, CheckFailed, DeployError
    from cskd_deploy.exporter.onnx import ExportResult

__version__ = "0.2.0"
__all__ = ["BackendMissing", "CheckFailed", "DeployError", "Detections", "Detector", "ExportResult", "export", "load"]

_CLASSES = {
    "BackendMissing": "errors",
    "CheckFailed": "errors",
    "DeployError": "errors",
    "Detections": "detect.postprocess",
    "Detector": "detect.detector",
    "ExportResult": "exporter.onnx",
}


def __getattr__(name: str) -> Any:
    """The classes that the functions take and give, imported when they are asked for."""
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_CLASSES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load(
    model: str | PathLike[str],
    *,
    backend: str | None = None,
    threads: int | None = None,
    allow_external_data: bool = False,
    buffers: str | None = None,
    trust_engine: bool = False,
    cuda_graph: bool = False,
) -> Detector:
    """Load a model for detection: `load("student.onnx").detect(image)`.

    The detector is a context manager, which lets go of the model at its end; without `with`, `Detector.close` does.

    Args:
        model: a file of `export` (ONNX), a TensorRT engine with its manifest, or a checkpoint, which runs in PyTorch.
        backend: one of `cskd_deploy.backends.NAMES`; by default the one for the file's name.
        threads: of ONNX Runtime and PyTorch; None takes every core that this process may use.
        allow_external_data: ONNX: weights may lie in other files below the model's folder.
        buffers: TensorRT: the package that holds GPU memory; by default the first one found.
        trust_engine: TensorRT: load an engine that no manifest vouches for.
        cuda_graph: TensorRT: replay the work as a CUDA graph.

    Raises:
        DeployError: the file is missing, damaged, of another kind, or not for this backend.
        BackendMissing: the runtime, or what it needs, is not installed; the message says how to install it.
    """
    from cskd_deploy.backends import backend_for
    from cskd_deploy.detect.detector import Detector

    opened = backend_for(
        Path(model),
        backend,
        threads=threads,
        allow_external_data=allow_external_data,
        buffers=buffers,
        trust_engine=trust_engine,
        cuda_graph=cuda_graph,
    )
    opened.load()
    return Detector(opened)


def export(
    checkpoint: str | PathLike[str],
    output: str | PathLike[str] | None = None,
    *,
    config: str | PathLike[str] | None = None,
    input_sizes: Sequence[tuple[int, int]] = (),
    graph_input: str = "uint8",
    nms: str = "outside",
    batch: int | None = 1,
    progress: Callable[[str], None] = lambda line: None,
) -> ExportResult:
    """Export a student to an ONNX file, which gets its name after it has been compared with mmdet.

    Args:
        checkpoint: of cskd-train, or of mmdet with its `config`.
        output: the file to write; by default the checkpoint's name with `.onnx`, beside it.
        config: a config file in place of the one stored in the checkpoint.
        input_sizes: none for a graph that takes every image as mmdet resizes and pads it; one (height, width) for a
            graph of that size; two that differ for one whose images are padded to either, a pair of orientations.
        graph_input: "uint8" for raw pixels `(N, H, W, 3)` BGR, which the graph normalises; "float" for normalised
            images `(N, 3, H, W)`.
        nms: "outside", or "graph" for ONNX's NonMaxSuppression and a fixed number of detections.
        batch: images at a time; None takes any number. With Faster R-CNN or `nms="graph"` 1.
        progress: called with a line for each step.

    Raises:
        DeployError: the checkpoint cannot be used, its family cannot be exported, the form is none of a graph, or
            `output` cannot be written.
        BackendMissing: torch, cskd-train, onnx, onnxslim or onnxruntime is not installed.
        CheckFailed: the exported graph does not compute what mmdet does; no file is written.
    """
    from cskd_deploy.errors import DeployError
    from cskd_deploy.exporter import onnx
    from cskd_deploy.model.manifest import GraphForm

    try:
        form = GraphForm(input=graph_input, nms=nms, batch=batch)
    except ValueError as error:
        raise DeployError(str(error)) from error
    try:
        sizes = [(int(height), int(width)) for height, width in input_sizes]
    except (TypeError, ValueError) as error:
        raise DeployError(f"input_sizes is {input_sizes!r}, expected pairs such as [(800, 1344)]") from error
    source = Path(checkpoint)
    return onnx.export(
        source,
        source.with_suffix(".onnx") if output is None else Path(output),
        None if config is None else Path(config),
        sizes,
        progress,
        form,
    )
