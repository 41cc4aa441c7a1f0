"""COCO mAP of the very file that is shipped: its own metadata, pre- and post-processing, and pycocotools."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cskd_deploy.annotations import Annotations
from cskd_deploy.detector import Detector
from cskd_deploy.errors import DeployError
from cskd_deploy.images import read_image
from cskd_deploy.postprocess import Detections
from cskd_deploy.preprocess import padded_size, resized_size, unbounded
from cskd_deploy.results import CocoMetrics

CocoDetections = list[dict[str, Any]]  # COCO's results format: image_id, category_id, bbox (x, y, w, h), score


def detect(
    detector: Detector, annotations: Annotations, folder: Path, progress: Callable[[int, int], None]
) -> CocoDetections:
    """Detections of every annotated image, one image in memory at a time.

    Raises:
        DeployError: an image is missing (found before the first is read), damaged, or of another size than annotated.
    """
    images = annotations.images
    check_images_exist(annotations, folder)
    found: CocoDetections = []
    for done, entry in enumerate(images, start=1):
        path = folder / entry["file_name"]
        image = read_image(path)
        if image.shape[:2] != (entry["height"], entry["width"]):
            raise DeployError(
                f"image {path} is {image.shape[1]} x {image.shape[0]} pixels, but the annotations say "
                f"{entry['width']} x {entry['height']}: its boxes would not fit"
            )
        found.extend(in_coco_form(detector.detect(image), entry["id"], annotations.category_ids))
        progress(done, len(images))
    return found


def check_images_exist(annotations: Annotations, folder: Path) -> None:
    """Every annotated image must be there.

    Raises:
        DeployError: names the folder, or the first missing images and their count.
    """
    if not folder.is_dir():
        raise DeployError(f"image folder {folder} does not exist")
    missing = [entry["file_name"] for entry in annotations.images if not (folder / entry["file_name"]).is_file()]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DeployError(
            f"{len(missing)} of {len(annotations.images)} annotated images are not in {folder}: {shown}. "
            "Give the folder that the annotation's file names start from"
        )


def measure(annotations: Annotations, found: CocoDetections, classes: tuple[str, ...], seconds: float) -> CocoMetrics:
    """The twelve COCO numbers and the AP of each class.

    Args:
        seconds: how long the detection took.
    """
    begin = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its steps
        truth = _coco(annotations.data)
        # Copies: loadRes writes areas and outlines into what it is given.
        predicted = (
            truth.loadRes([dict(one) for one in found]) if found else _coco({**annotations.data, "annotations": []})
        )
        protocol = COCOeval(truth, predicted, "bbox")
        protocol.params.catIds = list(annotations.category_ids)
        protocol.params.imgIds = [entry["id"] for entry in annotations.images]
        protocol.evaluate()
        protocol.accumulate()
        protocol.summarize()
    # (IoU, recall, class, area, detections per image) -> all areas, most detections; -1 where the class has no box.
    # pycocotools sorts the categories by id; the classes need not be in that order.
    precision = protocol.eval["precision"][:, :, :, 0, -1]
    by_category = dict(zip(protocol.params.catIds, precision.transpose(2, 0, 1), strict=True))
    return CocoMetrics(
        values=tuple(float(value) for value in protocol.stats),
        per_class={
            name: float(by_category[category].mean()) if by_category[category].max() > -1 else None
            for name, category in zip(classes, annotations.category_ids, strict=True)
        },
        images=len(annotations.images),
        detections=len(found),
        seconds=seconds + time.perf_counter() - begin,
    )


def differently_padded(annotations: Annotations, detector: Detector) -> int:
    """How many images a fixed input pads, or scales, otherwise than mmdet's test pipeline does.

    Their detections differ a little from mmdet's for that reason alone. A dynamic input pads none otherwise.
    """
    if detector.manifest.graph.dynamic:
        return 0
    rule = detector.manifest.preprocessing
    own = unbounded(rule)
    sizes = [(entry["height"], entry["width"]) for entry in annotations.images]
    return sum(padded_size(resized_size(size, own), rule.pad_divisor) != rule.input_size for size in sizes)


def in_coco_form(detections: Detections, image_id: Any, category_ids: tuple[int, ...]) -> CocoDetections:
    """Detections of one image as rows of COCO's results format."""
    corners = detections.boxes.astype(np.float64)
    sizes = corners[:, 2:] - corners[:, :2]
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": [x, y, w, h], "score": score}
        for (x, y), (w, h), score, label in zip(
            corners[:, :2].tolist(), sizes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True
        )
    ]


def _coco(data: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = data
    coco.createIndex()
    return coco
