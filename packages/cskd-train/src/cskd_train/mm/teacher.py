"""Build the teacher that a plan names, and start the student's neck and heads from it where the plan says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cskd_core.plan import TeacherPlan
from cskd_train.errors import TrainError
from cskd_train.files.checkpoints import Checkpoint, load_checkpoint, load_weights
from cskd_train.files.config import config_from_data, load_config
from cskd_train.files.downloads import fetch
from cskd_train.mm.data_sources import classes_of
from cskd_train.mm.normalization import Normalization
from cskd_train.mm.plain import build_without_pretrained

if TYPE_CHECKING:  # at run time cskd_train.mm has to come before mmcv, which it changes
    from mmcv import Config


@dataclass(frozen=True)
class Teacher:
    """A teacher and what its config and checkpoint say about its data; None where they do not say."""

    model: nn.Module
    classes: tuple[str, ...] | None
    normalization: Normalization | None
    notes: tuple[str, ...] = ()  # on what of the checkpoint was left out
    metrics: Mapping[str, float] = field(default_factory=dict)  # COCO's, in [0, 1], on the validation split of `config`
    config: Mapping[str, Any] = field(default_factory=dict)  # as the checkpoint has it; empty in a plain one of mmdet


def read_teacher(plan: TeacherPlan) -> tuple[Checkpoint, Config]:
    """The teacher's checkpoint, downloaded where it has a URL, and its config; classes that the file does not name are
    those of the config's training data.

    Raises:
        TrainError: one of them is missing or broken; the config's file of classes cannot be read.
    """
    file = fetch(plan.checkpoint, plan.config)
    checkpoint = load_checkpoint(file, require_config=False)
    if plan.config is None and not checkpoint.config:
        raise TrainError(
            f"the teacher's checkpoint {file} holds no config (a plain mmdet checkpoint, perhaps): name the one that "
            "it was trained with, by --teacher CONFIG or in the recipe's distill.teacher.config"
        )
    return with_own_config(checkpoint, plan.config)


def with_own_config(checkpoint: Checkpoint, config: str | Path | None) -> tuple[Checkpoint, Config]:
    """A detector's checkpoint and its config; classes that the file does not name are those of the config's training
    data.

    Args:
        config: a file in the place of the config that the checkpoint holds.

    Raises:
        TrainError: the config, or its file of classes, cannot be read.
    """
    cfg = load_config(config) if config else config_from_data(checkpoint.config)
    if not checkpoint.classes:
        checkpoint = replace(checkpoint, classes=classes_of((cfg.get("data") or {}).get("train")))
    return checkpoint, cfg


def detector_of(cfg: Config) -> dict[str, Any]:
    """The `model` of a config without mmdet 3's normalisation in it, which is done elsewhere (see `normalization`)."""
    return {key: value for key, value in cfg.model.items() if key != "data_preprocessor"}


def build_teacher(plan: TeacherPlan) -> Teacher:
    """The teacher with its weights loaded.

    Raises:
        TrainError: config or checkpoint are missing, broken, or do not belong together; the config's file of classes
            cannot be read.
    """
    checkpoint, cfg = read_teacher(plan)
    teacher = build_without_pretrained(detector_of(cfg))
    load_weights(teacher, checkpoint)
    notes = tuple(f"the teacher's checkpoint: {note}" for note in checkpoint.notes)
    normalization = Normalization.of_config(cfg)
    return Teacher(teacher, checkpoint.classes or None, normalization, notes, checkpoint.metrics, checkpoint.config)


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
    """Copy the teacher's neck, apart from its lateral convolutions, and its heads into the student.

    Heads are copied between detectors of one class: in others a layer of the same name and shape means something else.

    It has to come after the student's own initialisation, which would undo it. Laterals read the backbone and stay the
    student's own, as the backbone does. A tensor of another shape, or one that the student does not have, is left out.

    Args:
        student: a stock mmdet detector; it is changed.
        teacher: a detector with its weights loaded.
    """
    own = student.state_dict()  # shares memory with the student
    copied, skipped = [], []
    if type(student) is not type(teacher):
        skipped.append(f"heads: those of a {type(teacher).__name__} mean something else in a {type(student).__name__}")
    for key, value in teacher.state_dict().items():
        if not _is_inherited(key) or (key.startswith(_HEADS) and type(student) is not type(teacher)):
            continue
        if key not in own:
            skipped.append(f"{key}: {tuple(value.shape)} in the teacher, not in the student")
        elif own[key].shape != value.shape:
            skipped.append(f"{key}: {tuple(value.shape)} in the teacher, {tuple(own[key].shape)} in the student")
        else:
            with torch.no_grad():
                own[key].copy_(value)
            copied.append(key)
    return Inheritance(tuple(copied), tuple(skipped))


def _is_inherited(key: str) -> bool:
    return key.startswith(_HEADS) or (key.startswith("neck.") and "lateral" not in key)
