"""What the graphs of all families share: their interface, and the choice of candidates on a pyramid level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cskd_deploy.backends.base import CLASS_SCORES, INPUT, OUTPUTS


class CandidateGraph(nn.Module):
    """A stock mmdet student from a normalised image to decoded candidates, ready for export.

    The student's own modules run; nothing of them is copied. NMS among the candidates is not part of it. `forward`
    takes `inputs` and gives `outputs`, as `backends.base.Backend` describes them.

    Args:
        student: the detector, in eval mode.
        generator: mmdet's, of the priors.
    """

    inputs: ClassVar[tuple[str, ...]] = (INPUT,)
    outputs: ClassVar[tuple[str, ...]] = OUTPUTS
    checked: ClassVar[tuple[str, ...]] = ()  # what `forward` gives beside them, for the check of the file alone

    def __init__(self, student: nn.Module, generator: Any) -> None:
        super().__init__()
        self.student: Any = student
        self._generator = generator

    def priors(self, level: int, places: Tensor, columns: Any) -> Tensor:
        """Of a level the priors at `places` `(N, k)`: `(N, k, 2)` points, or `(N, k, 4)` anchors.

        As mmdet's `grid_priors`, but of the chosen alone: a level of 100 x 168 cells with 9 anchors has 151200, and no
        file of a fixed size need hold them, no other compute them for each image.

        Args:
            places: in the order of `grid_priors`.
            columns: how many the level's map has.
        """
        generator = self._generator
        stride = torch.tensor(generator.strides[level], dtype=torch.float32)
        priors_a_cell = generator.num_base_priors[level]
        cells = torch.div(places, priors_a_cell, rounding_mode="trunc")
        rows = torch.div(cells, columns, rounding_mode="trunc")
        corners = torch.stack([cells - rows * columns, rows], dim=-1).float()
        if not hasattr(generator, "base_anchors"):
            return (corners + generator.offset) * stride
        shifts = corners * stride
        return generator.base_anchors[level][places - cells * priors_a_cell] + torch.cat([shifts, shifts], dim=-1)


class DenseGraph(CandidateGraph):
    """A one-stage student: on each pyramid level the best pairs of prior and class, and their boxes.

    RetinaNet is this and no more; so is FSAF, whose boxes another coder decodes.

    Args:
        student: mmdet's detector, in eval mode.
        candidates_per_level: `test_cfg.nms_pre`.
    """

    def __init__(self, student: Any, candidates_per_level: int) -> None:
        super().__init__(student, student.bbox_head.prior_generator)
        self.head: Any = student.bbox_head
        self._count = candidates_per_level

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        levels = [self._choose(level, *maps) for level, maps in enumerate(zip(*self._heads(image), strict=True))]
        return self._finish(*(torch.cat(parts, dim=1) for parts in zip(*levels, strict=True)))

    def _heads(self, image: Tensor) -> Sequence[Sequence[Tensor]]:
        """Class logits, box predictions and what else the head gives, each a list of one map a level."""
        maps: Sequence[Sequence[Tensor]] = self.head(self.student.extract_feat(image))
        return maps

    def _choose(self, level: int, class_logits: Tensor, *maps: Tensor) -> tuple[Tensor, ...]:
        """Of the best pairs of a level: logits, labels, priors, then the values of each further map."""
        logits, places, labels = best_pairs(class_logits, self.head.cls_out_channels, self._count)
        priors = self.priors(level, places, class_logits.shape[3])
        priors_a_cell = self.head.prior_generator.num_base_priors[level]
        return logits, labels, priors, *(take(prior_rows(values, priors_a_cell), places) for values in maps)

    def _finish(self, logits: Tensor, labels: Tensor, priors: Tensor, predictions: Tensor) -> tuple[Tensor, ...]:
        """The outputs, from the chosen of all levels."""
        return self._decode(priors, predictions), logits.sigmoid(), labels

    def _decode(self, priors: Tensor, predictions: Tensor) -> Tensor:
        return decode(self.head.bbox_coder, priors, predictions)


def best_pairs(class_logits: Tensor, num_classes: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` best (prior, class) pairs of one pyramid level.

    mmdet applies the sigmoid, then the score threshold, then keeps the best. The sigmoid is monotone and the threshold
    can come later, so choosing among logits gives the same pairs and leaves all but `count` sigmoids out.

    The map is searched as it lies, channel by channel: to put its channels last, as mmdet does, costs more than to
    choose.
    Of equal logits at the last rank those of the first channels are taken, where mmdet takes those of the first cells.

    Args:
        class_logits: `(N, priors a cell * num_classes, H, W)`, as the head gives them.
        count: how many; all of them where the level has fewer.

    Returns:
        logits, prior indices (in the order of mmdet's `grid_priors`) and labels, each `(N, k)`, best first.
    """
    pairs = class_logits.flatten(1)
    best, places = torch.topk(pairs, _at_most(count, pairs), dim=1)
    cells = class_logits.flatten(2).shape[2]
    channels = torch.div(places, cells, rounding_mode="trunc")
    priors = torch.div(channels, num_classes, rounding_mode="trunc")  # of a cell
    priors_a_cell = int(class_logits.shape[1]) // num_classes
    return best, (places - channels * cells) * priors_a_cell + priors, channels - priors * num_classes


def best_priors(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` best priors of one pyramid level; of equal ones the first, as mmdet takes them.

    Args:
        scores: `(N, priors a cell, H, W)`.
        count: how many; all of them where the level has fewer.

    Returns:
        scores and prior indices (in the order of mmdet's `grid_priors`), each `(N, k)`, best first.
    """
    rows = scores.permute(0, 2, 3, 1).flatten(1)
    best, places = torch.topk(rows, _at_most(count, rows), dim=1)
    return best, places


def _at_most(count: int, pairs: Tensor) -> Any:
    if torch.jit.is_tracing():
        # `min` of Python would choose for the traced size once and for all.
        return torch.minimum(torch.tensor(count), torch._shape_as_tensor(pairs)[1])
    return min(count, pairs.shape[1])


def prior_rows(values: Tensor, priors_a_cell: int) -> Tensor:
    """A map `(N, channels, H, W)` as one row a prior, `(N, priors, channels a prior)`, in mmdet's order."""
    width = int(values.shape[1]) // priors_a_cell
    return values.permute(0, 2, 3, 1).reshape(values.shape[0], -1, width)


def take(rows: Tensor, places: Tensor) -> Tensor:
    """Of `(N, n, width)` the rows at `places` `(N, k)`: `(N, k, width)`."""
    return rows.gather(1, places.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))


def decode(coder: Any, priors: Tensor, predictions: Tensor) -> Tensor:
    """Boxes `(N, k, 4)` of predictions `(N, k, 4)` by the head's own coder, not clipped."""
    # Flat: mmdet's coders deprecate batches. No max_shape: clipping needs the image's size, not the input's.
    boxes: Tensor = coder.decode(priors.reshape(-1, priors.shape[-1]), predictions.reshape(-1, 4))
    return boxes.reshape(predictions.shape)


class ScoreFactorGraph(DenseGraph):
    """A student whose head gives a score factor: the centerness of FCOS and ATSS, the objectness of AutoAssign.

    mmdet chooses by the class score: the score threshold and the best of a level. Only then the class score is
    multiplied by the factor's sigmoid, and the product ranks in NMS and is the detection's score. Both go out: `scores`
    is the product, `class_scores` is what the threshold applies to.
    """

    outputs: ClassVar[tuple[str, ...]] = (*OUTPUTS, CLASS_SCORES)

    def _finish(  # type: ignore[override]  # one map more than the other heads have
        self, logits: Tensor, labels: Tensor, priors: Tensor, predictions: Tensor, factors: Tensor
    ) -> tuple[Tensor, ...]:
        class_scores = logits.sigmoid()
        return self._decode(priors, predictions), class_scores * factors.squeeze(-1).sigmoid(), labels, class_scores


class GFLGraph(DenseGraph):
    """A GFL student: the distances are the means of the predicted distributions, in strides of the level."""

    def _choose(self, level: int, class_logits: Tensor, *maps: Tensor) -> tuple[Tensor, ...]:
        logits, labels, anchors, distributions = super()._choose(level, class_logits, *maps)
        bins = self.head.integral.project
        shares = distributions.reshape(-1, len(bins)).softmax(dim=1)
        # As the head's `integral`, whose product with a vector takes ONNX Runtime fifteen times as long.
        distances = (shares @ bins.unsqueeze(1)) * self.head.prior_generator.strides[level][0]
        return logits, labels, self.head.anchor_center(anchors), distances.reshape(anchors.shape)
