"""What a COCO annotation file holds, as a typed object that prints itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# COCO's limits of small, medium and large, in pixels of `area`; pycocotools reports mAP for each.
SMALL_BELOW, MEDIUM_BELOW = 32**2, 96**2
SHOWN_DEGENERATE = 10


@dataclass(frozen=True)
class DegenerateBox:
    """A box that counts neither in training nor in evaluation (`cskd_train.data.boxes.is_degenerate`)."""

    image: str
    annotation_id: int
    bbox: tuple[float, float, float, float]  # x, y, width, height in pixels, as the file has it
    fault: str

    def __str__(self) -> str:
        numbers = ", ".join(f"{number:g}" for number in self.bbox)
        return f"annotation {self.annotation_id} of {self.image} is kept out: its box [{numbers}] {self.fault}"


@dataclass(frozen=True)
class DatasetReport:
    """One annotation file and its images, checked and fit to be used.

    Boxes are counted without degenerate ones and without categories that are not among the classes.
    """

    ann_file: str
    image_root: str
    images: int
    images_without_boxes: int
    boxes: int
    boxes_per_class: Mapping[str, int]  # in the order of the labels
    category_ids: Mapping[str, int]  # class -> category id in the file; label i is the i-th
    box_sizes: Mapping[str, int]  # small, medium, large by COCO's limits of area
    degenerate: tuple[DegenerateBox, ...]
    decoded: bool  # whether every image was decoded in full
    seconds: float
    notes: tuple[str, ...] = ()  # what is odd, beside degenerate boxes

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know before training: one line per degenerate box (the first ten), then the notes."""
        named = tuple(str(box) for box in self.degenerate[:SHOWN_DEGENERATE])
        left = len(self.degenerate) - len(named)
        more = (f"{left} more boxes are kept out; `cskd-train data check --json` lists them all",) if left else ()
        return named + more + self.notes

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {**asdict(self), "warnings": list(self.warnings)}

    def __str__(self) -> str:
        width = max(5, *(len(name) for name in self.boxes_per_class))
        sizes = ", ".join(f"{count} {size}" for size, count in self.box_sizes.items())
        lines = [
            f"{self.ann_file}: {self.images} images ({self.images_without_boxes} without boxes), {self.boxes} boxes",
            f"  sizes: {sizes} (limits: {SMALL_BELOW} and {MEDIUM_BELOW} square pixels)",
            f"  {'label':>5}  {'class':<{width}}  {'category id':>11}  {'boxes':>7}",
        ]
        lines += [
            f"  {label:>5}  {name:<{width}}  {self.category_ids[name]:>11}  {count:>7}"
            for label, (name, count) in enumerate(self.boxes_per_class.items())
        ]
        lines += [f"  warning: {warning}" for warning in self.warnings]
        how = "decoded" if self.decoded else "looked at (--decode decodes them)"
        return "\n".join([*lines, f"  every image was {how} in {self.seconds:.1f} s: fit for use"])
