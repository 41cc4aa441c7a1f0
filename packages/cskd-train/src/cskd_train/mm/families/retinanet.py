"""RetinaNet: towers compared as they are, one assistant predictor beside each of the two (docs/algorithm.md 3-5.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cskd_core.family import Observation, PredictionRule
from cskd_core.plan import AssistantPlan
from cskd_core.regions import Regions, Size
from cskd_core.soft_targets import soft_focal_loss
from cskd_train.mm.families.dense import DenseFamily, by_prior, finest_and_others


class RetinaNetFamily(DenseFamily):
    """A stock mmdet RetinaNet, as student and as teacher."""

    detectors = ("RetinaNet",)
    heads = {"bbox_head": ("RetinaHead", "AscendRetinaHead")}  # noqa: RUF012
    classifier = "bbox_head.retina_cls"
    exported = {"RetinaNet": ("RetinaHead",)}  # noqa: RUF012
    predictors = {"cls": "retina_cls", "reg": "retina_reg"}  # noqa: RUF012
    targets = ("labels", "label_weights", "box_targets", "box_weights", "num_positive", "num_negative")
    has_assistant = True
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
        targets = student.targets
        num_positive = targets["num_positive"]
        maps = zip(
            finest_and_others(assisted["cls"]),
            finest_and_others(teacher.predictions["cls"]),
            finest_and_others([regions.foreground(level).unsqueeze(1) for level in range(len(regions.sizes))]),
            finest_and_others(
                [_by_cell(weights, size) for weights, size in zip(targets["label_weights"], regions.sizes, strict=True)]
            ),
            strict=True,
        )
        classification = []
        for logits, target, inside, weights in maps:
            scores = target.sigmoid().mul_(inside)
            anchors = weights.shape[1]  # from here on (B, A, classes, positions)
            logits, scores = logits.unflatten(1, (anchors, -1)), scores.unflatten(1, (anchors, -1))
            classification.append(soft_focal_loss(logits, scores, weights.unsqueeze(2)))
        distance = (by_prior(assisted["reg"], 4) - by_prior(teacher.predictions["reg"], 4)).abs()
        return {
            "assistant_cls": torch.stack(classification).sum() / num_positive,
            "assistant_reg": (distance * torch.cat(targets["box_weights"], 1)).sum() / num_positive,
        }


def _by_cell(weights: Tensor, size: Size) -> Tensor:
    """(B, priors) in mmdet's order, row, column, anchor, to (B, A, H, W)."""
    return weights.unflatten(1, (*size, -1)).permute(0, 3, 1, 2)
