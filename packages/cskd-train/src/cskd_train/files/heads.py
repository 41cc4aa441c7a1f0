"""Which parts of a detector are its heads: one rule for the `model` of a config and for what is built from it."""

from __future__ import annotations

KINDS = ("bbox_head", "mask_head", "rpn_head")


def head_kind(path: str) -> str:
    """The kind of the head at a dotted path of a config's `model`, or of a detector; one of several in a list too.

    Returns:
        One of `KINDS`, or nothing where something else stands there: a layer of a head, too.

    Example:
        >>> head_kind("roi_head.bbox_head.0"), head_kind("roi_head.bbox_head.0.fc_cls")
        ('bbox_head', '')
    """
    name = next((part for part in reversed(path.split(".")) if not part.isdigit()), "")
    return next((kind for kind in KINDS if name.endswith(kind)), "")


def tells_classes(path: str) -> bool:
    """Whether the head at a path tells the classes of the data apart: the RPN's one class is `object`."""
    return head_kind(path) in ("bbox_head", "mask_head")
