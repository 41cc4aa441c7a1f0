"""Faster R-CNN: proposals with their NMS, RoIAlign by level, and class-specific boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from cskd_deploy.backends.base import IMAGE_SHAPE, INPUT, PROPOSALS
from cskd_deploy.exporter.graph.candidates import CandidateGraph, best_priors, decode, prior_rows, take
from cskd_deploy.exporter.graph.operators import clipped, non_max_suppression, offset_by_group, roi_align
from cskd_deploy.exporter.mmdet_config import ProposalRule


class FasterRCNNGraph(CandidateGraph):
    """A Faster R-CNN student: every proposal with every class is a candidate.

    mmdet clips proposals to the image, before padding, and only then removes overlaps and pools features. So the graph
    has a second input: the image's size on its canvas. The number of proposals of an image is fixed. Where there are
    fewer, or NMS leaves fewer, empty boxes fill up; their scores are 0, which no threshold lets pass.

    Args:
        student: mmdet's `FasterRCNN`, in eval mode.
        rule: how proposals are chosen.
    """

    inputs: ClassVar[tuple[str, ...]] = (INPUT, IMAGE_SHAPE)
    checked: ClassVar[tuple[str, ...]] = (PROPOSALS,)

    def __init__(self, student: Any, rule: ProposalRule) -> None:
        super().__init__(student, student.rpn_head.prior_generator)
        self._rule = rule

    def forward(self, image: Tensor, image_shape: Tensor) -> tuple[Tensor, ...]:
        head: Any = self.student.roi_head.bbox_head
        features = self.student.extract_feat(image)
        proposals, real = self._proposals(features, image_shape)
        logits, deltas = head(self._pooled(features, proposals))
        scores = logits.softmax(dim=-1)[:, : head.num_classes] * real.reshape(-1, 1)  # the last one is the background
        boxes = head.bbox_coder.decode(proposals.reshape(-1, 4), deltas)
        labels = torch.arange(head.num_classes).expand(scores.shape)
        images = image.shape[0]
        return boxes.reshape(images, -1, 4), scores.reshape(images, -1), labels.reshape(images, -1), proposals

    def _proposals(self, features: Sequence[Tensor], image_shape: Tensor) -> tuple[Tensor, Tensor]:
        """The proposals `(N, P, 4)`, best first, and which are real `(N, P)`: 1, or 0 for those that fill up."""
        head: Any = self.student.rpn_head
        levels = []
        for level, (logits, deltas) in enumerate(zip(*head(features), strict=True)):
            # Scores, not logits: where the sigmoid makes two logits equal, mmdet takes the first.
            scores, places = best_priors(logits.sigmoid(), self._rule.candidates_per_level)
            anchors = self.priors(level, places, logits.shape[3])
            deltas = take(prior_rows(deltas, int(logits.shape[1])), places)
            levels.append((scores, anchors, deltas, torch.full_like(scores, level)))
        scores, anchors, deltas, numbers = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
        boxes = clipped(decode(head.bbox_coder, anchors, deltas), image_shape)
        if self._rule.min_size >= 0:
            width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
            large = (width > self._rule.min_size) & (height > self._rule.min_size)
            scores = torch.where(large, scores, -torch.ones_like(scores))
        return self._without_overlaps(boxes, scores, numbers)

    def _without_overlaps(self, boxes: Tensor, scores: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        moved = offset_by_group(boxes, levels, scores > 0)
        places, real = non_max_suppression(moved, scores, self._rule.nms_iou_threshold, self._rule.max_per_image)
        return take(boxes, places) * real.unsqueeze(-1), real

    def _pooled(self, features: Sequence[Tensor], proposals: Tensor) -> Tensor:
        """RoI features `(N * P, C, rows, columns)`, each proposal's from the level that the extractor maps it to.

        One operator serves all levels, each in the place of further images: so shapes stay fixed, and no level is
        pooled in vain. Levels are brought to the size of the largest by repeating their last cells, as RoIAlign does at
        the edge; proposals are clipped to the image and see no more than half a cell of that.
        """
        extractor: Any = self.student.roi_head.bbox_roi_extractor
        boxes = proposals.reshape(-1, 4)
        rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], dim=1)
        levels = extractor.map_roi_levels(rois, extractor.num_inputs)
        scales = proposals.new_tensor([layer.spatial_scale for layer in extractor.roi_layers])
        largest, *others = features[: extractor.num_inputs]
        maps = torch.cat([largest, *(_extended(level, largest) for level in others)])
        images = torch.arange(proposals.shape[0]).unsqueeze(1).expand(proposals.shape[:2]).reshape(-1)
        places = levels * proposals.shape[0] + images.to(levels)
        return roi_align(maps, boxes * scales[levels].unsqueeze(1), places, extractor.roi_layers[0])


def _extended(level: Tensor, like: Tensor) -> Tensor:
    """A map in the size of another, its last row and column repeated."""
    # Not `torch.nn.functional.pad`: onnxslim folds the pads of an exported one in the wrong order.
    for axis in (3, 2):
        shape = [-1] * 4
        shape[axis] = like.shape[axis] - level.shape[axis]
        last = level.narrow(axis, level.shape[axis] - 1, 1)
        level = torch.cat([level, last.expand(shape)], dim=axis)
    return level
