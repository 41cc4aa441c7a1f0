"""COCO mAP of the very file that is shipped: its own metadata, pre- and post-processing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import cskd_data
from cskd_data import CocoResult, Dataset
from cskd_data.check import check
from cskd_data.clean import usable
from cskd_data.ids import Key
from cskd_data.images import read_image
from cskd_deploy.arguments import whole
from cskd_deploy.detect.detector import Detector
from cskd_deploy.detect.postprocess import Detections
from cskd_deploy.detect.preprocess import exact_placement, placement
from cskd_deploy.errors import DeployError

CocoDetections = list[dict[str, Any]]  # COCO's results format, with the ids of the user's file


def load_dataset(
    ann: Path,
    images: Path | None,
    classes: Sequence[str] | None,
    limit: int | None = None,
    skip_broken: bool = False,
) -> tuple[Dataset, tuple[str, ...]]:
    """The data set of an evaluation, with its images checked, and what to warn of.

    Args:
        images: folder of the images; None looks for it beside `ann`.
        classes: of the model; None takes the data set's own.
        limit: keep the first so many images (by their order in the file) and their boxes.
        skip_broken: leave out images that cannot be used, of these.

    Raises:
        DataError: the data set cannot be used or is pseudo-labelled, an image is missing, damaged or of another size
            than annotated, or a class is missing; no image is left.
        DeployError: `limit` is no whole number from 1 on.
    """
    limit = None if limit is None else whole(limit, "limit")
    dataset = cskd_data.read(ann, images, skip_missing=skip_broken)
    dataset.refuse_as_truth()
    if classes is not None:
        dataset = dataset.select(classes)
    if limit is not None:
        dataset = dataset.subset([image["id"] for image in dataset.images[:limit]])
    if skip_broken:
        dataset = usable(dataset, use_memory=True).dataset
    report = check(dataset, use_memory=True)
    report.raise_for_errors()
    return dataset, report.warnings


def load_countable(ann: Path, images: Path | None, classes: Sequence[str], limit: int | None = None) -> Dataset:
    """The data set of an evaluation from which mAP can be computed: for what would only fail after long work.

    Args, raises: as `load_dataset`; also DeployError where no box counts.
    """
    dataset, _ = load_dataset(ann, images, classes, limit)
    if not dataset.countable:
        raise DeployError(f"mAP cannot be computed: {dataset.nothing_counts()}")
    return dataset


def detect(
    detector: Detector, dataset: Dataset, progress: Callable[[int, int], None], batch: int | None = None
) -> CocoDetections:
    """Detections of every image, in the order of the data set; one batch of images in memory at a time.

    Args:
        batch: how many at a time, of those that are padded to one size; as `Detector.batch`.

    Raises:
        DeployError, DataError: an image is damaged, or of another size than annotated; the graph takes no such batch.
    """
    count = detector.batch(batch)
    images = dataset.images if count == 1 else sorted(dataset.images, key=lambda entry: detector.canvas(_size(entry)))
    keys = tuple(dataset.category_keys.values())
    found: dict[int, CocoDetections] = {}
    for entries in detector.batches(images, _size, count):
        detections = detector.detect_batch([_image(dataset, entry) for entry in entries])
        for entry, one in zip(entries, detections, strict=True):
            found[entry["id"]] = in_coco_form(one, dataset.image_keys[entry["id"]], keys)
        progress(len(found), len(images))
    return [row for entry in dataset.images for row in found[entry["id"]]]


def _size(entry: Mapping[str, Any]) -> tuple[int, int]:
    return entry["height"], entry["width"]


def _image(dataset: Dataset, entry: dict[str, Any]) -> np.ndarray:
    path = dataset.path(entry)
    image = read_image(path)
    if image.shape[:2] != _size(entry):
        raise DeployError(
            f"image {path} is {image.shape[1]} x {image.shape[0]} pixels, but the annotations say "
            f"{entry['width']} x {entry['height']}: its boxes would not fit"
        )
    return image


def measure(
    detector: Detector, dataset: Dataset, progress: Callable[[int, int], None], batch: int | None = None
) -> CocoResult:
    """The twelve COCO numbers and the AP of each class of a detector."""
    begin = time.perf_counter()
    found = detect(detector, dataset, progress, batch)
    return cskd_data.evaluate(dataset, found, seconds=time.perf_counter() - begin)


def differently_padded(dataset: Dataset, detector: Detector) -> int:
    """How many images are padded, or scaled, otherwise than mmdet's test pipeline does.

    Their detections differ a little from mmdet's for that reason alone. A graph that takes every size pads none
    otherwise.
    """
    rule, form = detector.manifest.preprocessing, detector.manifest.graph
    return sum(placement(_size(entry), rule, form) != exact_placement(_size(entry), rule) for entry in dataset.images)


def in_coco_form(detections: Detections, image_key: Key, category_keys: Sequence[Key]) -> CocoDetections:
    """Detections of one image as rows of COCO's results format."""
    corners = detections.boxes.astype(np.float64)
    sizes = corners[:, 2:] - corners[:, :2]
    return [
        {"image_id": image_key, "category_id": category_keys[label], "bbox": [x, y, w, h], "score": score}
        for (x, y), (w, h), score, label in zip(
            corners[:, :2].tolist(), sizes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True
        )
    ]


_TITLES = {
    "bbox_mAP": "AP   IoU 0.50:0.95",
    "bbox_mAP_50": "AP   IoU 0.50",
    "bbox_mAP_75": "AP   IoU 0.75",
    "bbox_mAP_s": "AP   small",
    "bbox_mAP_m": "AP   medium",
    "bbox_mAP_l": "AP   large",
    "bbox_AR_1": "AR   1 detection",
    "bbox_AR_10": "AR   10 detections",
    "bbox_AR_100": "AR   100 detections",
    "bbox_AR_s": "AR   small",
    "bbox_AR_m": "AR   medium",
    "bbox_AR_l": "AR   large",
}
NONE = -1.0  # pycocotools: there is no such box in the annotations


@dataclass(frozen=True)
class EvaluationResult:
    """The metrics of a model or a predictions file, and of the reference it is held against."""

    model: str
    metrics: CocoResult
    reference: str | None = None
    reference_metrics: CocoResult | None = None
    file_sha256: str | None = None  # of the model
    reference_sha256: str | None = None
    device: str | None = None  # None of a predictions file
    reference_device: str | None = None
    annotations_sha256: str | None = None  # of the images, boxes and classes; what `eval --reference` goes by
    batch: int | None = None  # images at a time; None of a predictions file
    notes: tuple[str, ...] = ()  # why the two are not the same but for their form; what the runtime does

    @property
    def drop(self) -> float | None:
        """How many points (hundredths) of mAP the model lies below its reference; below zero where it lies above."""
        if self.reference_metrics is None:
            return None
        return 100 * (self.reference_metrics.mean_average_precision - self.metrics.mean_average_precision)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        reference = None if self.reference_metrics is None else self.reference_metrics.to_dict()
        return {
            "model": self.model,
            "file_sha256": self.file_sha256,
            "device": self.device,
            "batch": self.batch,
            "annotations_sha256": self.annotations_sha256,
            **self.metrics.to_dict(),
            "reference": self.reference,
            "reference_sha256": self.reference_sha256,
            "reference_device": self.reference_device,
            "reference_metrics": reference,
            "drop_points": self.drop,
            "notes": list(self.notes),
        }

    def rows(self) -> list[tuple[str, list[float | None]]]:
        """Title and points of each metric and each class: the model's, and the reference's if there is one."""
        tables = [self.metrics] + ([] if self.reference_metrics is None else [self.reference_metrics])
        rows = [(title, [_points(table.metrics[key]) for table in tables]) for key, title in _TITLES.items()]
        rows += [
            (f"AP   {name}", [_points(table.per_class.get(name)) for table in tables])
            for name in self.metrics.per_class
        ]
        return rows

    def __str__(self) -> str:
        if not self.metrics.metrics:
            return str(self.metrics)
        rows = self.rows()
        width = max(len(title) for title, _ in rows)
        header = f"{'':{width}}      model" + ("  reference     drop" if self.reference_metrics else "")
        lines = [header]
        for place, (title, values) in enumerate(rows):
            if place == len(_TITLES):
                lines.append("-" * len(header))
            cells = "".join(f"{'-' if value is None else format(value, '.2f'):>11}" for value in values)
            if len(values) == 2:
                drop = None if values[0] is None or values[1] is None else values[1] - values[0]
                cells += f"{'-' if drop is None else format(drop, '+.2f'):>9}"
            lines.append(f"{title:{width}}{cells}")
        return "\n".join(lines)


def _points(value: float | None) -> float | None:
    return None if value is None or value == NONE else 100 * value
