"""COCO mAP of the very file that is shipped: its own metadata, pre- and post-processing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import cskd_data
from cskd_data import CocoResult, Dataset
from cskd_data.check import check
from cskd_data.clean import usable
from cskd_data.ids import Key
from cskd_data.images import read_image
from cskd_deploy.detector import Detector
from cskd_deploy.errors import DeployError
from cskd_deploy.postprocess import Detections
from cskd_deploy.preprocess import padded_size, resized_size, unbounded

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
        DataError: the data set cannot be used, an image is missing, damaged or of another size than annotated, or a
            class is missing; no image is left.
    """
    dataset = cskd_data.read(ann, images, skip_missing=skip_broken)
    if classes is not None:
        dataset = dataset.select(classes)
    if limit is not None:
        dataset = dataset.subset([image["id"] for image in dataset.images[:limit]])
    if skip_broken:
        dataset = usable(dataset, use_memory=True).dataset
    report = check(dataset, use_memory=True)
    report.raise_for_errors()
    return dataset, report.warnings


def detect(detector: Detector, dataset: Dataset, progress: Callable[[int, int], None]) -> CocoDetections:
    """Detections of every image, one image in memory at a time.

    Raises:
        DeployError, DataError: an image is damaged, or of another size than annotated.
    """
    found: CocoDetections = []
    keys = tuple(dataset.category_keys.values())
    for done, entry in enumerate(dataset.images, start=1):
        path = dataset.path(entry)
        image = read_image(path)
        if image.shape[:2] != (entry["height"], entry["width"]):
            raise DeployError(
                f"image {path} is {image.shape[1]} x {image.shape[0]} pixels, but the annotations say "
                f"{entry['width']} x {entry['height']}: its boxes would not fit"
            )
        found.extend(in_coco_form(detector.detect(image), dataset.image_keys[entry["id"]], keys))
        progress(done, len(dataset.images))
    return found


def measure(detector: Detector, dataset: Dataset, progress: Callable[[int, int], None]) -> CocoResult:
    """The twelve COCO numbers and the AP of each class of a detector."""
    begin = time.perf_counter()
    found = detect(detector, dataset, progress)
    return cskd_data.evaluate(dataset, found, seconds=time.perf_counter() - begin)


def differently_padded(dataset: Dataset, detector: Detector) -> int:
    """How many images a fixed input pads, or scales, otherwise than mmdet's test pipeline does.

    Their detections differ a little from mmdet's for that reason alone. A dynamic input pads none otherwise.
    """
    if detector.manifest.graph.dynamic:
        return 0
    rule = detector.manifest.preprocessing
    own = unbounded(rule)
    sizes = [(entry["height"], entry["width"]) for entry in dataset.images]
    return sum(padded_size(resized_size(size, own), rule.pad_divisor) != rule.input_size for size in sizes)


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
