"""From a checkpoint to a verified ONNX file.

Opset 17 with IR version 8: read by ONNX Runtime 1.17 and newer and by TensorRT 8.6 and newer.

The exporter is torch's TorchScript one (`dynamo=False`). Both exporters of torch 2.13 export these students with the
same numbers and the same speed in ONNX Runtime. This one is preferred because it keeps integer divisions integer (the
other computes the anchor index in float32, which is wrong from 2^24 pairs on: 80 classes at 1344 x 1344), needs a fifth
of the time and no further package. A traced graph may freeze what depends on data: hence every file is compared with
mmdet before it gets its name.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cskd_data.files import write_atomically
from cskd_deploy.backends import DEVICES
from cskd_deploy.backends import onnxruntime_cuda as cuda
from cskd_deploy.backends.base import CANDIDATE
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend, import_onnxruntime
from cskd_deploy.backends.tensorrt.build import MOST_NMS_BOXES
from cskd_deploy.detect.preprocess import Placement, exact_placement, placement
from cskd_deploy.errors import BackendMissing, DeployError
from cskd_deploy.exporter.student import INSTALL, Student, exact_float32, load_student, torch_device
from cskd_deploy.exporter.verify import Verification, verify
from cskd_deploy.model.manifest import GraphForm, Manifest
from cskd_deploy.model.onnx_file import check_model_output

OPSET = 17
IR_VERSION = 8
EDGE = GraphForm(input="uint8")


@dataclass(frozen=True)
class ExportResult:
    """An exported file and how it was verified."""

    path: Path
    size_bytes: int
    manifest: Manifest
    nodes: int
    nodes_before: int  # as torch exported it, before onnxslim
    verification: Verification  # against mmdet

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "path": str(self.path),
            "size_bytes": self.size_bytes,
            "nodes": self.nodes,
            "nodes_before_onnxslim": self.nodes_before,
            "verification": asdict(self.verification),
            "manifest": self.manifest.to_dict(),
        }

    def __str__(self) -> str:
        lines = [
            f"{self.path}",
            f"  {self.manifest.family}, {len(self.manifest.classes)} classes, {_described(self.manifest)}, "
            f"opset {self.manifest.opset}, {self.size_bytes / 1e6:.1f} MB, {self.nodes} nodes",
            f"  verified against mmdet in PyTorch on random images: {self.verification}",
        ]
        notes = [*geometry_cost(self.manifest), *filter(None, [beyond_tensorrt(self.manifest)])]
        return "\n".join([*lines, *(f"  {line}" for line in notes)])


def export(
    checkpoint: Path,
    output: Path,
    config: Path | None = None,
    input_sizes: Sequence[tuple[int, int]] = (),
    progress: Callable[[str], None] = lambda line: None,
    form: GraphForm = EDGE,
    device: str = "cpu",
    for_engine: bool = False,
) -> ExportResult:
    """Export the student of `checkpoint` to `output`.

    Args:
        config: replaces the config stored in the checkpoint.
        input_sizes: none for a graph that takes every image as mmdet lays it out; one (height, width) for a graph of
            that size; two for a graph whose images are padded to either, a pair of orientations.
        progress: called with a line for each step.
        form: what the graph does of the pre- and post-processing, how many images it takes at a time, and how many
            proposals it keeps in place of the config's number.
        device: where the file is compared with mmdet, `cpu` or `cuda`; there in float32 without TF32.
        for_engine: a TensorRT engine is to be built of the file: what TensorRT would refuse is refused now.

    Raises:
        BackendMissing: torch, cskd-train, onnx, onnxslim or onnxruntime is not installed, or cannot use the device.
        DeployError: the checkpoint cannot be used, its family or one of its layers cannot be exported, or not in this
            form, or `output` cannot be written or is an input.
        CheckFailed: the exported graph does not compute what mmdet does; no file is written.
    """
    if len(input_sizes) > 2 or len(set(input_sizes)) < len(input_sizes):
        raise DeployError("the input size is given once, or twice with two sizes: a pair of orientations")
    if device not in DEVICES:
        raise DeployError(f"device is {device!r}, expected one of {', '.join(DEVICES)}")
    _require_exporters(device)
    check_model_output(output, [checkpoint, config])
    progress(f"reading {checkpoint}")
    student = load_student(checkpoint, config)
    if form.proposals is not None:
        student = student.with_proposals(form.proposals)
    manifest = student.manifest(input_sizes, OPSET, form)
    refused = beyond_tensorrt(manifest)
    if for_engine and refused:
        raise DeployError(refused)
    progress(f"exporting {manifest.family}, {_described(manifest)}, opset {OPSET}")
    traced = _trace(student, manifest)
    progress(f"simplifying {len(traced.graph.node)} nodes")
    model = _simplified(student, traced)
    _attach(model, manifest)
    _size_outputs(model, manifest)
    progress(f"verifying against mmdet in PyTorch, on {device}")
    with tempfile.TemporaryDirectory() as folder:
        tried = Path(folder) / "tried.onnx"
        tried.write_bytes(model.SerializeToString())
        with exact_float32():
            verification = verify(student.model.to(device), manifest, tried, device)
    _drop_candidates(model)
    content: bytes = model.SerializeToString()

    def write(file: Any) -> None:
        file.write(content)
        file.flush()
        with OnnxRuntimeBackend(Path(file.name)):
            pass  # it loads, and its inputs and outputs are those of its metadata

    write_atomically(output, write)
    return ExportResult(
        path=output,
        size_bytes=len(content),
        manifest=manifest,
        nodes=len(model.graph.node),
        nodes_before=len(traced.graph.node),
        verification=verification,
    )


def _require_exporters(device: str) -> None:
    for name in ("torch", "onnx", "onnxslim"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise BackendMissing(
                f"export needs {name}, which cannot be imported ({error}). Install: {INSTALL}"
            ) from error
    runtime = import_onnxruntime()
    if device == "cuda":
        torch_device(device)
        fault = cuda.fault(runtime)
        if fault is not None:
            raise BackendMissing(fault)


def _described(manifest: Manifest) -> str:
    """The graph's input in words."""
    rule = manifest.preprocessing
    batch = manifest.graph.batch or "N"
    canvases = " or ".join(f"{height} x {width}" for height, width in rule.canvases or (rule.input_size,))
    size = "H x W" if manifest.graph.dynamic and not rule.canvases else canvases
    shape = f"{batch} x {size} x 3 uint8" if manifest.graph.input == "uint8" else f"{batch} x 3 x {size} float32"
    proposals = "" if manifest.graph.proposals is None else f", {manifest.graph.proposals} proposals"
    return f"input {shape}{proposals}" + (", NMS in the graph" if manifest.graph.nms == "graph" else "")


def geometry_cost(manifest: Manifest) -> list[str]:
    """What a fixed size costs: how photographs of both orientations are laid out, beside mmdet's way; a line for each.

    A pipeline that stretches lays all images out alike: one line, and none where that is mmdet's way. Nothing of a
    graph that takes every size.
    """
    rule, form = manifest.preprocessing, manifest.graph
    if form.dynamic and not rule.canvases:
        return []
    lines = []
    for size in ((480, 640), (640, 480)) if rule.keep_ratio else ((480, 640),):
        placed, exact = placement(size, rule, form), exact_placement(size, rule)
        rows, columns = (side - wanted for side, wanted in zip(placed.canvas, exact.canvas, strict=True))
        if placed == exact and not rule.keep_ratio:
            return []
        if placed.resized_size != exact.resized_size and not rule.keep_ratio:
            share = math.prod(placed.resized_size) / math.prod(exact.resized_size)
            cost = f"is stretched to {_written(placed.resized_size)}, {100 * share:.3g} % of the pixels of mmdet's "
            cost += _written(exact.resized_size) + ("" if _alike(placed, exact) else ", and in another ratio")
        elif placed.resized_size != exact.resized_size:
            share = math.sqrt(math.prod(placed.resized_size) / math.prod(exact.resized_size))
            cost = f"is shrunk to {100 * share:.0f} % of mmdet's {_written(exact.resized_size)}"
        elif placed != exact:
            cost = f"gets {max(rows, 0)} rows and {max(columns, 0)} columns more padding than in mmdet"
        else:
            cost = "is as in mmdet"
        lines.append(f"geometry: {f'a photograph of {_written(size)}' if rule.keep_ratio else 'every image'} {cost}")
    if any("as in mmdet" not in line for line in lines):
        lines.append("geometry: leave --input-size out for a graph that takes every image as mmdet does")
    return lines


def _alike(one: Placement, other: Placement) -> bool:
    """Whether two stretch an image to one ratio of its sides, but for a pixel's rounding."""
    (height, width), (other_height, other_width) = one.resized_size, other.resized_size
    return abs(height * other_width - width * other_height) <= max(other_height, other_width) / 2


def beyond_tensorrt(manifest: Manifest) -> str | None:
    """Why TensorRT refuses the file of a two-stage student with NMS in the graph; None where it does not.

    Of a one-stage student the number of boxes depends on the image; an engine's build looks at it.
    """
    proposals, classes = manifest.graph.proposals, len(manifest.classes)
    if manifest.graph.nms != "graph" or proposals is None or proposals * classes <= MOST_NMS_BOXES:
        return None
    return (
        f"TensorRT: NMS in the graph would choose among {proposals * classes} boxes ({proposals} proposals of "
        f"{classes} classes), TensorRT takes {MOST_NMS_BOXES} at most. For an engine export with --nms outside, or "
        f"with --proposals {max(1, MOST_NMS_BOXES // classes)} or fewer"
    )


def _written(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"


def _trace(student: Student, manifest: Manifest) -> Any:
    import onnx
    import torch

    from cskd_deploy.exporter.graph.whole import build_whole

    graph = build_whole(student.model, student.config, manifest)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        # The exporter's deprecation, and the tracer's remarks on shapes that are constant here.
        warnings.simplefilter("ignore")
        traced = Path(folder) / "traced.onnx"
        try:
            with _nothing_printed():  # the exporter prints the whole graph where it fails
                torch.onnx.export(
                    graph,
                    graph.example(),
                    traced,
                    input_names=list(graph.inputs),
                    output_names=list(graph.outputs),
                    opset_version=OPSET,
                    dynamic_axes=graph.dynamic_axes(),
                    dynamo=False,
                )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            _check_runs(student, graph, manifest)
            raise _unexportable(student, _operator(error)) from error
        model = onnx.load(str(traced))
    foreign = sorted({f"{node.domain}:{node.op_type}" for node in model.graph.node if node.domain})
    if foreign:
        raise _unexportable(student, f"{', '.join(foreign)} is none of ONNX's")
    return model


def _check_runs(student: Student, graph: Any, manifest: Manifest) -> None:
    """Refuse a size that the detector's own layers do not take.

    Raises:
        DeployError: names it.
    """
    try:
        graph(*graph.example())
    except RuntimeError as error:
        raise DeployError(
            f"{student.path}: PyTorch itself cannot compute an image of {_written(manifest.preprocessing.input_size)} "
            f"({cuda.first_line(error)}). Its layers take sides of certain multiples: give others with --input-size"
        ) from error


def _unexportable(student: Student, operator: str) -> DeployError:
    return DeployError(
        f"{student.path}: its backbone, neck or head computes with an operator that the exported file cannot have "
        f"({operator}). Train it with a backbone and neck of common layers"
    )


def _operator(error: Exception) -> str:
    """What the exporter fails at: the operator and its module where the message names a node, else its first line."""
    line = cuda.first_line(error).partition("  [Caused")[0].rstrip(".")
    node = re.match(r"Failed to export a node '.*? = ([\w:]+).*?, scope: [^/\s]*/?(\S*)", line)
    if node is None:
        return line
    operator, scope = node.groups()
    modules = [part.rpartition("::") for part in scope.split("/") if "::" in part]
    if not modules:
        return operator
    return f"{operator} in {'.'.join(name for _, _, name in modules)}, of type {modules[-1][0].rpartition('.')[2]}"


@contextlib.contextmanager
def _nothing_printed() -> Iterator[None]:
    """While this context lasts, nothing reaches the standard output, what C++ code prints included."""
    try:
        kept = os.dup(1)
    except OSError:  # it is closed
        yield
        return
    sys.stdout.flush()
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _simplified(student: Student, traced: Any) -> Any:
    import onnx
    import onnxslim

    try:
        model = onnxslim.slim(traced)
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # whatever the packages raise
        raise DeployError(
            f"{student.path}: its graph is exported, but onnxslim {onnxslim.__version__} and onnx {onnx.__version__} "
            f"make no valid file of it ({cuda.first_line(error)}). Try other versions of them, or train it with a "
            "backbone and neck of common layers"
        ) from error
    return model


def _attach(model: Any, manifest: Manifest) -> None:
    for key, value in manifest.to_metadata().items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value


def _size_outputs(model: Any, manifest: Manifest) -> None:
    """Say how many images and boxes the outputs have, where the exporter's shape inference loses it.

    That is behind NMS in the graph, and behind the proposals of a two-stage student.
    """
    form = manifest.graph
    if form.nms == "graph":
        count = manifest.postprocessing.max_per_image
    elif form.proposals is not None:
        count = form.proposals * len(manifest.classes)
    else:
        return
    for value in model.graph.output:
        if not value.name.startswith(CANDIDATE):
            images, boxes = value.type.tensor_type.shape.dim[:2]
            boxes.dim_value = count
            if form.batch:
                images.dim_value = form.batch


def _drop_candidates(model: Any) -> None:
    """Take away the outputs that only served to verify the graph, and what only they need."""
    kept = [value for value in model.graph.output if not value.name.startswith(CANDIDATE)]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    needed = {value.name for value in kept}
    nodes = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
