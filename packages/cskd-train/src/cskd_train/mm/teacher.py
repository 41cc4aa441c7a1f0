"""Build the teacher that a plan names, with its weights, its classes and the images it wants to see."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from cskd_core.plan import TeacherPlan
from cskd_train.errors import TrainError
from cskd_train.files.checkpoints import load_checkpoint, load_weights
from cskd_train.files.config import config_from_data, load_config
from cskd_train.files.downloads import fetch
from cskd_train.mm.datasets import classes_of
from cskd_train.mm.normalization import Normalization
from cskd_train.mm.plain import build_without_pretrained


@dataclass(frozen=True)
class Teacher:
    """A teacher and what its config and checkpoint say about its data; None where they do not say."""

    model: nn.Module
    classes: tuple[str, ...] | None
    normalization: Normalization | None


def build_teacher(plan: TeacherPlan) -> Teacher:
    """The teacher with its weights loaded.

    Raises:
        TrainError: config or checkpoint are missing, broken, or do not belong together; the config's file of classes
            cannot be read.
    """
    file = fetch(plan.checkpoint, plan.config)
    checkpoint = load_checkpoint(file, require_config=False)
    if plan.config is None and not checkpoint.config:
        raise TrainError(
            f"the teacher's checkpoint {file} holds no config (a plain mmdet checkpoint, perhaps): name the one that "
            "it was trained with, by --teacher CONFIG or in the recipe's distill.teacher.config"
        )
    cfg = load_config(plan.config) if plan.config else config_from_data(checkpoint.config)
    teacher = build_without_pretrained(cfg.model)
    load_weights(teacher, checkpoint)
    classes = checkpoint.classes or classes_of((cfg.get("data") or {}).get("train"))
    return Teacher(teacher, classes or None, Normalization.of_config(cfg))
