"""Check a data set and its images before anything is trained or evaluated on them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cskd_data import fingerprint as memory
from cskd_data.boxes import reaches_over
from cskd_data.dataset import Dataset, Note
from cskd_data.errors import DataError, refuse
from cskd_data.ids import Key
from cskd_data.image_check import ImageFindings, check_images
from cskd_data.names import counted

# COCO's limits of small, medium and large, in pixels of `area`; pycocotools reports mAP for each.
SMALL_BELOW, MEDIUM_BELOW = 32**2, 96**2
LEAST_SIDE = 32
"""Pixels; mmdet leaves images with a shorter side out of training."""


@dataclass(frozen=True)
class Report:
    """What a data set holds, what is odd about it, and what forbids its use.

    Boxes are counted without those that nothing can match; crowds are among them.
    """

    source: str
    image_root: str | None
    images: int
    images_without_boxes: int
    boxes: int
    boxes_per_class: Mapping[str, int]  # in the order of the labels
    category_ids: Mapping[str, Key]  # class -> category id in the user's file
    box_sizes: Mapping[str, int]  # small, medium, large by COCO's limits of area
    annotated: bool  # False: images only, to detect on
    notes: tuple[Note, ...]
    errors: tuple[str, ...]  # faults of images, or one sentence on the boxes
    way_out: str  # what to do about the errors; empty where they say it
    decoded: bool  # whether every image was decoded in full
    remembered: bool  # whether the images were checked before, and have not changed since
    seconds: float

    @property
    def warnings(self) -> tuple[str, ...]:
        """The notes as lines."""
        return tuple(map(str, self.notes))

    def raise_for_errors(self) -> None:
        """Refuse a data set that cannot be used.

        Raises:
            DataError: the first few errors, their count and the way out.
        """
        if self.errors and not self.way_out:
            raise DataError(self.errors[0])
        refuse(self.source, list(self.errors), self.way_out)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {**asdict(self), "warnings": list(self.warnings)}

    def __str__(self) -> str:
        sizes = ", ".join(f"{count} {size}" for size, count in self.box_sizes.items())
        lines = [f"{self.source}: {self.images} images ({self.images_without_boxes} without boxes), {self.boxes} boxes"]
        if self.annotated:
            lines.append(f"  sizes: {sizes} (limits: {SMALL_BELOW} and {MEDIUM_BELOW} square pixels)")
        width = max(5, *(len(name) for name in self.boxes_per_class))
        lines.append(f"  {'label':>5}  {'class':<{width}}  {'category id':>11}  {'boxes':>7}")
        lines += [
            f"  {label:>5}  {name:<{width}}  {self.category_ids[name]:>11}  {count:>7}"
            for label, (name, count) in enumerate(self.boxes_per_class.items())
        ]
        lines += [f"  warning: {warning}" for warning in self.warnings]
        if self.errors:
            return "\n".join([*lines, f"  {counted(len(self.errors), 'error')}: not fit for use"])
        if self.remembered:
            how = "was checked before and has not changed since"
        else:
            how = f"was {'decoded' if self.decoded else 'looked at (--decode decodes them)'} in {self.seconds:.1f} s"
        verdict = "fit for use" if self.annotated else "fit for detecting on, without training or scores"
        return "\n".join([*lines, f"  every image {how}: {verdict}"])


def check(
    dataset: Dataset,
    *,
    decode: bool = False,
    use_memory: bool = False,
    remember: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Look for everything that could stop a run, or spoil it without a word, after it has begun.

    Every image is opened: it must be there, have its end marker and the size that the annotations give (JPEG, PNG and
    WebP from the header: 0.1 to 0.3 s per 1000 images on a local disk; other formats are decoded).

    Args:
        decode: decode each image in full as well (2 to 5 s per 1000 images of 640 x 480).
        use_memory: open no image of a large set where a check of the same files was clean and none has changed since;
            remember this check (`cskd_data.fingerprint`).
        remember: open every image, and remember a clean check for those that use the memory.
        progress: called with (images done, images in all).
    """
    begin = time.monotonic()
    large = len(dataset.images) >= memory.REMEMBERED_FROM
    mark = memory.fingerprint(dataset) if large and (use_memory or remember) else ""
    depth = memory.DECODED if decode else memory.OPENED
    known = memory.remembered(mark, memory.DECODED, depth) if mark and use_memory else None
    findings = ImageFindings.from_data(known) if known is not None else check_images(dataset, decode, progress)
    if mark and known is None and not findings.faults:
        memory.remember(mark, depth, findings.to_data())
    errors, way_out = findings.faults, findings.way_out
    if not errors and dataset.annotated and not dataset.countable:
        errors, way_out = (dataset.nothing_counts(),), ""
    sizes = Counter(_size(one["area"]) for one in dataset.annotations)
    categories = dataset.data["categories"]
    return Report(
        source=str(dataset.source),
        image_root=None if dataset.image_root is None else str(dataset.image_root),
        images=len(dataset.images),
        images_without_boxes=len(dataset.images) - len({one["image_id"] for one in dataset.annotations}),
        boxes=len(dataset.annotations),
        boxes_per_class=dataset.boxes_per_class,
        category_ids={category["name"]: dataset.category_keys[category["id"]] for category in categories},
        box_sizes={size: sizes[size] for size in ("small", "medium", "large")},
        annotated=dataset.annotated,
        notes=(*dataset.notes, *findings.notes, *_notes(dataset)),
        errors=errors,
        way_out=way_out,
        decoded=decode,
        remembered=known is not None,
        seconds=time.monotonic() - begin,
    )


def _notes(dataset: Dataset) -> list[Note]:
    """What trains, but may not be what was meant."""
    if not dataset.annotated:
        return [Note("there are no annotations: detecting on these images works, training and scoring do not")]
    notes = []
    sizes = {image["id"]: (image["width"], image["height"]) for image in dataset.images}
    boxes = dataset.annotations
    present = {one["category_id"] for one in boxes}
    absent = [one["name"] for one in dataset.data["categories"] if one["id"] not in present]
    if absent:
        notes.append(Note.of("no box of class", absent))
    thin = sum(one["bbox"][2] < 1 or one["bbox"][3] < 1 for one in boxes)
    if thin:
        what = "less than a pixel wide or high: evaluated, but not trained on (as in mmdet)"
        notes.append(Note(f"{counted(thin, 'box')} {what}", thin))
    over = sum(reaches_over(one["bbox"], *sizes[one["image_id"]]) for one in boxes)
    if over:
        what = f"{over} of {counted(len(boxes), 'box')} over the edge of the image by more than a pixel"
        notes.append(Note(f"{what}: are all of them [x, y, width, height] in pixels?", over))
    skipped = sum(bool(one.get("ignore")) and not one["iscrowd"] for one in boxes)
    if skipped:
        notes.append(
            Note(f"{counted(skipped, 'box')} with ignore 1: not learnt, but counted in an evaluation", skipped)
        )
    tiny = [one["file_name"] for one in dataset.images if min(one["width"], one["height"]) < LEAST_SIDE]
    if tiny:
        what = f"smaller than {LEAST_SIDE} pixels, which mmdet leaves out of training"
        notes.append(Note.of(f"{counted(len(tiny), 'image')} {what}", tiny))
    return notes


def _size(area: float) -> str:
    return "small" if area < SMALL_BELOW else "medium" if area < MEDIUM_BELOW else "large"
