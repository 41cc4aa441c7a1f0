"""Which detections of an image are right, and on which images two detectors differ most."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cskd_data.operating_point import IOU
from cskd_train.report.detected import Found

Box = Sequence[float]  # x, y, width, height in pixels


@dataclass(frozen=True)
class Marked:
    """A box on an image, and whether it is right: of a true box whether a detection has it."""

    box: Box
    name: str
    right: bool
    score: float | None = None


@dataclass(frozen=True)
class OnImage:
    """What a detector finds on an image from its threshold on."""

    boxes: Sequence[Marked]
    truth: Sequence[Marked]

    @property
    def right(self) -> int:
        return sum(one.right for one in self.boxes)

    @property
    def wrong(self) -> int:
        return len(self.boxes) - self.right

    @property
    def missed(self) -> int:
        return sum(not one.right for one in self.truth)

    def __str__(self) -> str:
        return f"{self.right} of {len(self.truth)} boxes found, {self.wrong} wrong"


def on_images(found: Found) -> dict[int, OnImage]:
    """By the id of the image in normal form."""
    data = found.data
    truth, detections = defaultdict(list), defaultdict(list)
    for one in data.with_keys()["annotations"]:
        truth[one["image_id"]].append(one)
    for one in found.detections:
        if one["score"] >= found.threshold:
            detections[one["image_id"]].append(one)
    names = dict(zip(data.category_keys.values(), data.classes, strict=True))
    return {image: _marked(truth[key], detections[key], names) for image, key in data.image_keys.items()}


def _marked(
    truth: Sequence[Mapping[str, Any]], detections: Sequence[Mapping[str, Any]], names: Mapping[Any, str]
) -> OnImage:
    """The highest score first takes the free box of its class that it covers best; crowds take any number.

    A detection on a crowd is neither right nor wrong, and left out.
    """
    single = [one for one in truth if not one.get("iscrowd")]
    crowds = [one for one in truth if one.get("iscrowd")]
    taken: set[int] = set()
    boxes = []
    for one in sorted(detections, key=lambda one: -one["score"]):
        free = [
            (overlap(one["bbox"], other["bbox"]), place)
            for place, other in enumerate(single)
            if place not in taken and other["category_id"] == one["category_id"]
        ]
        best, place = max(free, default=(0.0, -1))
        if best >= IOU:
            taken.add(place)
        elif any(
            crowd["category_id"] == one["category_id"] and overlap(one["bbox"], crowd["bbox"], crowd=True) >= IOU
            for crowd in crowds
        ):
            continue
        boxes.append(Marked(one["bbox"], names[one["category_id"]], best >= IOU, one["score"]))
    marked = [Marked(one["bbox"], names[one["category_id"]], place in taken) for place, one in enumerate(single)]
    return OnImage(boxes, marked)


def overlap(one: Box, other: Box, crowd: bool = False) -> float:
    """IoU of two boxes; of a crowd the share of the first box that lies in it.

    Example:
        >>> overlap((0, 0, 2, 2), (1, 0, 2, 2)), overlap((0, 0, 2, 2), (1, 0, 9, 9), crowd=True)
        (0.3333333333333333, 0.5)
    """
    (x, y, w, h), (u, v, s, t) = one, other
    shared = max(min(x + w, u + s) - max(x, u), 0) * max(min(y + h, v + t) - max(y, v), 0)
    area = w * h if crowd else w * h + s * t - shared
    return shared / area if area > 0 else 0.0


def changed_most(before: Mapping[int, OnImage], after: Mapping[int, OnImage], most: int) -> list[int]:
    """The images on which more or fewer boxes are found or wrong, the largest change first."""
    changes = {
        image: abs(one.right - after[image].right) + abs(one.wrong - after[image].wrong)
        for image, one in before.items()
    }
    return [image for image in sorted(changes, key=lambda image: (-changes[image], image)) if changes[image]][:most]


def worst(of: Mapping[int, OnImage], most: int) -> list[int]:
    """The images with the most errors."""
    errors = {image: one.wrong + one.missed for image, one in of.items()}
    return sorted(errors, key=lambda image: (-errors[image], image))[:most]
