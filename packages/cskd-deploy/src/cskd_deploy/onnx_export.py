"""From a checkpoint to a verified ONNX file.

Opset 17 with IR version 8: read by ONNX Runtime 1.17 and newer and by TensorRT 8.6 and newer.

The exporter is torch's TorchScript one (`dynamo=False`). Both exporters of torch 2.13 export these students with the
same numbers and the same speed in ONNX Runtime. This one is preferred because it keeps integer divisions integer (the
other computes the anchor index in float32, which is wrong from 2^24 pairs on: 80 classes at 1344 x 1344), needs a fifth
of the time and no further package. A traced graph may freeze what depends on data: hence every file is compared with
mmdet before it gets its name.
"""

from __future__ import annotations

import importlib
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cskd_deploy.agreement import Agreement, match
from cskd_deploy.backends.base import IMAGE_SHAPE, INPUT
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend, import_onnxruntime
from cskd_deploy.errors import BackendMissing, CheckFailed
from cskd_deploy.files import check_writable, write_atomically
from cskd_deploy.manifest import Manifest
from cskd_deploy.student import INSTALL, Student, load_student

OPSET = 17
IR_VERSION = 8
# Candidates that are equal to mmdet's; below 1 because float rounding may swap two at the last rank of a level.
LEAST_SHARE = 0.999
LEAST_SHARE_TWO_STAGE = 0.99  # nor may it swap an overlap at the threshold of the proposals' NMS
MOST_SCORE_DIFFERENCE = 1e-4


@dataclass(frozen=True)
class ExportResult:
    """An exported file and how it was verified."""

    path: Path
    size_bytes: int
    manifest: Manifest
    nodes: int
    nodes_before: int  # as torch exported it, before onnxslim
    agreement: Agreement  # with mmdet's candidates on a random input

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "path": str(self.path),
            "size_bytes": self.size_bytes,
            "nodes": self.nodes,
            "nodes_before_onnxslim": self.nodes_before,
            "candidates": self.agreement.reference,
            "candidates_matched": self.agreement.matched,
            "largest_score_difference": self.agreement.largest_score_difference,
            "largest_corner_difference": self.agreement.largest_corner_difference,
            "manifest": self.manifest.to_dict(),
        }

    def __str__(self) -> str:
        height, width = self.manifest.preprocessing.input_size
        found = self.agreement
        return (
            f"{self.path}\n"
            f"  {self.manifest.family}, {len(self.manifest.classes)} classes, input 1 x 3 x {height} x {width} "
            f"float32, opset {self.manifest.opset}, {self.size_bytes / 1e6:.1f} MB, {self.nodes} nodes\n"
            f"  verified against mmdet in PyTorch on a random input: {found.matched} of {found.reference} candidates "
            f"equal (IoU >= 0.99), scores within {found.largest_score_difference:.1e}, "
            f"corners within {found.largest_corner_difference:.1e} pixels"
        )


def export(
    checkpoint: Path,
    output: Path,
    config: Path | None = None,
    input_size: tuple[int, int] | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> ExportResult:
    """Export the student of `checkpoint` to `output`.

    Args:
        config: replaces the config stored in the checkpoint.
        input_size: (height, width); by default that of the config's test pipeline.
        progress: called with a line for each step.

    Raises:
        BackendMissing: torch, cskd-train, onnx, onnxslim or onnxruntime is not installed.
        DeployError: the checkpoint cannot be used, its family cannot be exported, or `output` cannot be written.
        CheckFailed: the exported graph does not compute what mmdet does; no file is written.
    """
    _require_exporters()
    check_writable(output)
    progress(f"reading {checkpoint}")
    student = load_student(checkpoint, config)
    manifest = student.manifest(input_size, OPSET)
    height, width = manifest.preprocessing.input_size
    progress(f"exporting {manifest.family} at {height} x {width}, opset {OPSET}")
    traced = _trace(student, manifest.preprocessing.input_size)
    progress(f"simplifying {len(traced.graph.node)} nodes")
    model = _simplified(traced)
    _attach(model, manifest)
    progress("verifying against mmdet in PyTorch")
    content: bytes = model.SerializeToString()
    results: list[Agreement] = []

    def write(file: Any) -> None:
        file.write(content)
        file.flush()
        results.append(_verify(student, Path(file.name)))

    write_atomically(output, write)
    return ExportResult(
        path=output,
        size_bytes=len(content),
        manifest=manifest,
        nodes=len(model.graph.node),
        nodes_before=len(traced.graph.node),
        agreement=results[0],
    )


def _require_exporters() -> None:
    for name in ("torch", "onnx", "onnxslim"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise BackendMissing(
                f"export needs {name}, which cannot be imported ({error}). Install: {INSTALL}"
            ) from error
    import_onnxruntime()


def _trace(student: Student, input_size: tuple[int, int]) -> Any:
    import onnx
    import torch

    from cskd_deploy.graph.families import build_graph

    graph = build_graph(student.model, student.config, input_size)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        # The exporter's deprecation, and the tracer's remarks on shapes that are constant here.
        warnings.simplefilter("ignore")
        traced = Path(folder) / "traced.onnx"
        torch.onnx.export(
            graph,
            graph.example(),
            traced,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            opset_version=OPSET,
            dynamo=False,
        )
        return onnx.load(str(traced))


def _simplified(traced: Any) -> Any:
    import onnx
    import onnxslim

    model = onnxslim.slim(traced)
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    return model


def _attach(model: Any, manifest: Manifest) -> None:
    for key, value in manifest.to_metadata().items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value


def _verify(student: Student, path: Path) -> Agreement:
    """Compare all candidates of the written file with those of mmdet's own code on a random input.

    The score threshold is left out on both sides: a random input seldom has anything above it. The image is said to
    end before the input does, as a padded one.
    """
    from cskd_deploy.backends.torch import mmdet_candidates

    with OnnxRuntimeBackend(path) as backend:
        rule = backend.manifest.postprocessing
        height, width = backend.manifest.preprocessing.input_size
        image = np.random.default_rng(0).standard_normal((1, 3, height, width), dtype=np.float32)
        shape = np.array([[height - height // 8, width - width // 8]], dtype=np.float32)
        found = backend.infer({INPUT: image, IMAGE_SHAPE: shape})
    if rule.clip_boxes:  # mmdet has clipped its boxes to the image
        found["boxes"] = found["boxes"].clip(0, np.tile(shape[:, ::-1], 2))
    expected = mmdet_candidates(student.model, image, shape, score_threshold=0.0)
    agreement = match(_likely(expected), _likely(found), score=MOST_SCORE_DIFFERENCE)
    if rule.threshold_on != "scores":
        expected = mmdet_candidates(student.model, image, shape, score_threshold=0.0, with_factors=False)
        found["scores"] = found[rule.threshold_on]
        judged = match(_likely(expected), _likely(found), score=MOST_SCORE_DIFFERENCE)
        agreement = min(agreement, judged, key=lambda one: one.share)
    least = LEAST_SHARE_TWO_STAGE if backend.manifest.family == "faster_rcnn" else LEAST_SHARE
    if not np.isfinite(found["boxes"]).all() or agreement.share < least:
        raise CheckFailed(
            f"the exported graph does not compute what mmdet does: {agreement.matched} of {agreement.reference} "
            "candidates agree on a random input. No file was written. Are the weights finite and trained? "
            "If so, please report this with the checkpoint's config"
        )
    return agreement


def _likely(outputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes, scores and labels without those that fill up a fixed number."""
    real = outputs["scores"][0] > 0
    return outputs["boxes"][0][real], outputs["scores"][0][real], outputs["labels"][0][real]
