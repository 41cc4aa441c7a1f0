"""RetinaNet: towers compared as they are, one assistant predictor beside each of the two (docs/algorithm.md 3-5.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cskd_core.assistant import Assistant, PredictorSpec
from cskd_core.family import Channels, Observation, PredictionRule
from cskd_core.regions import Regions
from cskd_core.soft_targets import soft_focal_loss
from cskd_core.taps import Recording


class RetinaNetFamily:
    """A stock mmdet RetinaNet, as student and as teacher."""

    prediction_rules: Mapping[str, PredictionRule] = {
        "cls": PredictionRule("sigmoid", "mean"),
        "reg": PredictionRule("identity", "foreground"),
    }

    def channels(self, detector: Any) -> Channels:
        return Channels(detector.neck.out_channels, detector.neck.num_outs)

    def taps(self, detector: Any) -> dict[str, str]:
        stages = range(detector.bbox_head.stacked_convs)
        return {
            "pyramid": "neck",
            "predictions": "bbox_head",
            "targets": "bbox_head.get_targets()",
            **{f"{tower}{stage}": f"bbox_head.{tower}_convs.{stage}" for tower in ("cls", "reg") for stage in stages},
        }

    def infer(self, detector: Any, images: Tensor) -> None:
        detector.bbox_head(detector.extract_feat(images))

    def read(self, detector: Any, recording: Recording) -> Observation:
        stages = range(detector.bbox_head.stacked_convs)
        logits, deltas = recording.last("predictions")
        return Observation(
            pyramid=recording.last("pyramid"),
            towers={tower: [recording.calls(f"{tower}{stage}") for stage in stages] for tower in ("cls", "reg")},
            predictions={"cls": logits, "reg": deltas},
            targets=recording.last("targets") if recording.ran("targets") else None,
        )

    def assistant(self, detector: Any) -> Assistant:
        head = detector.bbox_head
        return Assistant(
            {
                name: PredictorSpec(name, head.feat_channels, predictor.out_channels, classifies=name == "cls")
                for name, predictor in (("cls", head.retina_cls), ("reg", head.retina_reg))
            }
        )

    def assistant_losses(
        self, assisted: Mapping[str, Sequence[Tensor]], student: Observation, teacher: Observation, regions: Regions
    ) -> dict[str, Tensor]:
        """Soft focal loss against the teacher's scores inside boxes, L1 against its deltas at positive anchors.

        Both are normalised by the number of positive anchors that the student's own loss used: one at least an image,
        not averaged over processes.

        Source: docs/algorithm.md 5.5.
        """
        _, label_weights, _, box_weights, num_positive, _ = student.targets
        classification, regression = [], []
        for level, (logits, deltas) in enumerate(zip(assisted["cls"], assisted["reg"], strict=True)):
            foreground = regions.foreground((logits.shape[2], logits.shape[3])).unsqueeze(1)
            scores = teacher.predictions["cls"][level].sigmoid() * foreground
            anchors = label_weights[level].shape[1]
            focal = soft_focal_loss(_by_anchor(logits, anchors), _by_anchor(scores, anchors))
            classification.append((focal * label_weights[level].unsqueeze(2)).sum())
            distance = (deltas - teacher.predictions["reg"][level]).abs()
            regression.append((_by_anchor(distance, anchors) * box_weights[level]).sum())
        return {
            "assistant_cls": torch.stack(classification).sum() / num_positive,
            "assistant_reg": torch.stack(regression).sum() / num_positive,
        }


def _by_anchor(prediction: Tensor, anchors: int) -> Tensor:
    """(B, A * c, H, W) to (B, anchors, c), in mmdet's order: row, column, anchor."""
    return prediction.permute(0, 2, 3, 1).reshape(len(prediction), anchors, -1)
