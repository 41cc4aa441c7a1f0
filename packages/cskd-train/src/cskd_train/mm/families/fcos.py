"""FCOS: towers compared through adapters, an assistant with box scales of its own (docs/algorithm.md 3-5.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from mmdet.core import reduce_mean
from torch import Tensor

from cskd_core.assistant import Assistant
from cskd_core.family import Observation, PredictionRule
from cskd_core.plan import AssistantPlan
from cskd_core.regions import Regions
from cskd_core.soft_targets import soft_focal_loss
from cskd_core.taps import Recording
from cskd_train.mm.families.dense import DenseFamily, ScaledAssistant, at_least_one, by_prior, strides_of


class FCOSFamily(DenseFamily):
    """A stock mmdet FCOS.

    Box distances are compared in the units in which the student's head gives them in training: strides where it has
    `norm_on_bbox`, else pixels. A teacher of the other kind is converted (docs/algorithm.md 9.13).

    Args:
        student: its head's units, and its box and centerness losses, are taken for the assistant too.
    """

    predictors = {"cls": "conv_cls", "reg": "conv_reg", "centerness": "conv_centerness"}  # noqa: RUF012
    prediction_rules = {  # noqa: RUF012
        "cls": PredictionRule("sigmoid", "mean"),
        "reg": PredictionRule("identity", "foreground"),
        "centerness": PredictionRule("sigmoid", "foreground"),
    }
    tower_adapter = True
    options = DenseFamily.options | {"assistant.scores_times_centerness"}

    def __init__(self, student: Any) -> None:
        self._head = student.bbox_head

    def read(self, detector: Any, recording: Recording) -> Observation:
        observation = super().read(detector, recording)
        head = detector.bbox_head
        # A student is watched in training mode; a teacher is frozen in eval mode, in which every head gives pixels.
        if head.training or not self._head.norm_on_bbox:
            return observation
        distances = [
            level / stride for level, stride in zip(observation.predictions["reg"], strides_of(head), strict=True)
        ]
        return replace(observation, predictions={**observation.predictions, "reg": distances})

    def assistant(self, detector: Any) -> Assistant:
        head = detector.bbox_head
        return ScaledAssistant(self.predictor_specs(detector), len(head.scales), _clamp if head.norm_on_bbox else _exp)

    def tower_of(self, detector: Any, prediction: str) -> str:
        if prediction == "centerness":
            return "reg" if detector.bbox_head.centerness_on_reg else "cls"
        return prediction

    def assistant_losses(
        self,
        assisted: Mapping[str, Sequence[Tensor]],
        student: Observation,
        teacher: Observation,
        regions: Regions,
        plan: AssistantPlan,
    ) -> dict[str, Tensor]:
        """Soft focal loss against the teacher's scores inside boxes; at positive points, the student's own box loss
        against the teacher's boxes, weighted by the true centerness, and cross entropy against its centerness.

        Source: docs/algorithm.md 5.3.
        """
        labels, box_targets = (torch.cat(levels) for levels in student.targets)
        positive = (labels >= 0) & (labels < self._head.num_classes)
        weight = self._head.centerness_target(box_targets[positive])
        # Both means over the processes come before the branch below: each process takes part, whatever its boxes.
        num_positive = at_least_one(positive.sum().item(), weight)
        total_weight = max(float(reduce_mean(weight.sum().detach())), 1e-6)
        scores = [
            self._soft_scores(teacher, level, plan) * regions.foreground(level).unsqueeze(1)
            for level in range(len(regions.sizes))
        ]
        focal = [soft_focal_loss(*pair) for pair in zip(assisted["cls"], scores, strict=True)]
        boxes, centerness = _flatten(assisted["reg"])[positive], _flatten(assisted["centerness"])[positive, 0]
        terms = {"assistant_cls": torch.stack(focal).sum() / num_positive}
        if not positive.any():  # empty sums, zeros that keep every predictor in the graph
            return {**terms, "assistant_reg": boxes.sum(), "assistant_centerness": centerness.sum()}
        theirs = _flatten(teacher.predictions["reg"])[positive].to(boxes.dtype)
        grid = self._head.prior_generator.grid_priors(regions.sizes, boxes.dtype, boxes.device)
        images = len(assisted["cls"][0])
        points = torch.cat([level.repeat(images, 1) for level in grid])[positive]
        terms["assistant_reg"] = self._head.loss_bbox(
            self._head.bbox_coder.decode(points, boxes),
            self._head.bbox_coder.decode(points, theirs),
            weight=weight,
            avg_factor=total_weight,
        )
        terms["assistant_centerness"] = self._head.loss_centerness(
            centerness, _flatten(teacher.predictions["centerness"])[positive, 0].sigmoid(), avg_factor=num_positive
        )
        return terms

    def _soft_scores(self, teacher: Observation, level: int, plan: AssistantPlan) -> Tensor:
        scores = teacher.predictions["cls"][level].sigmoid()
        if plan.scores_times_centerness:
            scores = scores * teacher.predictions["centerness"][level].sigmoid()
        return scores


def _flatten(levels: Sequence[Tensor]) -> Tensor:
    """(B, c, H, W) a level to (points, c), in mmdet's order: level, image, row, column."""
    return torch.cat([by_prior(level, level.shape[1]).flatten(0, 1) for level in levels])


def _clamp(scaled: Tensor) -> Tensor:
    return scaled.clamp(min=0)


def _exp(scaled: Tensor) -> Tensor:
    return scaled.exp()
