"""`cskd-deploy eval`."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import click

from cskd_deploy.annotations import Annotations, load_annotations
from cskd_deploy.backends import NAMES, backend_for, backend_name
from cskd_deploy.bench import differences
from cskd_deploy.coco_eval import CocoDetections, check_images_exist, detect, differently_padded, measure
from cskd_deploy.commands.runtime_options import runtime_options
from cskd_deploy.detector import Detector
from cskd_deploy.errors import CheckFailed, DeployError
from cskd_deploy.files import check_writable, sha256_of_file, write_atomically
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
    help="What to hold the model against, evaluated on the same images: another exported file, or a checkpoint, which "
    "cskd-train evaluates (needs torch and mmdet).",
)
@click.option(
    "--max-drop",
    type=float,
    default=0.2,
    show_default=True,
    help="Points of mAP that the model may lie below the reference; further is exit code 1.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N images of the file.")
@click.option("--backend", type=click.Choice(NAMES), help="[default: the one for the file's name]")
@runtime_options
@click.option(
    "--detections",
    "--out",
    "out",
    type=click.Path(path_type=Path),
    help="Write the detections in COCO's results format.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    model: Path,
    ann: Path,
    images: Path,
    reference: Path | None,
    max_drop: float,
    limit: int | None,
    backend: str | None,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """COCO mAP of an exported model, by pycocotools.

    The file's own metadata says how images are prepared and which class is which; classes are matched with the
    annotations by name. With --reference another exported file is evaluated in the same way, or a checkpoint by
    cskd-train with mmdet's own pipeline, and the drop is checked.

    \b
    Examples:
      cskd-deploy eval student.onnx --ann data/shapes/annotations/val.json --images data/shapes/images \\
          --reference work_dirs/student/best.pth --max-drop 0.2
      cskd-deploy eval student_int8.onnx --ann data/shapes/annotations/val.json --images data/shapes/images \\
          --reference student.onnx --max-drop 0.5 --detections detections.json
    """
    if out is not None:
        check_writable(out)
    with contextlib.ExitStack() as stack:
        detector = Detector(stack.enter_context(backend_for(model, backend, **options)))
        manifest = detector.manifest
        annotations = load_annotations(ann, manifest.classes, limit)
        check_images_exist(annotations, images)
        for warning in annotations.warnings:
            click.echo(f"warning: {warning}", err=True)
        # Before the model runs: a reference that cannot be had should not cost an evaluation.
        held = None if reference is None else Reference(reference, ann, limit, options, stack)
        found, metrics = _evaluate(detector, annotations, images, "eval")
        if metrics.mean_average_precision < 0:
            raise DeployError(f"mAP could not be computed on {ann}: no box of the model's classes counts")
        if out is not None:
            content = json.dumps(found).encode()
            write_atomically(out, lambda file: file.write(content))
        reference_metrics = None if held is None else held.evaluate(annotations, images)
        notes = [] if held is None else held.notes(detector, annotations)
    result = EvaluationResult(
        str(model),
        metrics,
        str(reference) if reference else None,
        reference_metrics,
        sha256_of_file(model),
        sha256_of_file(reference) if reference else None,
    )
    if as_json:
        click.echo(json.dumps({**result.to_dict(), "max_drop": max_drop, "notes": notes}, indent=2))
    else:
        _print(result, ann, notes, out)
    if result.drop is not None and not result.drop <= max_drop:
        raise CheckFailed(f"mAP drops by {result.drop:.2f} points, more than the {max_drop:g} allowed (--max-drop)")


class Reference:
    """What a model is held against: a checkpoint, or another exported file.

    Args:
        stack: closes the file's backend.
    """

    def __init__(
        self, path: Path, ann: Path, limit: int | None, options: dict[str, Any], stack: contextlib.ExitStack
    ) -> None:
        self._path = path
        self._ann = ann
        self._limit = limit
        self._student = load_student(path) if backend_name(path) == "pytorch" else None
        self._detector = None
        if self._student is None:
            self._detector = Detector(stack.enter_context(backend_for(path, **options)))

    def evaluate(self, annotations: Annotations, images: Path) -> CocoMetrics:
        """Its metrics on the images that the model is evaluated on."""
        if self._detector is not None:
            own = load_annotations(self._ann, self._detector.manifest.classes, self._limit)
            return _evaluate(self._detector, own, images, "reference")[1]
        assert self._student is not None
        plain = evaluate_student(self._student, annotations, images, Progress("reference", "images"))
        return CocoMetrics.from_training(plain)

    def notes(self, detector: Detector, annotations: Annotations) -> list[str]:
        """Why the two are not the same but for their form."""
        manifest = detector.manifest
        if self._detector is not None:
            notes = [f"not the same work: {difference}" for difference in differences([detector, self._detector])]
            if self._detector.manifest.sha256 != manifest.sha256:
                notes.append(f"{self._path} was exported from another checkpoint than the model (sha256 differs)")
            return notes
        assert self._student is not None
        notes = []
        if self._student.sha256 != manifest.sha256:
            notes.append(f"{self._path} is not the checkpoint that the model was exported from (sha256 differs)")
        padded = differently_padded(annotations, detector)
        if padded:
            notes.append(
                f"{padded} of {len(annotations.images)} images are padded or scaled otherwise than for the reference: "
                "the graph's input has a fixed size. That alone moves mAP a little"
            )
        return notes


def _evaluate(
    detector: Detector, annotations: Annotations, images: Path, title: str
) -> tuple[CocoDetections, CocoMetrics]:
    begin = time.perf_counter()
    found = detect(detector, annotations, images, Progress(title, "images"))
    return found, measure(annotations, found, detector.manifest.classes, time.perf_counter() - begin)


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
