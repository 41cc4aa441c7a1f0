"""Boxes: numbers read from what tools write, and what makes a box one that nothing can match."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Box = tuple[float, float, float, float]
"""x, y, width, height in pixels."""

_FARTHEST = 1e8  # pixels; beyond them products of two lose their meaning
_EXACT = 1 << 53  # smaller whole numbers are floats without rounding


def number(value: Any) -> float | None:
    """A finite number, also written as text; None for anything else."""
    kind = type(value)
    if kind is float:
        return value if math.isfinite(value) else None
    if kind is int and -_EXACT < value < _EXACT:
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        read = float(value)
    except (ValueError, OverflowError):
        return None
    return read if math.isfinite(read) else None


def box_of(annotation: Mapping[str, Any]) -> Box | None:
    """The `bbox` of a COCO annotation, or the one around its `segmentation`; None where neither can be read."""
    bbox = annotation.get("bbox")
    if bbox is None or bbox == []:
        segmentation = annotation.get("segmentation")
        return box_around(segmentation) if segmentation else None
    if not isinstance(bbox, (list, tuple)) or len(bbox) != 4:
        return None
    x, y, w, h = map(number, bbox)
    if x is None or y is None or w is None or h is None:
        return None
    if max(x, y, w, h) > _FARTHEST or min(x, y, w, h) < -_FARTHEST:
        return None
    return x, y, w, h


def box_around(segmentation: Any) -> Box | None:
    """The box around COCO's polygons (lists x1, y1, x2, y2, ...) or run-length mask; None where it cannot be read."""
    if isinstance(segmentation, Mapping):
        return _box_around_mask(segmentation)
    if not isinstance(segmentation, Sequence) or isinstance(segmentation, str) or not segmentation:
        return None
    polygons = segmentation if isinstance(segmentation[0], (list, tuple)) else [segmentation]
    xs: list[float] = []
    ys: list[float] = []
    for polygon in polygons:
        values = [number(value) for value in polygon] if isinstance(polygon, (list, tuple)) else []
        if len(values) < 4 or len(values) % 2 or None in values:
            return None
        xs += values[0::2]  # type: ignore[arg-type]
        ys += values[1::2]  # type: ignore[arg-type]
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def _box_around_mask(segmentation: Mapping[str, Any]) -> Box | None:
    from pycocotools import mask

    try:
        height, width = segmentation["size"]
        counts = segmentation["counts"]
        packed = mask.frPyObjects(dict(segmentation), height, width) if isinstance(counts, list) else segmentation
        x, y, w, h = mask.toBbox(packed)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return float(x), float(y), float(w), float(h)


def degenerate(box: Box, area: float, width: float, height: float) -> str | None:
    """Why nothing can match a box, so that it is kept out of training and evaluation alike; None where it counts.

    A box counts when the part of it inside the image has a width and a height above zero, and its `area` is above zero:

        min(x + w, width)  - max(x, 0) > 0
        min(y + h, height) - max(y, 0) > 0
        area > 0

    This leaves out boxes of zero width or height, inverted boxes, and boxes that lie outside the image. Stock mmdet
    leaves them out of training too, but hands them to pycocotools, where each is an object that is always missed.

    Example:
        >>> degenerate((181.0, 329.0, 0.0, 0.0), 0.0, 640, 480)
        'has no area'
        >>> degenerate((-4.0, 10.0, 8.0, 8.0), 64.0, 640, 480) is None
        True
    """
    x, y, w, h = box
    if w > 0 < h and area > 0 and min(x + w, width) > max(x, 0) and min(y + h, height) > max(y, 0):
        return None
    if w < 0 or h < 0:
        return "is inverted"
    if w == 0 or h == 0:
        return "has no area"
    if area <= 0:
        return f"comes with an area of {area:g}"
    return f"lies outside the image ({width:g} x {height:g})"


def reaches_over(box: Box, width: float, height: float) -> bool:
    """Whether a box leaves its image by more than a pixel."""
    x, y, w, h = box
    return x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1


def are_corners(boxes: Sequence[Box], areas: Sequence[float | None], sizes: Sequence[tuple[int, int]]) -> bool:
    """Whether boxes that should be x, y, width, height are x1, y1, x2, y2.

    They are when every box makes sense as corners, and either every area (of three or more) is that of the corners, or
    most boxes reach over their image's edge and the areas do not speak against it.

    Args:
        areas: of each box, as the file has it.
        sizes: width and height of each box's image.
    """
    fitting = bool(boxes) and all(
        box[2] > box[0] >= -1 and box[3] > box[1] >= -1 and box[2] <= width + 1 and box[3] <= height + 1
        for box, (width, height) in zip(boxes, sizes, strict=True)
    )
    if not fitting:
        return False
    as_corners = as_sizes = given = 0
    for (x, y, w, h), area in zip(boxes, areas, strict=True):
        if area is not None and area > 0 and (x or y):
            given += 1
            as_corners += math.isclose(area, (w - x) * (h - y), rel_tol=1e-2, abs_tol=1)
            as_sizes += math.isclose(area, w * h, rel_tol=1e-2, abs_tol=1)
    if given >= 3 and as_corners == given and not as_sizes:
        return True
    over = sum(reaches_over(box, *size) for box, size in zip(boxes, sizes, strict=True))
    return 2 * over > len(boxes) and 2 * as_sizes < max(given, 1)


def are_fractions(boxes: Sequence[Box], sizes: Sequence[tuple[int, int]]) -> bool:
    """Whether boxes are given in fractions of the image, not in pixels: none leaves the unit square."""
    large = any(width > 4 and height > 4 for width, height in sizes)
    return large and len(boxes) > 0 and all(min(x, y) >= 0 and x + w <= 1.001 >= y + h for x, y, w, h in boxes)
