"""Start the student's neck and heads from the teacher's (docs/algorithm.md 7, 9.20)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

_HEADS = ("bbox_head.", "rpn_head.", "roi_head.")


@dataclass(frozen=True)
class Inheritance:
    """What a student took over from its teacher."""

    copied: tuple[str, ...]  # keys of the student's state dict
    skipped: tuple[str, ...]  # each a key and why it stays as it was initialised

    def __str__(self) -> str:
        lines = [f"neck and heads start from the teacher's: {len(self.copied)} tensors copied, {len(self.skipped)} not"]
        return "\n".join([*lines, *(f"  not copied: {reason}" for reason in self.skipped)])


def inherit(student: nn.Module, teacher: nn.Module) -> Inheritance:
    """Copy the teacher's neck, apart from its lateral convolutions, and all of its heads into the student.

    It has to come after the student's own initialisation, which would undo it. Laterals read the backbone and stay the
    student's own, as the backbone does. A tensor of another shape, or one that the student does not have, is left out.

    Args:
        student: a stock mmdet detector; it is changed.
        teacher: a detector of the same family with its weights loaded.
    """
    ours = student.state_dict()  # shares memory with the student
    copied, skipped = [], []
    for key, value in teacher.state_dict().items():
        if not _is_inherited(key):
            continue
        if key not in ours:
            skipped.append(f"{key}: {tuple(value.shape)} in the teacher, not in the student")
        elif ours[key].shape != value.shape:
            skipped.append(f"{key}: {tuple(value.shape)} in the teacher, {tuple(ours[key].shape)} in the student")
        else:
            with torch.no_grad():
                ours[key].copy_(value)
            copied.append(key)
    return Inheritance(tuple(copied), tuple(skipped))


def _is_inherited(key: str) -> bool:
    return key.startswith(_HEADS) or (key.startswith("neck.") and "lateral" not in key)
