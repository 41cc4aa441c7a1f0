"""What the graph of every family shares: its interface, and the choice of candidates."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class CandidateGraph(nn.Module, ABC):
    """A stock mmdet student from a normalised image to decoded candidates, ready for export.

    The student's own modules run; nothing of them is copied. NMS is not in the graph.

    Args:
        student: the detector, in eval mode.
        input_size: (height, width) of the images, multiples of the padding's divisor.
    """

    def __init__(self, student: nn.Module, input_size: tuple[int, int]) -> None:
        super().__init__()
        self.student = student
        self.input_size = input_size

    @abstractmethod
    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Candidates of `image` `(N, 3, height, width)`.

        Returns:
            boxes `(N, K, 4)` as x1, y1, x2, y2 in pixels of the input, not clipped; scores `(N, K)`; labels `(N, K)`.
        """


def best_pairs(class_logits: Tensor, num_classes: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` best (anchor, class) pairs of one pyramid level.

    mmdet applies the sigmoid, then the score threshold, then keeps the best. The sigmoid is monotone and the threshold
    can come later, so choosing among logits gives the same pairs and leaves all but `count` sigmoids out.

    Args:
        class_logits: `(N, anchors * num_classes, H, W)`, as the head gives them.
        count: how many; all of them where the level has fewer.

    Returns:
        logits, anchor indices (in the order of mmdet's `grid_priors`) and labels, each `(N, k)`, best first.
    """
    pairs = class_logits.permute(0, 2, 3, 1).flatten(1)
    logits, places = torch.topk(pairs, min(count, pairs.shape[1]), dim=1)
    anchors = torch.div(places, num_classes, rounding_mode="trunc")
    return logits, anchors, places - anchors * num_classes
