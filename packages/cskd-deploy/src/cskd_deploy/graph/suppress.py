"""NMS of the detections in the graph: what `postprocess.select_detections` does outside of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cskd_deploy.graph.operators import fill_up, non_max_suppression
from cskd_deploy.manifest import Postprocessing


class Suppress(nn.Module):
    """From the candidates of one image to `rule.max_per_image` detections; empty ones of score 0 fill up."""

    def __init__(self, rule: Postprocessing) -> None:
        super().__init__()
        self._rule = rule

    def forward(
        self, boxes: Tensor, scores: Tensor, labels: Tensor, judged: Tensor, image_shape: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Candidates `(1, k, 4)` and `(1, k)`, what the threshold applies to `(1, k)`, the image's size `(1, 2)`."""
        rule = self._rule
        corners, labels = boxes[0], labels[0]
        likely = judged[0] > rule.score_threshold
        scores = torch.where(likely, scores[0], torch.zeros_like(scores[0]))
        if rule.clip_boxes:
            corners = torch.minimum(corners.clamp(min=0), image_shape.flip(1).repeat(1, 2))
        apart = corners
        if not rule.nms_class_agnostic:
            farthest = torch.where(likely.unsqueeze(-1), corners, torch.zeros_like(corners)).max()
            apart = corners + (labels.to(corners) * (farthest + 1)).unsqueeze(-1)
        kept = non_max_suppression(apart, scores, rule.nms_iou_threshold, rule.max_per_image)
        places, real = fill_up(kept, rule.max_per_image)
        found = corners[places] * real.unsqueeze(-1), scores[places] * real, labels[places]
        return found[0].unsqueeze(0), found[1].unsqueeze(0), found[2].unsqueeze(0)
