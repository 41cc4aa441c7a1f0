"""`cskd-deploy eval`."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from cskd_deploy.annotations import load_annotations
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.coco_eval import check_images_exist, detect, differently_padded, measure
from cskd_deploy.detector import Detector
from cskd_deploy.errors import CheckFailed, DeployError
from cskd_deploy.files import check_writable, write_atomically
from cskd_deploy.progress import Progress
from cskd_deploy.results import CocoMetrics, EvaluationResult
from cskd_deploy.student import evaluate_student, load_student


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--ann", required=True, type=click.Path(path_type=Path), help="COCO annotation file.")
@click.option("--images", required=True, type=click.Path(path_type=Path), help="Folder of its images.")
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    help="Checkpoint to hold the model against, evaluated by cskd-train on the same images. Needs torch and mmdet.",
)
@click.option(
    "--max-drop",
    type=float,
    default=0.2,
    show_default=True,
    help="Points of mAP that the model may lie below the reference; further is exit code 1.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N images of the file.")
@click.option("--threads", type=click.IntRange(min=1), help="[default: every core this process may use]")
@click.option("--out", type=click.Path(path_type=Path), help="Write the detections in COCO's results format.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    model: Path,
    ann: Path,
    images: Path,
    reference: Path | None,
    max_drop: float,
    limit: int | None,
    threads: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """COCO mAP of an exported model, by pycocotools.

    The file's own metadata says how images are prepared and which class is which; classes are matched with the
    annotations by name. With --reference the checkpoint is evaluated too, by cskd-train with mmdet's own pipeline, and
    the drop is checked.

    \b
    Example:
      cskd-deploy eval student.onnx --ann data/shapes/annotations/val.json --images data/shapes/images \\
          --reference work_dirs/student/best.pth --max-drop 0.2
    """
    if out is not None:
        check_writable(out)
    with OnnxRuntimeBackend(model, threads) as backend:
        detector = Detector(backend)
        manifest = backend.manifest
        annotations = load_annotations(ann, manifest.classes, limit)
        check_images_exist(annotations, images)
        for warning in annotations.warnings:
            click.echo(f"warning: {warning}", err=True)
        # Before the model runs: a reference that cannot be had should not cost an evaluation.
        student = None if reference is None else load_student(reference)
        begin = time.perf_counter()
        found = detect(detector, annotations, images, Progress("eval", "images"))
        seconds = time.perf_counter() - begin
        padded = differently_padded(annotations, detector)
    metrics = measure(annotations, found, manifest.classes, seconds)
    if metrics.mean_average_precision < 0:
        raise DeployError(f"mAP could not be computed on {ann}: no box of the model's classes counts")
    if out is not None:
        content = json.dumps(found).encode()
        write_atomically(out, lambda file: file.write(content))
    notes = []
    reference_metrics: CocoMetrics | None = None
    if student is not None:
        if student.sha256 != manifest.sha256:
            notes.append(f"{reference} is not the checkpoint that the model was exported from (sha256 differs)")
        if padded:
            notes.append(
                f"{padded} of {len(annotations.images)} images are padded or scaled otherwise than for the reference: "
                "the graph's input has a fixed size. That alone moves mAP a little"
            )
        plain = evaluate_student(student, annotations, images, Progress("reference", "images"))
        reference_metrics = CocoMetrics.from_training(plain)
    result = EvaluationResult(str(model), metrics, str(reference) if reference else None, reference_metrics)
    if as_json:
        click.echo(json.dumps({**result.to_dict(), "max_drop": max_drop, "notes": notes}, indent=2))
    else:
        _print(result, ann, notes, out)
    if result.drop is not None and not result.drop <= max_drop:
        raise CheckFailed(f"mAP drops by {result.drop:.2f} points, more than the {max_drop:g} allowed (--max-drop)")


def _print(result: EvaluationResult, ann: Path, notes: list[str], out: Path | None) -> None:
    metrics = result.metrics
    click.echo(f"{result.model} on {ann}, points")
    click.echo(str(result))
    click.echo(f"{metrics.images} images, {metrics.detections} detections, {metrics.seconds:.1f} s")
    if out is not None:
        click.echo(f"detections: {out}")
    for note in notes:
        click.echo(f"note: {note}")
    if result.drop is not None:
        click.echo(f"drop: {result.drop:+.2f} points of mAP against {result.reference}")
