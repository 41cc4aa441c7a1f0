"""What kinds of errors cost a detector its AP: TIDE's six, each by what curing it alone would give.

Bolya, Foley, Hays, Hoffman: "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020, section 2. A
detection that is not right is of one kind, tested in this order (f the IoU from which a detection is right, b the one
below which it has nothing to do with a box):

    localisation    its highest IoU with a box of its own class is in [b, f)
    classification  its IoU with a box of another class is at least f
    duplicate       its IoU with a box of its own class is at least f, but a detection of a higher score has that box
    background      its IoU with every box is below b
    both            what is left: localisation and class are wrong

and a box that no detection has, nor would have with its class or its place cured, is `missed`. The cure of a
classification or localisation error makes the detection right, where no other has its box; where several would then
have it, that with the highest score; otherwise, and for the other kinds of detections, the cure leaves the detection
out. A missed box is cured by not asking for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask

from cskd_data.dataset import Dataset
from cskd_data.errors import DataError
from cskd_data.evaluate import Detections, load_detections, numbered

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
_RIGHT = "right"
_MOST_AN_IMAGE = 100
_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class ErrorKinds:
    """What each kind of error costs.

    Attributes:
        ap: AP at the IoU asked for, mean over the classes that have boxes, in points (0 to 100).
        dap: kind -> by how many points curing all errors of this kind, and no other, would raise `ap`. These do not
            add up to what is missing to 100.
        counts: kind -> how many detections, of missed how many boxes.
    """

    ap: float
    dap: Mapping[str, float]
    counts: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {"ap": self.ap, "dap": dict(self.dap), "counts": dict(self.counts)}

    def __str__(self) -> str:
        """One line a kind: what curing it alone would add to the AP, and how many there are."""
        lines = (f" {kind:<14}  {self.dap[kind]:5.1f}  {self.counts[kind]:6d}" for kind in KINDS)
        return "\n".join((f" {'kind':<14}  {'dAP':>5}  {'number':>6}", *lines))


@dataclass
class _Image:
    """The detections of one image, at most 100, highest score first, the kind of each and what its cure makes of it."""

    scores: np.ndarray  # (D,)
    labels: np.ndarray  # (D,) category
    kinds: list[str] = field(default_factory=list)
    cured: list[int] = field(default_factory=list)  # the category as which the cure makes it right; 0: it is left out
    missed: list[int] = field(default_factory=list)  # the categories of missed boxes


def error_kinds(
    dataset: Dataset, detections: Detections | Path | str, *, iou: float = 0.5, background: float = 0.1
) -> ErrorKinds:
    """Of which kinds a detector's errors are.

    A detection that is not right and of which more than `iou` lies in a crowd of its class is left out of account.

    Args:
        detections: in COCO's results format with the user's own ids, or a JSON file of them.
        iou: from this overlap on a detection is right.
        background: below this overlap a detection has nothing to do with a box.

    Raises:
        DataError: the data set is pseudo-labelled or has no box that counts; a detection is not of this data set.
    """
    dataset.refuse_as_truth()
    if not dataset.countable:
        raise DataError(f"errors cannot be told apart: {dataset.nothing_counts()}")
    if isinstance(detections, (str, Path)):
        detections = load_detections(Path(detections))
    boxes, found = defaultdict(list), defaultdict(list)
    for one in dataset.annotations:
        boxes[one["image_id"]].append(one)
    for one in numbered(dataset, detections):
        found[one["image_id"]].append(one)
    images = [
        _of_image(boxes[image["id"]], found[image["id"]], iou, background)
        for image in dataset.images
        if boxes[image["id"]] or found[image["id"]]
    ]
    asked: defaultdict[int, int] = defaultdict(int)
    for one in dataset.annotations:
        if not one["iscrowd"]:
            asked[one["category_id"]] += 1
    ap = _ap(images, asked)
    counts = dict.fromkeys(KINDS, 0)
    for image in images:
        for kind in image.kinds:
            if kind in counts:
                counts[kind] += 1
        counts["missed"] += len(image.missed)
    return ErrorKinds(ap, {kind: max(_ap(images, asked, cure=kind) - ap, 0.0) for kind in KINDS}, counts)


def _of_image(
    annotations: list[dict[str, Any]], found: list[dict[str, Any]], right_from: float, background: float
) -> _Image:
    found = sorted(found, key=lambda one: -one["score"])[:_MOST_AN_IMAGE]
    boxes = [one for one in annotations if not one["iscrowd"]]
    classes = np.array([one["category_id"] for one in boxes], dtype=int)
    labels = np.array([one["category_id"] for one in found], dtype=int)
    image = _Image(np.array([one["score"] for one in found], dtype=float), labels)
    overlap = _iou(found, boxes, crowd=False)
    of_class = image.labels[:, None] == classes[None, :]
    taken = np.zeros(len(boxes), dtype=bool)
    is_right = [_take(row * same, taken, right_from) for row, same in zip(overlap, of_class, strict=True)]
    on_crowd = _on_crowd(found, annotations, right_from)
    claimed = taken.copy()
    for right, ignored, row, same in zip(is_right, on_crowd, overlap, of_class, strict=True):
        kind, box = (_RIGHT, None) if right else _kind(row, same, right_from, background)
        if ignored and not right:
            kind, box = "", None
        image.kinds.append(kind)
        image.cured.append(0)
        if box is not None and not claimed[box]:
            claimed[box] = True
            image.cured[-1] = int(classes[box])
    image.missed = classes[~claimed].tolist()
    return image


def _iou(found: list[dict[str, Any]], boxes: list[dict[str, Any]], *, crowd: bool) -> np.ndarray:
    """(detections, boxes); of a crowd the share of the detection that lies in it."""
    if not found or not boxes:
        return np.zeros((len(found), len(boxes)))
    overlap = mask.iou([one["bbox"] for one in found], [one["bbox"] for one in boxes], [crowd] * len(boxes))
    return np.asarray(overlap)


def _take(overlap: np.ndarray, taken: np.ndarray, right_from: float) -> bool:
    """Whether a detection is right: it takes the free box of its class that it overlaps most."""
    free = np.where(taken, 0.0, overlap)
    if not free.size or free.max() < right_from:
        return False
    taken[free.argmax()] = True
    return True


def _on_crowd(found: list[dict[str, Any]], annotations: list[dict[str, Any]], right_from: float) -> np.ndarray:
    crowds = [one for one in annotations if one["iscrowd"]]
    same = np.array([[one["category_id"] == crowd["category_id"] for crowd in crowds] for one in found], dtype=bool)
    inside = _iou(found, crowds, crowd=True) > right_from
    return (inside & same.reshape(inside.shape)).any(axis=1)


def _kind(overlap: np.ndarray, same: np.ndarray, right_from: float, background: float) -> tuple[str, int | None]:
    """The kind of a detection that is not right, and the box whose it would be with its class or place cured."""
    own, other = np.where(same, overlap, 0.0), np.where(same, 0.0, overlap)
    if not overlap.size or overlap.max() < background:
        return "background", None
    if background <= own.max() < right_from:
        return "localisation", int(own.argmax())
    if other.max() >= right_from:
        return "classification", int(other.argmax())
    return ("duplicate", None) if own.max() >= right_from else ("both", None)


def _ap(images: list[_Image], asked: Mapping[int, int], cure: str = "") -> float:
    """AP in points, mean over classes, with the errors of one kind cured."""
    scores: defaultdict[int, list[float]] = defaultdict(list)
    right: defaultdict[int, list[bool]] = defaultdict(list)
    wanted = dict(asked)
    for image in images:
        for score, label, kind, cured in zip(image.scores, image.labels, image.kinds, image.cured, strict=True):
            of_class = cured if kind == cure else int(label)
            if kind and of_class:
                scores[of_class].append(float(score))
                right[of_class].append(kind in (_RIGHT, cure))
        if cure == "missed":
            for category in image.missed:
                wanted[category] -= 1
    counting = [category for category in wanted if wanted[category] or scores[category]]
    return float(np.mean([_ap_of_class(scores[one], right[one], wanted[one]) for one in counting])) if counting else 0.0


def _ap_of_class(scores: list[float], right: list[bool], wanted: int) -> float:
    """COCO's: the mean over 101 recalls of the highest precision at that recall or above."""
    if not wanted or not scores:
        return 0.0
    hits = np.asarray(right)[np.argsort(-np.asarray(scores), kind="stable")]
    recall = hits.cumsum() / wanted
    precision = np.maximum.accumulate((hits.cumsum() / np.arange(1, len(hits) + 1))[::-1])[::-1]
    place = np.searchsorted(recall, _RECALLS, side="left")
    return float(np.append(precision, 0.0)[place].mean() * 100)
