"""Whether two backends found the same: a greedy match of two sets of boxes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Agreement:
    """How far two sets of scored boxes agree."""

    reference: int  # boxes in the reference
    other: int
    matched: int
    largest_score_difference: float  # among the matched
    largest_corner_difference: float  # in pixels, among the matched

    @property
    def share(self) -> float:
        """Matched boxes over those of the larger set; 1 where both are empty."""
        larger = max(self.reference, self.other)
        return self.matched / larger if larger else 1.0


Boxes = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes (n, 4), scores (n,), labels (n,)


def match(reference: Boxes, other: Boxes, iou: float = 0.99, score: float = 1e-3) -> Agreement:
    """Match boxes of the same label one to one, the reference's best first, each with the most overlapping one left.

    Args:
        iou: the overlap from which two boxes are the same; boxes with corners within 0.01 pixels are the same as well,
            so that boxes without area can be matched.
        score: how far their scores may lie apart.
    """
    pairs = matched_pairs(reference, other, iou, score)
    first, second = pairs[:, 0], pairs[:, 1]
    return Agreement(
        reference=len(reference[1]),
        other=len(other[1]),
        matched=len(pairs),
        largest_score_difference=float(np.abs(reference[1][first] - other[1][second]).max(initial=0)),
        largest_corner_difference=float(np.abs(reference[0][first] - other[0][second]).max(initial=0)),
    )


def matched_pairs(reference: Boxes, other: Boxes, iou: float = 0.99, score: float = 1e-3) -> np.ndarray:
    """The boxes that `match` matches, `(pairs, 2)`: places in the reference and in the other set."""
    found = []
    for label in np.unique(reference[2]):
        first, second = np.flatnonzero(reference[2] == label), np.flatnonzero(other[2] == label)
        pairs = _pairs(reference[0][first], reference[1][first], other[0][second], other[1][second], iou, score)
        found += [(first[place], second[mate]) for place, mate in pairs]
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def _pairs(
    boxes: np.ndarray, scores: np.ndarray, other_boxes: np.ndarray, other_scores: np.ndarray, iou: float, score: float
) -> Iterator[tuple[int, int]]:
    """The matched boxes of one label, as places in both sets."""
    free = np.ones(len(other_scores), dtype=bool)
    for place in np.argsort(-scores, kind="stable"):
        near = np.flatnonzero(free & (np.abs(other_scores - scores[place]) <= score))
        if not len(near):
            continue
        overlaps = iou_with(boxes[place], other_boxes[near])
        if overlaps.max() >= iou:
            apart = np.abs(other_scores[near] - scores[place])
            # Among boxes that overlap alike (clipped to nothing at the same border) the score decides.
            best = near[int(np.where(overlaps >= overlaps.max() - 1e-6, apart, np.inf).argmin())]
            free[best] = False
            yield int(place), int(best)


def iou_with(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of one box with others, 1 where their corners are the same."""
    width = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    height = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    common = width.clip(0) * height.clip(0)
    area = (box[2] - box[0]) * (box[3] - box[1])
    union = area + (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1]) - common
    same = np.abs(others - box).max(axis=1) <= 0.01
    return np.where(same, 1.0, common / np.maximum(union, 1e-12))
