"""RetinaNet: anchors, sigmoid scores, boxes as deltas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cskd_deploy.graph.base import CandidateGraph, best_pairs


class RetinaNetGraph(CandidateGraph):
    """A RetinaNet student with per-level top-k and decoded boxes.

    The anchors of a fixed input size are constants of the graph.

    Args:
        student: mmdet's `RetinaNet`, in eval mode.
        input_size: (height, width).
        candidates_per_level: `test_cfg.nms_pre`.
    """

    def __init__(self, student: nn.Module, input_size: tuple[int, int], candidates_per_level: int) -> None:
        super().__init__(student, input_size)
        head: Any = student.bbox_head
        self._candidates = candidates_per_level
        self._num_classes: int = head.cls_out_channels
        with torch.no_grad():
            level_logits, _ = self._heads(torch.zeros(1, 3, *input_size))
        sizes = [logits.shape[-2:] for logits in level_logits]
        for level, anchors in enumerate(head.prior_generator.grid_priors(sizes, device="cpu")):
            self.register_buffer(f"anchors_{level}", anchors, persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        chosen_logits, chosen_labels, chosen_deltas, chosen_anchors = [], [], [], []
        for level, (class_logits, deltas) in enumerate(zip(*self._heads(image), strict=True)):
            logits, anchors, labels = best_pairs(class_logits, self._num_classes, self._candidates)
            deltas = deltas.permute(0, 2, 3, 1).reshape(deltas.shape[0], -1, 4)
            chosen_logits.append(logits)
            chosen_labels.append(labels)
            chosen_deltas.append(deltas.gather(1, anchors.unsqueeze(-1).expand(-1, -1, 4)))
            chosen_anchors.append(self.get_buffer(f"anchors_{level}")[anchors])
        boxes = self._decode(torch.cat(chosen_anchors, 1), torch.cat(chosen_deltas, 1))
        return boxes, torch.cat(chosen_logits, 1).sigmoid(), torch.cat(chosen_labels, 1)

    def _heads(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        student: Any = self.student
        logits, deltas = student.bbox_head(student.extract_feat(image))
        return logits, deltas

    def _decode(self, anchors: Tensor, deltas: Tensor) -> Tensor:
        # Flat: mmdet's coder deprecates batches. No max_shape: clipping needs the image's size, not the input's.
        coder: Any = self.student.bbox_head.bbox_coder  # type: ignore[union-attr]
        boxes: Tensor = coder.decode(anchors.reshape(-1, 4), deltas.reshape(-1, 4))
        return boxes.reshape(deltas.shape)
