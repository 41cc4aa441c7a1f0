"""An evaluation from files to its result: the model, the data set, and the reference that it is compared with."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import cskd_data
from cskd_data import CocoResult, Dataset
from cskd_data.clean import usable
from cskd_data.evaluate import load_detections
from cskd_data.files import check_not_input, sha256_of_file, write_atomically
from cskd_data.formats import annotation_files
from cskd_deploy.accuracy.eval import NONE, EvaluationResult, detect, differently_padded, load_dataset, measure
from cskd_deploy.backends import NAMES, backend_for, backend_name, beside, device_among
from cskd_deploy.detect.detector import Detector
from cskd_deploy.errors import DeployError
from cskd_deploy.exporter.mmdet_config import most_proposals
from cskd_deploy.exporter.student import StudentEvaluation, load_student, torch_device, training_packages
from cskd_deploy.measure.bench import differences
from cskd_deploy.outputs import check_output
from cskd_deploy.progress import Begin, silent

Warn = Callable[[str], None]
SUFFIX = ".json"


def evaluate_detections(
    detections: Path,
    ann: Path,
    images: Path | None = None,
    reference: Path | None = None,
    *,
    skip_broken: bool = False,
    warn: Warn = lambda line: None,
    progress: Begin = silent,
    **options: Any,
) -> EvaluationResult:
    """The metrics of a file of detections in COCO's results format, with the data set's own classes.

    Only a reference, and skipping images that cannot be used, needs the images. Arguments as `evaluate_model`.

    Raises:
        DataError, DeployError, BackendMissing: as `evaluate_model`; also when the detections cannot be used.
    """
    if reference is None or is_former(reference):
        dataset = cskd_data.read(ann, images, skip_missing=skip_broken)
        dataset.refuse_as_truth()
        if skip_broken:
            dataset = usable(dataset, use_memory=True).dataset
        warnings = tuple(map(str, dataset.notes))
    else:
        dataset, warnings = load_dataset(ann, images, None, skip_broken=skip_broken)
    for warning in warnings:
        warn(warning)
    result = EvaluationResult(
        str(detections),
        cskd_data.evaluate(dataset, load_detections(detections)),
        file_sha256=sha256_of_file(detections),
        annotations_sha256=annotations_sha256(dataset),
    )
    if reference is None:
        return result
    with contextlib.ExitStack() as stack:
        other = _Reference(reference, options, options.get("device"), stack)
        other.check(dataset)
        result = other.added_to(result, dataset, progress)
        return replace(result, notes=(*result.notes, *other.notes(None, dataset)))


def evaluate_model(
    model: Path,
    ann: Path,
    images: Path | None = None,
    reference: Path | None = None,
    *,
    backend: str | None = None,
    limit: int | None = None,
    batch: int | None = None,
    skip_broken: bool = False,
    output: Path | None = None,
    warn: Warn = lambda line: None,
    progress: Begin = silent,
    **options: Any,
) -> EvaluationResult:
    """The metrics of a model and of its reference on the same images.

    Args:
        images: folder of the images; None looks for it beside `ann`.
        reference: another model, a checkpoint, or the JSON of a former evaluation.
        limit: only the first so many images.
        batch: images at a time, of those that are padded to one size; by default as many as the graph is fixed to,
            else one. Of a reference too, where its graph takes them.
        skip_broken: leave out images that cannot be used; the result counts them.
        output: where to write the detections in COCO's results format.
        warn: called with a line for each oddity of the data set, before the model runs.
        progress: as `cskd_deploy.progress.Progress`.
        options: of `backends.backend_for`.

    Raises:
        DataError: the data set cannot be used, or `output` cannot be written or is an input.
        DeployError: the model or the reference cannot be used, `output` has the name of an image or a model, or there
            is no box to compute mAP from.
        BackendMissing: a runtime is not installed.
    """
    if output is not None:
        check_output(output, [model, reference, *annotation_files(ann)])
    with contextlib.ExitStack() as stack:
        detector = Detector(stack.enter_context(backend_for(model, backend, **options)))
        batch = detector.batch(batch)
        dataset, warnings = load_dataset(ann, images, detector.manifest.classes, limit, skip_broken)
        if output is not None:
            check_not_input(output, map(dataset.path, dataset.images))
        for warning in warnings:
            warn(warning)
        if not dataset.annotated and reference is not None:
            raise DeployError(f"--reference compares mAP, and {dataset.nothing_counts()}")
        if dataset.annotated and not dataset.countable:
            raise DeployError(f"mAP cannot be computed: {dataset.nothing_counts()}")
        # Before the model runs: a reference that cannot be had should not cost an evaluation.
        other = None
        if reference is not None:
            other = _Reference(reference, options, beside(options.get("device"), detector.backend), stack, batch)
            other.check(dataset)
        begin = time.perf_counter()
        with progress("eval", "images") as count:
            detections = detect(detector, dataset, count, batch)
        seconds = time.perf_counter() - begin
        if dataset.annotated:
            metrics = cskd_data.evaluate(dataset, detections, seconds=seconds)
        else:
            metrics = CocoResult({}, {}, "", len(dataset.images), len(detections), seconds, len(dataset.left_out))
        if output is not None:
            content = json.dumps(detections).encode()
            write_atomically(output, lambda file: file.write(content))
        result = EvaluationResult(
            str(model),
            metrics,
            file_sha256=sha256_of_file(model),
            device=detector.backend.device,
            batch=batch,
            annotations_sha256=annotations_sha256(dataset),
            notes=tuple(detector.backend.notes),
        )
        if other is not None:
            result = other.added_to(result, dataset, progress)
            result = replace(result, notes=(*result.notes, *other.notes(detector, dataset)))
    return result


class _Reference:
    """What a model is compared with: a checkpoint, another exported file, or the result of either.

    `check` comes before all else.

    Args:
        device: that it runs on; None chooses by its runtime.
        stack: closes the file's backend.
        batch: images at a time, of a file that takes any number.
    """

    def __init__(
        self,
        path: Path,
        options: Mapping[str, Any],
        device: str | None,
        stack: contextlib.ExitStack,
        batch: int | None = None,
    ) -> None:
        self._path = path
        self._batch = batch
        self._threads = options.get("threads")
        self._student = self._detector = self._former = None
        self._evaluation: StudentEvaluation | None = None
        self._device = device
        if is_former(path):
            self._former = read_former(path)
        elif backend_name(path) == "pytorch":
            self._student = load_student(path, exportable=False)
            with training_packages("evaluating the reference"):
                self._device = torch_device(device)
        else:
            own = {**options, "device": device_among(backend_name(path), NAMES, options.get("device"))}
            self._detector = Detector(stack.enter_context(backend_for(path, **own)))
            self._device = self._detector.backend.device

    def check(self, dataset: Dataset) -> None:
        """Refuse what cannot be evaluated or compared, before the model runs.

        Args:
            dataset: of the model, with its classes.

        Raises:
            DataError: the data set lacks a class of the reference.
            DeployError: its mAP is over other classes; a former result is of other images or boxes; a checkpoint's
                config does not say how images are brought in.
        """
        if self._former is not None:
            self._former.check(dataset)
            return
        reference = self._detector or self._student
        assert reference is not None
        own = dataset.select(reference.classes)
        check_same_mean(self._path, counted_classes(own), dataset)
        if self._student is not None:
            self._evaluation = StudentEvaluation(self._student, own)

    def added_to(self, result: EvaluationResult, dataset: Dataset, progress: Begin) -> EvaluationResult:
        """A model's result with that of the reference, evaluated now unless it is a former one."""
        former = self._former
        return replace(
            result,
            reference=str(self._path) if former is None else former.model,
            reference_metrics=self._evaluate(dataset, progress) if former is None else former.metrics,
            reference_sha256=sha256_of_file(self._path) if former is None else former.file_sha256,
            reference_device=self._device if former is None else former.device,
        )

    def _evaluate(self, dataset: Dataset, progress: Begin) -> CocoResult:
        with progress("reference", "images") as count:
            if self._detector is not None:
                batch = self._detector.backend.batch_size or self._batch
                return measure(self._detector, dataset.select(self._detector.manifest.classes), count, batch)
            assert self._evaluation is not None
            assert self._device is not None
            return self._evaluation.run(count, self._threads, self._device)

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
        own = most_proposals(self._student.config)
        if None not in (manifest.graph.proposals, own) and manifest.graph.proposals != own:
            notes.append(f"the model keeps {manifest.graph.proposals} proposals of an image, the reference {own}")
        padded = differently_padded(dataset, detector)
        if padded:
            notes.append(
                f"{padded} of {len(dataset.images)} images are padded or scaled otherwise than for the reference: "
                "the graph's input has a fixed size. That alone moves mAP a little"
            )
        return notes


@dataclass(frozen=True)
class FormerResult:
    """What an evaluation found, and of what."""

    path: Path  # of the JSON
    model: str
    file_sha256: str | None
    device: str | None
    metrics: CocoResult
    annotations_sha256: str

    def check(self, dataset: Dataset) -> None:
        """Refuse to be held against an evaluation of other images, classes or boxes.

        Raises:
            DeployError: says what differs.
        """
        again = "or give the model itself as --reference"
        if self.metrics.images != len(dataset.images):
            raise DeployError(
                f"--reference {self.path} is of {self.metrics.images} images, this evaluation of "
                f"{len(dataset.images)}: give the --limit and --skip-broken that it was made with, {again}"
            )
        counted = [name for name, value in self.metrics.per_class.items() if value not in (None, NONE)]
        check_same_mean(self.path, counted, dataset, f", {again}")
        if self.annotations_sha256 != annotations_sha256(dataset, self.metrics.per_class):
            raise DeployError(
                f"--reference {self.path} was evaluated on other annotations than {dataset.source}: give the --ann "
                f"that it was made with, {again}"
            )


def counted_classes(dataset: Dataset) -> list[str]:
    """The classes that mAP is the mean over: those with a box that counts."""
    there = {one["category_id"] for one in dataset.annotations if not one["iscrowd"]}
    return [category["name"] for category in dataset.data["categories"] if category["id"] in there]


def check_same_mean(reference: Path, classes: Collection[str], dataset: Dataset, or_else: str = "") -> None:
    """Refuse a reference whose mAP is the mean over other classes.

    Args:
        classes: that count in the reference's mAP.
        dataset: of the model, with its classes.
        or_else: another way out.

    Raises:
        DeployError: names both.
    """
    own = counted_classes(dataset)
    if {*classes} != {*own}:
        raise DeployError(
            f"--reference {reference} has mAP over the classes {', '.join(classes) or '(none)'}, this evaluation "
            f"{', '.join(own)}: they cannot be compared. Give a reference of the same classes{or_else}"
        )


def is_former(reference: Path) -> bool:
    """Whether a reference is the result of a former evaluation, by its name: nothing is run then."""
    return reference.suffix.lower() == SUFFIX


def read_former(path: Path) -> FormerResult:
    """The model of an evaluation, not its reference.

    Raises:
        DeployError: the file is missing, not a JSON of `cskd-deploy eval`, of an older version, or has no mAP.
    """
    try:
        data = json.loads(path.read_text())
        known = {field.name for field in fields(CocoResult)}
        metrics = CocoResult(**{name: value for name, value in data.items() if name in known})
        model, sha256 = str(data["model"]), data["file_sha256"]
        valid = isinstance(metrics.metrics, Mapping) and isinstance(metrics.per_class, Mapping)
    except OSError as error:
        raise DeployError(f"--reference {path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeployError(
            f"--reference {path} is not the output of `cskd-deploy eval MODEL ... --json` "
            f"({type(error).__name__}: {error})"
        ) from error
    if not valid or not isinstance(metrics.metrics.get("bbox_mAP"), (int, float)):
        raise DeployError(f"--reference {path} holds no mAP: evaluate the reference on annotated images")
    annotations = data.get("annotations_sha256")
    if annotations is None:
        raise DeployError(
            f"--reference {path} does not say which annotations it is of, an older version wrote it: evaluate the "
            "reference again"
        )
    return FormerResult(path, model, sha256, data.get("device"), metrics, annotations)


def annotations_sha256(dataset: Dataset, classes: Iterable[str] | None = None) -> str:
    """Of all that mAP depends on beside the detections: the images, the boxes, and the classes by name.

    The same for whatever folder the images lie in and whatever order the classes have.

    Args:
        classes: in the place of the data set's own: others may have no boxes.
    """
    names: dict[int, Any] = {category["id"]: category["name"] for category in dataset.data["categories"]}
    images: dict[int, Any] = {
        one["id"]: [str(dataset.image_keys[one["id"]]), Path(one["file_name"]).name, one["width"], one["height"]]
        for one in dataset.images
    }
    boxes: list[Any] = [
        [*images[one["image_id"]], names[one["category_id"]], *one["bbox"], one["area"], one["iscrowd"]]
        for one in dataset.annotations
    ]
    content = [sorted(names.values() if classes is None else classes), sorted(images.values()), sorted(boxes)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
