"""FCOS: towers compared through adapters, an assistant with box scales of its own (docs/algorithm.md 3-5.3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from mmdet.core import reduce_mean
from torch import Tensor

from cskd_core.assistant import Assistant
from cskd_core.family import Observation, PredictionRule
from cskd_core.plan import AssistantPlan, DistillPlan
from cskd_core.regions import Regions
from cskd_core.soft_targets import soft_focal_loss
from cskd_core.taps import Recording
from cskd_core.transfer import to_device
from cskd_train.mm.families.base import strides_of
from cskd_train.mm.families.dense import (
    DenseFamily,
    ScaledAssistant,
    at_least_one,
    by_prior,
    finest_and_others,
)


class FCOSFamily(DenseFamily):
    """A stock mmdet FCOS.

    Box distances are compared in the units in which the student's head gives them in training: strides where it has
    `norm_on_bbox`, else pixels. A teacher of the other kind is converted (docs/algorithm.md 9.13).

    Args:
        student: its head's units, and its box and centerness losses, are taken for the assistant too.
    """

    detectors = ("FCOS",)
    heads = {"bbox_head": ("FCOSHead",)}  # noqa: RUF012
    classifier = "bbox_head.conv_cls"
    exported = {"FCOS": ("FCOSHead",)}  # noqa: RUF012
    predictors = {"cls": "conv_cls", "reg": "conv_reg", "centerness": "conv_centerness"}  # noqa: RUF012
    prediction_rules = {  # noqa: RUF012
        "cls": PredictionRule("sigmoid", "mean"),
        "reg": PredictionRule("identity", "foreground"),
        "centerness": PredictionRule("sigmoid", "foreground"),
    }
    targets = ("labels", "box_targets")
    tower_adapter = True
    has_assistant = True
    assistant_options = frozenset({"scores_times_centerness"})

    def __init__(self, student: Any) -> None:
        super().__init__(student)
        self._head = student.bbox_head

    def check_pair(self, student: Any, teacher: Any, plan: DistillPlan) -> list[str]:
        """Two FCOS heads that differ in where centerness stands or in units are compared (docs/algorithm.md 9.13)."""
        notes = super().check_pair(student, teacher, plan)
        own, other = student.bbox_head, teacher.bbox_head
        if own.centerness_on_reg != other.centerness_on_reg:
            towers = {True: "reg", False: "cls"}
            notes.append(
                f"the student predicts centerness from its {towers[own.centerness_on_reg]} tower, the teacher from its "
                f"{towers[other.centerness_on_reg]} tower; the predictions are compared all the same"
            )
        if own.norm_on_bbox != other.norm_on_bbox:
            units = {True: "strides", False: "pixels"}
            notes.append(
                f"the teacher's box distances in {units[other.norm_on_bbox]} are converted to the student's "
                f"{units[own.norm_on_bbox]}"
            )
        return notes

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
        return ScaledAssistant(self.predictor_specs(detector), len(detector.bbox_head.scales))

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
        labels, box_targets = (
            torch.cat([level.unflatten(0, (len(assisted["cls"][0]), -1)) for level in levels], 1)
            for levels in (student.targets["labels"], student.targets["box_targets"])
        )  # (B, points), (B, points, 4)
        positive = ((labels >= 0) & (labels < self._head.num_classes)).nonzero(as_tuple=True)
        count = len(positive[0])
        weight = self._head.centerness_target(box_targets[positive])
        # Both means over the processes come before the branch below: each process takes part, whatever its boxes.
        num_positive = at_least_one(to_device(count, weight.device, weight.dtype))
        total_weight = reduce_mean(weight.sum().detach()).clamp(min=1e-6).to(assisted["reg"][0])
        maps = zip(
            finest_and_others(assisted["cls"]),
            self._soft_scores(teacher, plan),
            finest_and_others([regions.foreground(level).unsqueeze(1) for level in range(len(regions.sizes))]),
            strict=True,
        )
        focal = [soft_focal_loss(logits, scores.mul_(inside)) for logits, scores, inside in maps]
        boxes = self._activate(by_prior(assisted["reg"], 4)[positive])
        centerness = by_prior(assisted["centerness"], 1)[positive].squeeze(1)
        terms = {"assistant_cls": torch.stack(focal).sum() / num_positive}
        if not count:  # empty sums, zeros that keep every predictor in the graph
            return {**terms, "assistant_reg": boxes.sum(), "assistant_centerness": centerness.sum()}
        target = by_prior(teacher.predictions["reg"], 4)[positive].to(boxes.dtype)
        origin = boxes.new_zeros(count, 2)  # all boxes around one point: the IoU does not ask which
        terms["assistant_reg"] = self._head.loss_bbox(
            self._head.bbox_coder.decode(origin, boxes),
            self._head.bbox_coder.decode(origin, target),
            weight=weight,
            avg_factor=total_weight,
        )
        terms["assistant_centerness"] = self._head.loss_centerness(
            centerness,
            by_prior(teacher.predictions["centerness"], 1)[positive].squeeze(1).sigmoid(),
            avg_factor=num_positive,
        )
        return terms

    def _soft_scores(self, teacher: Observation, plan: AssistantPlan) -> Iterator[Tensor]:
        """The teacher's class scores (B, classes, positions), of the finest level and of the others."""
        centerness = finest_and_others(teacher.predictions["centerness"])
        for logits in finest_and_others(teacher.predictions["cls"]):
            scores = logits.sigmoid()
            yield scores.mul_(next(centerness).sigmoid()) if plan.scores_times_centerness else scores

    def _activate(self, scaled: Tensor) -> Tensor:
        """Box distances as the head makes them in training."""
        return scaled.clamp(min=0) if self._head.norm_on_bbox else scaled.exp()
