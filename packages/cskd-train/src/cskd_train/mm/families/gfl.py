"""GFL: box distributions compared as logits, an assistant trained on the teacher's boxes (docs/algorithm.md 3-5.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.core import bbox_overlaps
from torch import Tensor

from cskd_core.assistant import Assistant
from cskd_core.family import Observation, PredictionRule
from cskd_core.plan import AssistantPlan
from cskd_core.regions import Regions
from cskd_core.transfer import to_device
from cskd_train.mm.families.dense import DenseFamily, ScaledAssistant, at_least_one, by_prior


class GFLFamily(DenseFamily):
    """A stock mmdet GFL.

    Args:
        student: its head's integral, box coder and losses serve the assistant too.
    """

    detectors = ("GFL",)
    heads = {"bbox_head": ("GFLHead",)}  # noqa: RUF012
    classifier = "bbox_head.gfl_cls"
    exported = {"GFL": ("GFLHead",)}  # noqa: RUF012
    predictors = {"cls": "gfl_cls", "reg": "gfl_reg"}  # noqa: RUF012
    prediction_rules = {  # noqa: RUF012
        "cls": PredictionRule("sigmoid", "foreground"),
        "reg": PredictionRule("identity", "foreground"),
    }
    targets = ("anchors", "labels", "label_weights", "box_targets", "box_weights", "num_positive", "num_negative")
    has_assistant = True
    assistant_options = frozenset({"soft_labels"})

    def __init__(self, student: Any) -> None:
        super().__init__(student)
        self._head = student.bbox_head

    def assistant(self, detector: Any) -> Assistant:
        return ScaledAssistant(self.predictor_specs(detector), len(detector.bbox_head.scales))

    def assistant_losses(
        self,
        assisted: Mapping[str, Sequence[Tensor]],
        student: Observation,
        teacher: Observation,
        regions: Regions,
        plan: AssistantPlan,
    ) -> dict[str, Tensor]:
        """The student's own three losses with the teacher's boxes in place of the true ones.

        Boxes and distributions are weighted by the assistant's highest score, and normalised by the sum of those.

        Source: docs/algorithm.md 5.4.
        """
        logits = by_prior(assisted["cls"], self._head.cls_out_channels).flatten(0, 1)
        num_positive = at_least_one(to_device(student.targets["num_positive"], logits.device, logits.dtype))
        bins = 4 * (self._head.reg_max + 1)
        label, label_weight = (torch.cat(student.targets[name], 1).flatten() for name in ("labels", "label_weights"))
        positive = ((label >= 0) & (label < self._head.num_classes)).nonzero().squeeze(1)
        weight = logits.detach()[positive].sigmoid().amax(1)
        boxes, target = (
            by_prior(side["reg"], bins).flatten(0, 1)[positive] for side in (assisted, teacher.predictions)
        )
        quality, box_loss, distribution_loss = self._boxes(boxes, target, weight)
        if plan.soft_labels:
            levels = enumerate(teacher.predictions["cls"])
            scores = [target.sigmoid() * regions.foreground(level).unsqueeze(1) for level, target in levels]
            focal = _soft_quality_focal_loss(logits, by_prior(scores, logits.shape[1]).flatten(0, 1))
            classification = (focal.sum(1) * label_weight).sum() / num_positive
        else:
            qualities = label_weight.new_zeros(label.shape)
            qualities[positive] = quality.to(qualities.dtype)
            classification = self._head.loss_cls(
                logits, (label, qualities), weight=label_weight, avg_factor=num_positive
            )
        normaliser = at_least_one(weight.sum())
        return {
            "assistant_cls": classification,
            "assistant_reg": box_loss / normaliser,
            "assistant_dfl": distribution_loss / normaliser,
        }

    def _boxes(self, assisted: Tensor, teacher: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From logits (n, 4 * bins): IoU (n,) of the assistant's boxes with the teacher's, and both box losses."""
        if not len(assisted):
            return weight, 0 * assisted.sum(), 0 * assisted.sum()
        coder, reg_max = self._head.bbox_coder, self._head.reg_max
        origin = assisted.new_zeros(len(assisted), 2)  # all boxes around one point: neither IoU nor distances ask which
        box = coder.decode(origin, self._head.integral(assisted))
        target = coder.decode(origin, self._head.integral(teacher))
        quality = bbox_overlaps(box.detach(), target, is_aligned=True)
        box_loss = self._head.loss_bbox(box, target, weight=weight, avg_factor=1.0)
        distribution_loss = self._head.loss_dfl(
            assisted.reshape(-1, reg_max + 1),
            coder.encode(origin, target, reg_max).reshape(-1),
            weight=weight.repeat_interleave(4),
            avg_factor=4.0,
        )
        return quality, box_loss, distribution_loss


def _soft_quality_focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Quality focal loss against a score for every class, per element (Li et al. 2020, equation 4; beta 2)."""
    distance = (targets - logits.sigmoid()).square()
    return distance * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
