"""Whether a form finds what PyTorch finds, by the detections of their evaluations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from cskd_deploy.accuracy.agreement import Boxes, matched_pairs

# As in the comparison of an INT8 file with FP32 (`accuracy.against_fp32`), and what `infer` shows by default.
IOU, SCORE, SHOWN = 0.5, 0.1, 0.3


def agreement(reference: Path, other: Path) -> float | None:
    """The share of the detections of two files above `SHOWN` that have a partner in the other, whatever its score.

    Partners are of one class, overlap by `IOU` and have scores within `SCORE`.

    Args:
        reference, other: detections in COCO's results format.

    Returns:
        None where neither file has such a detection.
    """
    labels: dict[Any, int] = {}
    first, second = _by_image(reference, labels), _by_image(other, labels)
    wanted = missing = 0
    for image in first.keys() | second.keys():
        sides = [by_image.get(image, _NOTHING) for by_image in (first, second)]
        pairs = matched_pairs(sides[0], sides[1], IOU, SCORE)
        for place, boxes in enumerate(sides):
            shown = boxes[1] > SHOWN
            wanted += int(shown.sum())
            shown[pairs[:, place]] = False
            missing += int(shown.sum())
    return 1 - missing / wanted if wanted else None


_NOTHING: Boxes = (np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=np.int64))


def _by_image(path: Path, labels: dict[Any, int]) -> dict[Any, Boxes]:
    """Boxes by image; `labels` numbers the categories, and gets those that it has not."""
    found: dict[Any, list[dict[str, Any]]] = {}
    for one in json.loads(path.read_text()):
        found.setdefault(one["image_id"], []).append(one)
    arrays = {}
    for image, entries in found.items():
        boxes = np.array([entry["bbox"] for entry in entries], dtype=np.float64)
        boxes[:, 2:] += boxes[:, :2]
        scores = np.array([entry["score"] for entry in entries], dtype=np.float64)
        numbers = [labels.setdefault(entry["category_id"], len(labels)) for entry in entries]
        arrays[image] = (boxes, scores, np.array(numbers))
    return arrays
