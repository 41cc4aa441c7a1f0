"""RetinaNet: towers compared as they are, one assistant predictor beside each of the two (docs/algorithm.md 3-5.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cskd_core.family import Observation, PredictionRule
from cskd_core.plan import AssistantPlan
from cskd_core.regions import Regions
from cskd_core.soft_targets import soft_focal_loss
from cskd_train.mm.families.dense import DenseFamily, by_prior


class RetinaNetFamily(DenseFamily):
    """A stock mmdet RetinaNet, as student and as teacher."""

    predictors = {"cls": "retina_cls", "reg": "retina_reg"}  # noqa: RUF012
    prediction_rules = {  # noqa: RUF012
        "cls": PredictionRule("sigmoid", "mean"),
        "reg": PredictionRule("identity", "foreground"),
    }

    def assistant_losses(
        self,
        assisted: Mapping[str, Sequence[Tensor]],
        student: Observation,
        teacher: Observation,
        regions: Regions,
        plan: AssistantPlan,
    ) -> dict[str, Tensor]:
        """Soft focal loss against the teacher's scores inside boxes, L1 against its deltas at positive anchors.

        Both are normalised by the number of positive anchors that the student's own loss used: one at least an image,
        not averaged over processes.

        Source: docs/algorithm.md 5.5.
        """
        _, label_weights, _, box_weights, num_positive, _ = student.targets
        classification, regression = [], []
        for level, (logits, deltas) in enumerate(zip(assisted["cls"], assisted["reg"], strict=True)):
            scores = teacher.predictions["cls"][level].sigmoid().mul_(regions.foreground(level).unsqueeze(1))
            weights = _by_cell(label_weights[level], logits).unsqueeze(2)
            logits, scores = (
                maps.unflatten(1, (weights.shape[1], -1)) for maps in (logits, scores)
            )  # (B, A, classes, H, W)
            classification.append(soft_focal_loss(logits, scores, weights))
            distance = (deltas - teacher.predictions["reg"][level]).abs()
            regression.append((by_prior(distance, 4) * box_weights[level]).sum())
        return {
            "assistant_cls": torch.stack(classification).sum() / num_positive,
            "assistant_reg": torch.stack(regression).sum() / num_positive,
        }


def _by_cell(weights: Tensor, like: Tensor) -> Tensor:
    """(B, priors) in mmdet's order, row, column, anchor, to (B, A, H, W)."""
    return weights.unflatten(1, (like.shape[2], like.shape[3], -1)).permute(0, 3, 1, 2)
