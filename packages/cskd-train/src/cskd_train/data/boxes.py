"""What a COCO annotation file means to CSKD: which boxes count, and which category is which label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cskd_train.errors import TrainError


def is_degenerate(annotation: Mapping[str, Any], width: float, height: float) -> bool:
    """Whether a box is kept out, of training and of evaluation alike, because nothing can match it.

    A box counts when the part of it inside the image has a width and a height above zero, and its `area` is above zero:

        min(x + w, width)  - max(x, 0) > 0
        min(y + h, height) - max(y, 0) > 0
        area > 0

    This leaves out boxes of zero width or height, inverted boxes, and boxes that lie outside the image. Stock mmdet
    leaves them out of training too, but hands them to pycocotools, where each is an object that is always missed.

    Arguments:
        annotation: a COCO annotation with `bbox` (x, y, w, h in pixels) and `area`.
        width, height: the image's, as its entry in the annotation file says.

    Example:
        >>> is_degenerate({"bbox": [181.0, 329.0, 0.0, 0.0], "area": 0.0}, 640, 480)
        True
        >>> is_degenerate({"bbox": [-4.0, 10.0, 8.0, 8.0], "area": 64.0}, 640, 480)
        False
    """
    x, y, w, h = annotation["bbox"]
    inside_width = min(x + w, width) - max(x, 0)
    inside_height = min(y + h, height) - max(y, 0)
    return inside_width <= 0 or inside_height <= 0 or annotation["area"] <= 0


def category_ids(categories: Sequence[Mapping[str, Any]], classes: Sequence[str], ann_file: object) -> list[int]:
    """The category id of each class, in the order of `classes`: label `i` of a detector is `classes[i]`.

    Ids need neither start at one nor be without gaps, and the file may list its categories in another order.

    Raises:
        TrainError: a class has no category in the file; both lists are named.
    """
    ids = {str(category["name"]): category["id"] for category in categories}
    missing = [name for name in classes if name not in ids]
    if missing:
        raise TrainError(
            f"{ann_file} has no category {_listed(missing)}.\n  the config's classes: {_listed(classes)}\n"
            f"  the file's categories: {_listed(ids)}\nGive the file's names as `classes` in the config's data, "
            "or another annotation file"
        )
    return [ids[name] for name in classes]


def _listed(names: Sequence[str] | Mapping[str, Any], limit: int = 20) -> str:
    """`a, b, c`, cut at `limit` names."""
    shown = [repr(name) for name in list(names)[:limit]]
    return ", ".join(shown) + (f" and {len(names) - limit} more" if len(names) > limit else "")
