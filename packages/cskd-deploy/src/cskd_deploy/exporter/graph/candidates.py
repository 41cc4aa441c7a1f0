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
        input_size: (height, width) of the images, multiples of the padding's divisor.
        dynamic: the graph takes other sizes too, and computes the priors of each.
    """

    inputs: ClassVar[tuple[str, ...]] = (INPUT,)
    outputs: ClassVar[tuple[str, ...]] = OUTPUTS
    checked: ClassVar[tuple[str, ...]] = ()  # what `forward` gives beside them, for the check of the file alone

    def __init__(self, student: nn.Module, input_size: tuple[int, int], dynamic: bool = False) -> None:
        super().__init__()
        self.student: Any = student
        self.input_size = input_size
        self.dynamic = dynamic

    def priors(self, level: int, values: Tensor) -> Tensor:
        """The priors of a level `(n, 2)` or `(n, 4)`; `values` is a map of it, `(N, channels, H, W)`."""
        if not self.dynamic:
            return self.get_buffer(f"priors_{level}")
        priors: Tensor = self._generator.single_level_grid_priors(values.shape[-2:], level, device="cpu")
        return priors

    def _keep_priors(self, generator: Any, head: Any) -> None:
        """Set where priors come from: constants of the input size, or mmdet's `generator` in the graph."""
        self._generator = generator
        if self.dynamic:
            return
        with torch.no_grad():
            maps = head(self.student.extract_feat(torch.zeros(1, 3, *self.input_size)))[0]
        sizes = [values.shape[-2:] for values in maps]
        for level, priors in enumerate(generator.grid_priors(sizes, device="cpu")):
            self.register_buffer(f"priors_{level}", priors, persistent=False)


class DenseGraph(CandidateGraph):
    """A one-stage student: on each pyramid level the best pairs of prior and class, and their boxes.

    RetinaNet is this and no more.

    Args:
        student: mmdet's detector, in eval mode.
        input_size: (height, width).
        candidates_per_level: `test_cfg.nms_pre`.
        dynamic: as `CandidateGraph`.
    """

    def __init__(
        self, student: nn.Module, input_size: tuple[int, int], candidates_per_level: int, dynamic: bool = False
    ) -> None:
        super().__init__(student, input_size, dynamic)
        self.head: Any = self.student.bbox_head
        self._count = candidates_per_level
        self._keep_priors(self.head.prior_generator, self.head)

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
        priors = self.priors(level, class_logits)
        rows = (take(prior_rows(values, priors.shape[0]), places) for values in maps)
        return logits, labels, priors[places], *rows

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
    choose. For 9 anchors of 80 classes on 100 x 168 cells ONNX Runtime takes 18 ms so, and 9.7 ms as it lies (one
    thread; the best prior of each class first, then the pairs among those: 10.5 ms); for 80 classes 1.9 and 1.3 (1.9).
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


def prior_rows(values: Tensor, priors: int) -> Tensor:
    """A map `(N, channels, H, W)` as one row a prior, `(N, priors, channels a prior)`, in mmdet's order."""
    return values.permute(0, 2, 3, 1).reshape(values.shape[0], priors, -1)


def take(rows: Tensor, places: Tensor) -> Tensor:
    """Of `(N, n, width)` the rows at `places` `(N, k)`: `(N, k, width)`."""
    return rows.gather(1, places.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))


def decode(coder: Any, priors: Tensor, predictions: Tensor) -> Tensor:
    """Boxes `(N, k, 4)` of predictions `(N, k, 4)` by the head's own coder, not clipped."""
    # Flat: mmdet's coders deprecate batches. No max_shape: clipping needs the image's size, not the input's.
    boxes: Tensor = coder.decode(priors.reshape(-1, priors.shape[-1]), predictions.reshape(-1, 4))
    return boxes.reshape(predictions.shape)


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


class GFLGraph(DenseGraph):
    """A GFL student: the distances are the means of the predicted distributions, in strides of the level."""

    def _choose(self, level: int, class_logits: Tensor, *maps: Tensor) -> tuple[Tensor, ...]:
        logits, labels, anchors, distributions = super()._choose(level, class_logits, *maps)
        distances = self.head.integral(distributions) * self.head.prior_generator.strides[level][0]
        return logits, labels, self.head.anchor_center(anchors), distances.reshape(anchors.shape)
