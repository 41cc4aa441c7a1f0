"""GFL: scores that hold the box's quality, and distances given as distributions."""

from __future__ import annotations

from torch import Tensor

from cskd_deploy.graph.base import DenseGraph


class GFLGraph(DenseGraph):
    """A GFL student: the distances are the means of the predicted distributions, in strides of the level."""

    def _choose(self, level: int, class_logits: Tensor, *maps: Tensor) -> tuple[Tensor, ...]:
        logits, labels, anchors, distributions = super()._choose(level, class_logits, *maps)
        distances = self.head.integral(distributions) * self.head.prior_generator.strides[level][0]
        return logits, labels, self.head.anchor_center(anchors), distances.reshape(anchors.shape)
