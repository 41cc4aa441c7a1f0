"""The terms of a second stage: RoI features, fully connected layers, predictions (docs/algorithm.md 6.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cskd_core.errors import ShapeError
from cskd_core.plan import RoiPlan
from cskd_core.similarity import CosineGuidedLoss, LossOptions, cosine_guided_vector_loss

Pair = tuple[Tensor, Tensor]
"""(student's, teacher's)"""


@dataclass(frozen=True)
class RoiSpec:
    """Sizes of both second stages, each as (student's, teacher's).

    Attributes:
        channels: of the RoI features.
        fc: length of each fully connected layer's output, in order; one at least.
        predictions: length of each prediction, by name; both must agree.
    """

    channels: tuple[int, int]
    fc: Sequence[tuple[int, int]]
    predictions: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class RoiObservation:
    """Both detectors at the RoIs that each of them sampled.

    Attributes:
        at_student: RoI features (n_s, C, h, w) at the student's RoIs.
        at_teacher: RoI features (n_t, C, h, w) at the teacher's RoIs.
        fc: outputs (n_t, d) of each fully connected layer at the teacher's RoIs.
        predictions: name -> (n_t, c) at the teacher's RoIs.
        targets: what the student's assigner makes of the teacher's RoIs, in its own form.
    """

    at_student: Pair
    at_teacher: Pair
    fc: Sequence[Pair]
    predictions: Mapping[str, Pair]
    targets: Any


class RoiTerm(nn.Module):
    """RoI features at both sets of RoIs, fully connected layers and predictions at the teacher's.

    Each compared feature has an adapter on the student's side, as published: a 1x1 convolution for each set of RoIs, a
    linear layer for each fully connected one. They start as torch initialises them.

    Args:
        spec: the sizes.
        plan: the weights.
        options: variants of the loss.
        assisted: whether to add the assistant, one linear predictor for each prediction.

    Raises:
        ShapeError: there is no fully connected layer.

    Source: docs/algorithm.md 6.3.
    """

    def __init__(self, spec: RoiSpec, plan: RoiPlan, options: LossOptions, assisted: bool) -> None:
        super().__init__()
        if not spec.fc:
            raise ShapeError(
                "the second stage has no fully connected layers, which are compared and which the assistant reads: "
                "leave it out with roi=None"
            )
        self.plan = plan
        self.options = options
        self.adapters = nn.ModuleDict({name: nn.Conv2d(*spec.channels, 1) for name in ("student", "teacher")})
        self.fc_adapters = nn.ModuleList(nn.Linear(*lengths) for lengths in spec.fc)
        self.features_student = CosineGuidedLoss(plan.features_student, options)
        self.features_teacher = CosineGuidedLoss(plan.features_teacher, options)
        self.assistant = nn.ModuleDict()
        for name, (length, _) in spec.predictions.items() if assisted else ():
            predictor = nn.Linear(spec.fc[-1][0], length)
            nn.init.normal_(predictor.weight, std=0.01 if name == "cls" else 0.001)
            nn.init.zeros_(predictor.bias)
            self.assistant[name] = predictor

    def forward(self, rois: RoiObservation) -> dict[str, Tensor]:
        """Scalars `roi_features_student`, `roi_features_teacher`, `roi_fc` and `roi_prediction_NAME`."""
        (at_student, target_student), (at_teacher, target_teacher) = rois.at_student, rois.at_teacher
        layers = [
            cosine_guided_vector_loss(adapter(student), teacher, self.plan.fc, self.options)
            for adapter, (student, teacher) in zip(self.fc_adapters, rois.fc, strict=True)
        ]
        terms = {
            "roi_features_student": self.features_student(self.adapters["student"](at_student), target_student),
            "roi_features_teacher": self.features_teacher(self.adapters["teacher"](at_teacher), target_teacher),
            "roi_fc": torch.stack(layers).mean(),
        }
        for name, pair in rois.predictions.items():
            student, teacher = map(self._activate, pair) if name == "cls" else pair
            terms[f"roi_prediction_{name}"] = cosine_guided_vector_loss(
                student, teacher, self.plan.prediction, self.options
            )
        return terms

    def assist(self, rois: RoiObservation) -> dict[str, Tensor]:
        """The assistant's predictions (n_t, c) by name, from the student's last fully connected layer."""
        features = rois.fc[-1][0]
        return {name: predictor(features) for name, predictor in self.assistant.items()}

    def _activate(self, logits: Tensor) -> Tensor:
        return logits.softmax(1) if self.plan.activation == "softmax" else logits.sigmoid()
