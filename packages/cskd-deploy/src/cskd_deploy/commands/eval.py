"""`cskd-deploy eval`."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

import cskd_data
from cskd_data import CocoResult, Dataset
from cskd_data.clean import usable
from cskd_data.evaluate import load_detections
from cskd_data.files import check_writable, sha256_of_file, write_atomically
from cskd_deploy.accuracy.eval import EvaluationResult, detect, differently_padded, load_dataset, measure
from cskd_deploy.accuracy.former import SUFFIX, annotations_sha256, read_former
from cskd_deploy.backends import NAMES, backend_for, backend_name
from cskd_deploy.commands.options import beside, runtime_options
from cskd_deploy.detect.detector import Detector
from cskd_deploy.errors import CheckFailed, DeployError
from cskd_deploy.exporter.student import evaluate_student, load_student, torch_device, training_packages
from cskd_deploy.measure.bench import differences
from cskd_deploy.progress import Progress

MAX_DROP = 0.2


@click.command()
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option(
    "--predictions",
    type=click.Path(path_type=Path),
    help="In place of a model: its detections, a JSON file in COCO's results format. Needs no runtime.",
)
@click.option(
    "--ann",
    required=True,
    type=click.Path(path_type=Path),
    help="COCO file, or the folder of another format or of one split.",
)
@click.option("--images", type=click.Path(path_type=Path), help="Folder of its images.  [default: beside the file]")
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    help="What to hold the model against, evaluated on the same images: another exported file, or a checkpoint, which "
    "cskd-train evaluates (needs torch and mmdet). Or the JSON of an `eval --json` of it, which is used as it is.",
)
@click.option(
    "--max-drop",
    type=float,
    help=f"Points of mAP that the model may lie below the reference; further is exit code 1.  [default: {MAX_DROP}]",
)
@click.option("--skip-broken", is_flag=True, help="Go on without images that cannot be used; they are counted.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N images of the file.")
@click.option("--backend", type=click.Choice(NAMES), help="[default: the one for the file's name]")
@runtime_options
@click.option(
    "--detections",
    "out",
    type=click.Path(path_type=Path),
    help="Write the detections in COCO's results format.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    model: Path | None,
    predictions: Path | None,
    ann: Path,
    images: Path | None,
    reference: Path | None,
    max_drop: float | None,
    skip_broken: bool,
    limit: int | None,
    backend: str | None,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """COCO mAP of an exported model, by the COCO protocol.

    The file's own metadata says how images are prepared and which class is which; classes are matched with the
    annotations by name. With --reference another exported file is evaluated in the same way, or a checkpoint by
    cskd-train with mmdet's own pipeline, and the drop is checked. Images without annotations are only detected on. A
    checkpoint runs on the model's device.

    \b
    Examples:
      cskd-deploy eval student.onnx --ann data/shapes/annotations/val.json --images data/shapes/images \\
          --reference work_dirs/student/best.pth --max-drop 0.2
      cskd-deploy eval student_int8.onnx --ann data/shapes/annotations/val.json --images data/shapes/images \\
          --reference student.onnx --max-drop 0.5 --detections detections.json
      cskd-deploy eval student.onnx --ann aquarium/valid --json > student.json
      cskd-deploy eval student.engine --ann aquarium/valid --reference student.json
      cskd-deploy eval --predictions detections.json --ann data/shapes/annotations/val.json
    """
    if (model is None) == (predictions is None):
        raise DeployError("give a model, or --predictions with a file of detections: one of the two")
    if max_drop is not None and reference is None:
        raise DeployError("--max-drop is measured against a reference: give --reference with it")
    if predictions is not None:
        if out is not None or limit is not None:
            raise DeployError("--predictions are scored as they are: leave --detections and --limit out")
        result, notes = _scored_file(predictions, ann, images, reference, skip_broken, options)
    else:
        assert model is not None
        result, notes = _evaluated(model, ann, images, reference, limit, skip_broken, backend, out, options)
    allowed = MAX_DROP if max_drop is None else max_drop
    if as_json:
        click.echo(json.dumps({**result.to_dict(), "max_drop": allowed, "notes": notes}, indent=2))
    else:
        _print(result, ann, notes, out)
    if result.drop is not None and not result.drop <= allowed:
        raise CheckFailed(f"mAP drops by {result.drop:.2f} points, more than the {allowed:g} allowed (--max-drop)")


def _scored_file(
    predictions: Path,
    ann: Path,
    images: Path | None,
    reference: Path | None,
    skip_broken: bool,
    options: dict[str, Any],
) -> tuple[EvaluationResult, list[str]]:
    """The metrics of a file of detections, with the data set's own classes; only a reference, and skipping those that
    cannot be used, needs the images."""
    dataset = cskd_data.read(ann, images, skip_missing=skip_broken)
    if skip_broken:
        dataset = usable(dataset, use_memory=True).dataset
    for note in dataset.notes:
        _warn(str(note))
    metrics = cskd_data.evaluate(dataset, load_detections(predictions))
    sha256 = sha256_of_file(predictions)
    result = EvaluationResult(
        str(predictions), metrics, file_sha256=sha256, annotations_sha256=annotations_sha256(dataset)
    )
    if reference is None:
        return result, []
    with contextlib.ExitStack() as stack:
        held = Reference(reference, options, options["device"], stack)
        held.check(dataset)
        return held.added_to(result, dataset), held.notes(None, dataset)


def _evaluated(
    model: Path,
    ann: Path,
    images: Path | None,
    reference: Path | None,
    limit: int | None,
    skip_broken: bool,
    backend: str | None,
    out: Path | None,
    options: dict[str, Any],
) -> tuple[EvaluationResult, list[str]]:
    """The metrics of a model and of its reference, and notes on both."""
    if out is not None:
        check_writable(out)
    with contextlib.ExitStack() as stack:
        detector = Detector(stack.enter_context(backend_for(model, backend, **options)))
        dataset, warnings = load_dataset(ann, images, detector.manifest.classes, limit, skip_broken)
        for warning in warnings:
            _warn(warning)
        if not dataset.annotated and reference is not None:
            raise DeployError(f"--reference compares mAP, and {dataset.nothing_counts()}")
        if dataset.annotated and not dataset.countable:
            raise DeployError(f"mAP cannot be computed: {dataset.nothing_counts()}")
        # Before the model runs: a reference that cannot be had should not cost an evaluation.
        held = None
        if reference is not None:
            held = Reference(reference, options, beside(options["device"], detector.backend), stack)
            held.check(dataset)
        begin = time.perf_counter()
        found = detect(detector, dataset, Progress("eval", "images"))
        seconds = time.perf_counter() - begin
        if dataset.annotated:
            metrics = cskd_data.evaluate(dataset, found, seconds=seconds)
        else:
            metrics = CocoResult({}, {}, "", len(dataset.images), len(found), seconds, len(dataset.left_out))
        if out is not None:
            content = json.dumps(found).encode()
            write_atomically(out, lambda file: file.write(content))
        notes = list(detector.backend.notes)
        result = EvaluationResult(
            str(model),
            metrics,
            file_sha256=sha256_of_file(model),
            device=detector.backend.device,
            annotations_sha256=annotations_sha256(dataset),
        )
        if held is not None:
            result = held.added_to(result, dataset)
            notes += held.notes(detector, dataset)
    return result, list(dict.fromkeys(notes))


class Reference:
    """What a model is held against: a checkpoint, another exported file, or the result of either.

    Args:
        device: that it runs on; None chooses by its runtime.
        stack: closes the file's backend.
    """

    def __init__(self, path: Path, options: dict[str, Any], device: str | None, stack: contextlib.ExitStack) -> None:
        self._path = path
        self._threads = options["threads"]
        self._student = self._detector = self._former = None
        self._device = device
        if path.suffix.lower() == SUFFIX:
            self._former = read_former(path)
        elif backend_name(path) == "pytorch":
            self._student = load_student(path)
            with training_packages("evaluating the reference"):
                self._device = torch_device(device)
        else:
            self._detector = Detector(stack.enter_context(backend_for(path, **options)))
            self._device = self._detector.backend.device

    def check(self, dataset: Dataset) -> None:
        """Refuse a former result of other images, classes or boxes.

        Raises:
            DeployError: says what differs.
        """
        if self._former is not None:
            self._former.check(dataset)

    def added_to(self, result: EvaluationResult, dataset: Dataset) -> EvaluationResult:
        """A model's result with that of the reference, evaluated now unless it is a former one."""
        former = self._former
        return replace(
            result,
            reference=str(self._path) if former is None else former.model,
            reference_metrics=self._evaluate(dataset) if former is None else former.metrics,
            reference_sha256=sha256_of_file(self._path) if former is None else former.file_sha256,
            reference_device=self._device if former is None else former.device,
        )

    def _evaluate(self, dataset: Dataset) -> CocoResult:
        progress = Progress("reference", "images")
        if self._detector is not None:
            return measure(self._detector, dataset.select(self._detector.manifest.classes), progress)
        assert self._student is not None
        assert self._device is not None
        chosen = dataset.select(self._student.classes)
        return evaluate_student(self._student, chosen, progress, self._threads, self._device)

    def notes(self, detector: Detector | None, dataset: Dataset) -> list[str]:
        """Why the two are not the same but for their form.

        Args:
            detector: the model; None of a predictions file.
        """
        if self._former is not None:
            former = self._former
            return [f"the reference is the result of {former.model} in {former.path}; it was not evaluated again"]
        if detector is None:
            return []
        manifest = detector.manifest
        if self._detector is not None:
            notes = [f"not the same work: {difference}" for difference in differences([detector, self._detector])]
            if self._detector.manifest.sha256 != manifest.sha256:
                notes.append(f"{self._path} was exported from another checkpoint than the model (sha256 differs)")
            return [*notes, *self._detector.backend.notes]
        assert self._student is not None
        notes = []
        if self._student.sha256 != manifest.sha256:
            notes.append(f"{self._path} is not the checkpoint that the model was exported from (sha256 differs)")
        own = self._student.manifest().graph.proposals
        if manifest.graph.proposals not in (None, own):
            notes.append(f"the model keeps {manifest.graph.proposals} proposals of an image, the reference {own}")
        padded = differently_padded(dataset, detector)
        if padded:
            notes.append(
                f"{padded} of {len(dataset.images)} images are padded or scaled otherwise than for the reference: "
                "the graph's input has a fixed size. That alone moves mAP a little"
            )
        return notes


def _warn(line: str) -> None:
    click.echo(f"warning: {line}", err=True)


def _print(result: EvaluationResult, ann: Path, notes: list[str], out: Path | None) -> None:
    metrics = result.metrics
    click.echo(f"{result.model} {f'({result.device}) ' if result.device else ''}on {ann}, points")
    click.echo(str(result))
    scored = f", scored by {metrics.protocol}" if metrics.protocol else ""
    click.echo(f"{metrics.images} images, {metrics.detections} detections, {metrics.seconds:.1f} s{scored}")
    if metrics.coverage:
        click.echo(metrics.coverage)
    if out is not None:
        click.echo(f"detections: {out}")
    for note in notes:
        click.echo(f"note: {note}")
    if result.drop is not None:
        click.echo(f"drop: {result.drop:+.2f} points of mAP against {result.reference}")
