"""Deployment of distilled detectors: export, benchmark, evaluation.

    import cv2
    import cskd_deploy

    with cskd_deploy.load("student.onnx") as detector:
        detections = detector.detect(cv2.imread("photo.jpg"))
        for box, score, label in zip(detections.boxes, detections.scores, detections.labels):
            print(detector.classes[label], score, box)  # x1, y1, x2, y2 in pixels of the photo

`export`, `evaluate` and `benchmark` are what `cskd-deploy export`, `eval` and `bench` do.

Nothing is imported before it is used: `load` needs the runtime of the file, `export` needs PyTorch and cskd-train.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import warn

if TYPE_CHECKING:
    from cskd_deploy.accuracy.eval import EvaluationResult
    from cskd_deploy.detect.detector import Detector
    from cskd_deploy.detect.postprocess import Detections
    from cskd_deploy.errors import BackendMissing, CheckFailed, DeployError
    from cskd_deploy.exporter.onnx import ExportResult
    from cskd_deploy.lower.conversion import PrecisionResult
    from cskd_deploy.measure.report import BenchReport

AnyPath = str | PathLike[str]

__version__ = "0.2.0"
__all__ = [
    "BackendMissing",
    "BenchReport",
    "CheckFailed",
    "DeployError",
    "Detections",
    "Detector",
    "EvaluationResult",
    "ExportResult",
    "PrecisionResult",
    "benchmark",
    "evaluate",
    "export",
    "load",
]

_CLASSES = {
    "BackendMissing": "errors",
    "BenchReport": "measure.report",
    "CheckFailed": "errors",
    "DeployError": "errors",
    "Detections": "detect.postprocess",
    "Detector": "detect.detector",
    "EvaluationResult": "accuracy.eval",
    "ExportResult": "exporter.onnx",
    "PrecisionResult": "lower.conversion",
}


def __getattr__(name: str) -> Any:
    """The classes that the functions take and give, imported when they are asked for."""
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_CLASSES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load(
    model: AnyPath,
    *,
    backend: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    allow_external_data: bool = False,
    buffers: str | None = None,
    trust_engine: bool = False,
    cuda_graph: bool = False,
) -> Detector:
    """Load a model for detection: `load("student.onnx").detect(image)`.

    The detector is a context manager, which lets go of the model at its end; without `with`, `Detector.close` does.
    Several threads may call one detector: ONNX Runtime on the processor then infers for all of them at once, every
    other runtime for one after the other.

    Args:
        model: a file of `export` (ONNX), a TensorRT engine with its manifest, or a checkpoint, which runs in PyTorch.
        backend: one of `cskd_deploy.backends.NAMES`; by default the one for the file's name.
        device: "cpu" or "cuda", with OpenVINO "cpu", "gpu" or "npu"; by default "cuda" where the runtime can use it.
        threads: of ONNX Runtime, OpenVINO and PyTorch; None takes every core that this process may use.
        allow_external_data: ONNX: weights may lie in other files below the model's folder.
        buffers: TensorRT: the package that holds GPU memory; by default the first one found.
        trust_engine: TensorRT: load an engine that no manifest vouches for.
        cuda_graph: TensorRT: replay the work as a CUDA graph.

    Raises:
        DeployError: the file is missing, damaged, of another kind, or not for this backend or device.
        BackendMissing: the runtime, or what it needs, is not installed; the message says how to install it.
    """
    from cskd_deploy.backends import backend_for
    from cskd_deploy.detect.detector import Detector

    opened = backend_for(
        Path(model),
        backend,
        device=device,
        threads=threads,
        allow_external_data=allow_external_data,
        buffers=buffers,
        trust_engine=trust_engine,
        cuda_graph=cuda_graph,
    )
    opened.load()
    return Detector(opened)


def export(
    checkpoint: AnyPath,
    output: AnyPath | None = None,
    *,
    config: AnyPath | None = None,
    input_sizes: Sequence[tuple[int, int]] = (),
    graph_input: str = "uint8",
    nms: str = "outside",
    batch: int | None = 1,
    proposals: int | None = None,
    precision: str = "fp32",
    target: str | None = None,
    calibration_images: AnyPath | None = None,
    calibration_ann: AnyPath | None = None,
    calibration_count: int | None = None,
    calibration_cache: AnyPath | None = None,
    keep_float: Sequence[str] = (),
    device: str = "cpu",
    progress: Callable[[str], None] = lambda line: None,
) -> ExportResult | PrecisionResult:
    """Export a student to an ONNX file, which gets its name after it has been compared with mmdet.

    In lower precision it is compared with its FP32 file too, which is not kept. Few calibration images are a warning.

    Args:
        checkpoint: of cskd-train, or of mmdet with its `config`.
        output: the file to write; by default the checkpoint's name with `.onnx` (`.fp16.onnx`, `.int8-cpu.onnx`,
            `.int8-tensorrt.onnx`, `.int8+fp16.onnx`), beside it.
        config: a config file in place of the one stored in the checkpoint.
        input_sizes: none for a graph that takes every image as mmdet resizes and pads it; one (height, width) for a
            graph of that size; two that differ for one whose images are padded to either, a pair of orientations.
        graph_input: "uint8" for raw pixels `(N, H, W, 3)` BGR, which the graph normalises; "float" for normalised
            images `(N, 3, H, W)`.
        nms: "outside", or "graph" for ONNX's NonMaxSuppression and a fixed number of detections.
        batch: images at a time, a number that the graph is fixed to; None takes any number.
        proposals: Faster R-CNN: keep the best so many of an image; by default the config's number.
        precision: "fp32", "fp16", "int8" or, for TensorRT, "int8+fp16".
        target: of INT8: "cpu", the default, or "tensorrt".
        calibration_images: a folder of images like those it will see: INT8 is calibrated on them and needs them, and
            the file is compared with FP32 on them, FP16 on random ones without.
        calibration_ann: a COCO file; only those images that it lists.
        calibration_count: at most so many images, spread over the folder; by default 64.
        calibration_cache: a file with what a calibration found: written where it does not exist; where it does,
            nothing is calibrated, and no images are needed.
        keep_float: layers that stay in float: names (`bbox_head.retina_cls`), modules or globs.
        device: where the file is compared with mmdet, "cpu" or "cuda".
        progress: called with a line for each step.

    Raises:
        DeployError: the checkpoint cannot be used, its family cannot be exported, the form is none of a graph, the
            arguments for lower precision do not go together, or `output` cannot be written.
        DataError: the calibration images cannot be used (`cskd_data.DataError`).
        BackendMissing: torch, cskd-train, onnx, onnxslim or onnxruntime is not installed, or too old for INT8.
        CheckFailed: the exported graph does not compute what mmdet does, or what the FP32 file finds; no file is
            written.
    """
    from cskd_deploy.arguments import whole
    from cskd_deploy.errors import DeployError
    from cskd_deploy.exporter import onnx
    from cskd_deploy.lower.precision import precision_plan
    from cskd_deploy.model.manifest import GraphForm

    plan = precision_plan(
        precision,
        target,
        _path(calibration_images),
        _path(calibration_ann),
        calibration_count,
        _path(calibration_cache),
        keep_float,
    )
    form = GraphForm(input=graph_input, nms=nms, batch=batch, proposals=proposals)
    try:
        sizes = [(whole(height, "height"), whole(width, "width")) for height, width in input_sizes]
    except (TypeError, ValueError) as error:
        raise DeployError(f"input_sizes is {input_sizes!r}, expected pairs such as [(800, 1344)]") from error
    source = Path(checkpoint)
    path = source.with_suffix(plan.suffix) if output is None else Path(output)

    def to_fp32(path: Path) -> ExportResult:
        return onnx.export(source, path, _path(config), sizes, progress, form, device)

    if plan.is_plain:
        return to_fp32(path)
    return plan.convert_from(
        to_fp32, path, progress, lambda line: warn(line, stacklevel=6), inputs=[source, _path(config)]
    )


def _path(path: AnyPath | None) -> Path | None:
    return None if path is None else Path(path)


def evaluate(
    model: AnyPath,
    ann: AnyPath,
    images: AnyPath | None = None,
    reference: AnyPath | None = None,
    *,
    limit: int | None = None,
    batch: int | None = None,
    skip_broken: bool = False,
    output: AnyPath | None = None,
    backend: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    allow_external_data: bool = False,
    buffers: str | None = None,
    trust_engine: bool = False,
    show_progress: bool = False,
) -> EvaluationResult:
    """COCO mAP of a model, by the COCO protocol, and of a reference on the same images.

    `print` the result for the table, or take `result.metrics` (in [0, 1]) and `result.drop` (points below the
    reference). What is odd about the data set is a warning, before the model runs; why model and reference are not the
    same but for their form is in `result.notes`.

    Args:
        model: as `load`.
        ann: a COCO file, or the folder of another format or of one split (`cskd_data.read`).
        images: folder of its images; by default looked for beside it.
        reference: another model, a checkpoint, which cskd-train evaluates, or the JSON of a former `cskd-deploy eval`.
        limit: only the first so many images of the file.
        batch: images at a time, of those that are padded to one size; by default as many as the graph is fixed to,
            else one.
        skip_broken: go on without images that cannot be used; the result counts them.
        output: where to write the detections in COCO's results format.
        backend, device, threads, allow_external_data, buffers, trust_engine: as `load`; the reference's too, but for
            the backend.
        show_progress: on stderr.

    Raises:
        DataError: the data set cannot be used (`cskd_data.DataError`).
        DeployError: the model, the reference or `output` cannot be used, or there is no box to compute mAP from.
        BackendMissing: a runtime is not installed; a checkpoint needs torch and cskd-train.
    """
    from cskd_deploy.accuracy.evaluate import evaluate_model
    from cskd_deploy.progress import Progress, silent

    return evaluate_model(
        Path(model),
        Path(ann),
        _path(images),
        _path(reference),
        backend=backend,
        limit=limit,
        batch=batch,
        skip_broken=skip_broken,
        output=_path(output),
        warn=lambda line: warn(line, stacklevel=4),
        progress=Progress if show_progress else silent,
        device=device,
        threads=threads,
        allow_external_data=allow_external_data,
        buffers=buffers,
        trust_engine=trust_engine,
    )


def benchmark(
    models: AnyPath | Sequence[AnyPath],
    images: AnyPath | None = None,
    *,
    ann: AnyPath | None = None,
    reference: AnyPath | None = None,
    backends: Sequence[str] = (),
    batches: Sequence[int] = (),
    streams: Sequence[int] = (),
    duration: float = 3.0,
    iterations: int = 10,
    warmup: float | None = None,
    mlperf: bool = False,
    cold: bool = True,
    force: bool = False,
    device: str | None = None,
    threads: int | None = None,
    ort: Sequence[str] = (),
    allow_external_data: bool = False,
    buffers: str | None = None,
    trust_engine: bool = False,
    cuda_graph: bool = False,
    show_progress: bool = False,
) -> BenchReport:
    """Time models in turns: pre-processing, inference and post-processing, batch by batch.

    Args:
        models: one or several, as `load`.
        images: folder of images to detect on; by default seeded random ones.
        ann: a data set, as of `evaluate`, to take the images of; `images` is then their folder, and may be left out.
        reference: a checkpoint to time in PyTorch in the same run.
        backends: run each file in those of them that run it; by default in the one for its name.
        batches: images at a time; each model is timed with each of them. By default as many as graphs are fixed to,
            else 1.
        streams: beside latency, the throughput of each exported file with so many batches under way at a time.
        duration: seconds that each model runs for, at least, with each batch size,
        iterations: and batches, at least.
        warmup: seconds before it counts; by default 0.2, on a GPU 2.
        mlperf: as long as MLPerf's runs, in place of `duration` and `iterations`.
        cold: time a process of its own for each model too, from its start to its first detections.
        force: time files together that do different work; what differs is a note.
        device, threads, allow_external_data, buffers, trust_engine, cuda_graph: as `load`.
        ort: settings of ONNX Runtime, `("graph=extended", "arena=off", "spinning=off")`.
        show_progress: on stderr.

    Returns:
        Figures in milliseconds a batch: `print()` shows them as a table, `to_dict()` gives plain data.

    Raises:
        DeployError: a file cannot be used, not in these backends or batches, or the files do different work.
        BackendMissing: a runtime is not installed.
        DataError: an image cannot be read (`cskd_data.DataError`).
    """
    from functools import partial

    import cskd_data
    from cskd_deploy.arguments import several
    from cskd_deploy.backends.onnxruntime_settings import parse_settings
    from cskd_deploy.measure import benchmark as room
    from cskd_deploy.progress import Progress, silent

    return room.benchmark(
        [Path(model) for model in several(models)],
        _path(images) if ann is None else cskd_data.read(Path(ann), _path(images)),
        reference=_path(reference),
        backends=backends,
        batches=batches,
        streams=streams,
        duration=duration,
        iterations=iterations,
        warmup=warmup,
        mlperf=mlperf,
        cold=cold,
        force=force,
        progress=partial(Progress, show_rate=False) if show_progress else silent,
        device=device,
        threads=threads,
        ort=parse_settings(ort),
        allow_external_data=allow_external_data,
        buffers=buffers,
        trust_engine=trust_engine,
        cuda_graph=cuda_graph,
    )
