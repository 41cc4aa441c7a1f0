"""FCOS: points, distances to the four sides, and a centerness that ranks the boxes."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from cskd_deploy.backends.base import CLASS_SCORES, OUTPUTS
from cskd_deploy.graph.base import DenseGraph


class FCOSGraph(DenseGraph):
    """An FCOS student.

    mmdet chooses by the class score: the score threshold and the best of a level. Only then the class score is
    multiplied by the centerness, and the product ranks in NMS and is the detection's score. Both go out: `scores` is
    the product, `class_scores` is what the threshold applies to.
    """

    outputs: ClassVar[tuple[str, ...]] = (*OUTPUTS, CLASS_SCORES)

    def _finish(  # type: ignore[override]  # one map more than the other heads have
        self, logits: Tensor, labels: Tensor, points: Tensor, distances: Tensor, centerness: Tensor
    ) -> tuple[Tensor, ...]:
        class_scores = logits.sigmoid()
        return self._decode(points, distances), class_scores * centerness.squeeze(-1).sigmoid(), labels, class_scores
