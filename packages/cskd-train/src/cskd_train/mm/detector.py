"""Build a student, and wrap it for distilled training without changing it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cskd_core.distiller import Distiller
from cskd_core.plan import DistillPlan
from cskd_train.errors import TrainError
from cskd_train.mm.families import family_of
from cskd_train.mm.plain import build_detector
from cskd_train.mm.teacher import build_teacher


def build_student(cfg: Any) -> nn.Module:
    """The plain mmdet detector of `cfg.model`, with its weights initialised as the config says.

    Raises:
        TrainError: the model cannot be built, or its pretrained weights cannot be had.
    """
    student = build_detector(cfg.model)
    try:
        student.init_weights()  # type: ignore[operator]
    except (OSError, ImportError, RuntimeError) as error:
        raise TrainError(
            f"the pretrained weights that the config's model asks for could not be loaded ({error}). "
            "Name a local file with --set model.backbone.init_cfg.checkpoint=FILE, "
            "or train from scratch with --set model.backbone.init_cfg=None"
        ) from error
    return student


def build_distilled(student: nn.Module, cfg: Any, device: str | torch.device) -> DistilledDetector:
    """The student under its distiller, as the config's `distill` block says.

    Raises:
        PlanError: the block does not fit the schema.
        TrainError: the teacher cannot be had, or does not fit the student.
    """
    plan = DistillPlan.parse(cfg.distill)
    family = family_of(student)
    teacher = build_teacher(plan.teacher)
    if type(teacher) is not type(student):
        raise TrainError(
            f"the teacher is a {type(teacher).__name__}, the student a {type(student).__name__}: "
            "both must be detectors of one family"
        )
    _check_fit(student, teacher)
    return DistilledDetector(student, Distiller(student, teacher, family, plan)).to(device)


class DistilledDetector(nn.Module):
    """A stock student and its distiller, trained together as one mmdet detector is.

    Args:
        student: a stock mmdet detector; it runs its own training forward, watched.
        distiller: built on this very student.
    """

    def __init__(self, student: nn.Module, distiller: Distiller) -> None:
        super().__init__()
        self.student = student
        self.distiller = distiller

    def forward(self, img: Tensor, img_metas: list[dict[str, Any]], **targets: Any) -> dict[str, Any]:
        """The student's own losses and the distillation terms, each under a name with `loss` in it."""
        with self.distiller.watch() as recording:
            losses: dict[str, Any] = self.student(img=img, img_metas=img_metas, return_loss=True, **targets)
        image_shapes = [meta["img_shape"][:2] for meta in img_metas]
        terms = self.distiller(recording, img, targets["gt_bboxes"], image_shapes)
        return {**losses, **{f"loss_{name}": value for name, value in terms.items()}}

    def train_step(self, data: Mapping[str, Any], optimizer: Any) -> dict[str, Any]:
        """As `mmdet.models.detectors.BaseDetector.train_step`: the total loss, its parts, and the batch size."""
        loss, log_vars = self.student._parse_losses(self(**data))  # type: ignore[operator]
        return {"loss": loss, "log_vars": log_vars, "num_samples": len(data["img_metas"])}


def _check_fit(student: Any, teacher: Any) -> None:
    ours, theirs = student.bbox_head, teacher.bbox_head
    for what in ("num_classes", "stacked_convs", "feat_channels"):
        if getattr(ours, what) != getattr(theirs, what):
            raise TrainError(
                f"the heads differ: {what} is {getattr(ours, what)} in the student "
                f"and {getattr(theirs, what)} in the teacher; they must agree"
            )
    strides = ours.prior_generator.strides, theirs.prior_generator.strides
    if strides[0] != strides[1]:
        raise TrainError(f"the strides differ: {strides[0]} in the student and {strides[1]} in the teacher")
