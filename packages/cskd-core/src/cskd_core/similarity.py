"""The cosine-guided loss (docs/algorithm.md 1).

A mean squared error, weighted by how little student and teacher point the same way, beside the cosine distances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from cskd_core.errors import PlanError, ShapeError
from cskd_core.guided import bounded_losses, guided_losses, norms
from cskd_core.schema import WeightPair, settle
from cskd_core.transfer import to_device


@dataclass(frozen=True)
class LossOptions:
    """Where the published loss can be questioned (docs/algorithm.md 9); the defaults are faithful to it.

    Attributes:
        detach_guidance: let no gradient flow through the guidance (9.3).
        guidance_min: lower bound of the guidance, which otherwise vanishes as the features align (9.4). Builds the
            whole (B, C, P) guidance.
        count_outside: count every position outside a mask at distance 1, a constant without gradient (9.5).
        eps_mode: clamp each norm of a cosine at `EPS`, as torch >= 2 does, or the product of both, as torch 1.10 did,
            on which the code was published (9.2). They differ for vectors that are nearly zero.

    Raises:
        PlanError: a value of another kind; `guidance_min` below zero, which no guidance is; an `eps_mode` that is none.
    """

    detach_guidance: bool = False
    guidance_min: float | None = None
    count_outside: bool = True
    eps_mode: Literal["separate", "product"] = "separate"

    def __post_init__(self) -> None:
        settle(self, "distill.loss")
        if self.guidance_min is not None and not 0 <= self.guidance_min < math.inf:
            raise PlanError(
                f"distill.loss.guidance_min: expected a number >= 0, or None for no bound, got {self.guidance_min}"
            )


PUBLISHED = LossOptions()


@dataclass(frozen=True)
class Variant:
    """One loss among those that `cosine_guided_losses` takes of the same features.

    Attributes:
        weight: of the guided squared error and of the cosine distances.
        mask: (B, H, W) of zeros and ones: the loss of the masked features, normalised by the number of masked elements.
            A mask of zeros gives a zero that is still connected to the graph.
        avg_factor: without a mask, what normalises squared error and spatial distance in place of their numbers of
            elements. It is positive: a number that is not is refused, a tensor is not looked at and divides as it is.

    Raises:
        ValueError: `avg_factor` is a number that is not positive, or is given beside a mask.
    """

    weight: WeightPair = (1.0, 0.5)
    mask: Tensor | None = None
    avg_factor: Tensor | float | None = None

    def __post_init__(self) -> None:
        if self.mask is not None and self.avg_factor is not None:
            raise ValueError(
                "avg_factor and a mask are given: under a mask the number of masked elements normalises. Leave "
                "avg_factor out, or scale the weights"
            )
        if isinstance(self.avg_factor, (int, float)) and not self.avg_factor > 0:
            raise ValueError(f"avg_factor = {self.avg_factor}: expected a positive number, or None for the elements")


@dataclass(frozen=True)
class Comparison:
    """A student's and a teacher's features (B, C, H, W), and the losses to be taken of them."""

    student: Tensor
    teacher: Tensor
    variants: Sequence[Variant] = (Variant(),)


def cosine_guided_losses(
    student: Tensor, teacher: Tensor, variants: Sequence[Variant], options: LossOptions = PUBLISHED
) -> Tensor:
    r"""Cosine-guided distillation losses of one feature map, each element read once for all of them.

    .. math::
        u_{bc} &= 1 - \cos(S_{bc\cdot}, T_{bc\cdot}), \qquad v_{bp} = 1 - \cos(S_{b\cdot p}, T_{b\cdot p}) \\
        \Gamma_{bcp} &= |u_{bc}\, v_{bp}| \\
        L &= w_1 \frac{1}{A} \sum_{bcp} \Gamma_{bcp} (S - T)_{bcp}^2
           + w_2 \Big( \operatorname{mean}_{bc} u_{bc} + \frac{1}{A'} \sum_{bp} v_{bp} \Big)

    :math:`S, T` are student and teacher, under a mask both multiplied by it; :math:`b` the image, :math:`c` the
    channel, :math:`p` the position. :math:`\Gamma` is the guidance (the gradient flows through it). :math:`A = A'` is
    the number of masked elements under a mask, `avg_factor` where that is given; without either, the numbers of
    elements (:math:`A = BCP`, :math:`A' = BP`). Each norm is clamped below by `EPS`, so that a zero vector is at
    distance 1 from everything.
    Where both sides are zero nothing flows back: a position outside a mask adds a constant to the value and nothing to
    the gradient, unless `options.count_outside` is off. Where the student alone is zero, its distance sends back a
    gradient of up to 1 / `EPS`: clip gradients.

    The sum over the guidance is :math:`|u|^T (S-T)^2 |v|`: no (B, C, P) guidance is ever built, unless
    `options.guidance_min` asks for it. All arithmetic is in float32 or better, also under autocast. Nothing flows back
    to the teacher. Features without any element, as those of no RoI, give zeros that are still connected to the graph.

    Args:
        student: features (B, C, H, W).
        teacher: features (B, C, H, W).
        variants: the losses.
        options: variants of the guidance and of the cosine.

    Returns:
        The losses, one for each variant.

    Raises:
        ShapeError: the shapes differ.

    Example:
        >>> student = torch.randn(2, 8, 4, 5, requires_grad=True)
        >>> mask = torch.zeros(2, 4, 5)
        >>> losses = cosine_guided_losses(student, torch.randn(2, 8, 4, 5), [Variant((1, 0.5)), Variant((2, 1), mask)])
        >>> losses.sum().backward()

    Source: docs/algorithm.md 1.1, 1.5, 2.3.
    """
    return compare([Comparison(student, teacher, variants)], options)


def compare(comparisons: Sequence[Comparison], options: LossOptions = PUBLISHED) -> Tensor:
    """`cosine_guided_losses` of many feature maps of any shapes, in hardly more operators than of one.

    Args:
        comparisons: at least one.
        options: variants of the guidance and of the cosine.

    Returns:
        The losses: those of the first comparison, one for each of its variants, then those of the second, and so on.

    Raises:
        ShapeError: the shapes differ within a comparison.

    Example:
        >>> small, large = (torch.randn(2, 8, size, size, requires_grad=True) for size in (3, 6))
        >>> pairs = [Comparison(small, torch.randn(2, 8, 3, 3)), Comparison(large, torch.randn(2, 8, 6, 6))]
        >>> losses = compare(pairs)
        >>> losses.sum().backward(); losses.shape
        torch.Size([2])
    """
    for one in comparisons:
        for variant in one.variants:
            check_shapes(one.student, one.teacher, variant.mask)
    device = comparisons[0].student.device
    with torch.autocast(device_type=device.type, enabled=False):
        features = [at_least_float32(side) for one in comparisons for side in (one.student, one.teacher.detach())]
        exact = any(feature.dtype == torch.float64 for feature in features)
        precision = torch.float64 if exact else torch.float32
        students, teachers = ([side.to(precision).flatten(2) for side in features[first::2]] for first in (0, 1))
        masks = [_masks(student, one.variants) for student, one in zip(students, comparisons, strict=True)]
        coefficients, constant = _coefficients(students, masks, comparisons, options)
        switches = options.detach_guidance, options.eps_mode, options.count_outside
        if options.guidance_min is None:
            losses = guided_losses(coefficients, *switches, students, teachers, masks)
        else:
            losses = bounded_losses(coefficients, options.guidance_min, *switches, students, teachers, masks)
        return losses if constant is None else losses + constant


def _masks(features: Tensor, variants: Sequence[Variant]) -> Tensor | None:
    """(K, B, P), a variant without a mask covering everything; None where no variant has one and there is only one."""
    if len(variants) == 1 and variants[0].mask is None:
        return None
    everywhere = features.new_ones(features.shape[0], features.shape[2])
    return torch.stack(
        [everywhere if variant.mask is None else variant.mask.flatten(1).to(features) for variant in variants]
    )


def _coefficients(
    students: Sequence[Tensor], masks: Sequence[Tensor | None], comparisons: Sequence[Comparison], options: LossOptions
) -> tuple[Tensor, Tensor | None]:
    """gamma, beta and alpha of each loss (3, losses), see `GuidedLosses`; then a constant of each loss, None for none.

    The constant is that of the positions outside a mask, at distance 1 each.
    """
    weights: list[tuple[float, float, float]] = []
    divisors: list[Tensor | None] = []
    everywhere: list[int] = []  # positions of a masked loss, 0 of any other
    for student, mask, one in zip(students, masks, comparisons, strict=True):
        images, channels, positions = (max(length, 1) for length in student.shape)
        inside = [None] * len(one.variants) if mask is None else mask.sum((1, 2)).unbind()
        for variant, masked_positions in zip(one.variants, inside, strict=True):
            weights.append(_weights(variant, images, channels, positions))
            divisors.append(_divisor(variant, masked_positions))
            everywhere.append(0 if variant.mask is None else images * positions)
    coefficients = to_device(list(zip(*weights, strict=True)), students[0].device, students[0].dtype)
    if all(divisor is None for divisor in divisors):
        return coefficients, None
    one_each = coefficients.new_ones(())
    divisor_of = torch.stack([one_each if divisor is None else divisor.to(coefficients) for divisor in divisors])
    positions_there = to_device(everywhere, divisor_of.device, divisor_of.dtype)
    masked = positions_there > 0
    empty = masked & (divisor_of == 0)  # an empty mask is no loss at all
    coefficients[1:] /= divisor_of.masked_fill(empty, 1)
    coefficients.masked_fill_(empty, 0)
    if options.count_outside:
        return coefficients, coefficients[1] * (positions_there - divisor_of).masked_fill(~masked, 0)
    coefficients[0] *= torch.cat([_per_counted_image(*one) for one in zip(masks, comparisons, strict=True)])
    return coefficients, None


def _weights(variant: Variant, images: int, channels: int, positions: int) -> tuple[float, float, float]:
    """gamma, beta and alpha of one loss, the latter two still to be divided by `_divisor`.

    gamma is w2 / (B C) always. beta and alpha: w2 / (B P) and w1 / (B C P); by a normaliser A, w2 / A and w1 / A; of n
    masked positions, w2 / (n C) and w1 / (n C).
    """
    squared, cosine = variant.weight
    gamma = cosine / (images * channels)
    if variant.mask is not None:
        return gamma, cosine / channels, squared / channels
    if isinstance(variant.avg_factor, Tensor):
        return gamma, cosine, squared
    if variant.avg_factor is not None:
        return gamma, cosine / variant.avg_factor, squared / variant.avg_factor
    return gamma, cosine / (images * positions), squared / (images * channels * positions)


def _divisor(variant: Variant, masked_positions: Tensor | None) -> Tensor | None:
    """What only the device knows of a loss's divisor: how many positions are masked, or a normaliser in a tensor."""
    if variant.mask is not None:
        return masked_positions
    return variant.avg_factor if isinstance(variant.avg_factor, Tensor) else None


def _per_counted_image(mask: Tensor | None, comparison: Comparison) -> Tensor:
    """How many times more each of its images counts, where those without any masked position do not count: (K,)."""
    if mask is None:
        return at_least_float32(comparison.student.new_ones(1))
    return mask.shape[1] / (mask.sum(2) > 0).to(mask).sum(1).clamp_min(1)


def cosine_guided_loss(
    student: Tensor,
    teacher: Tensor,
    weight: WeightPair = (1.0, 0.5),
    avg_factor: Tensor | float | None = None,
    options: LossOptions = PUBLISHED,
) -> Tensor:
    """`cosine_guided_losses` of one unmasked variant: a scalar.

    Example:
        >>> student = torch.randn(2, 8, 4, 5, requires_grad=True)
        >>> loss = cosine_guided_loss(student, torch.randn(2, 8, 4, 5))
        >>> loss.backward()
    """
    return cosine_guided_losses(student, teacher, [Variant(weight, None, avg_factor)], options)[0]


def masked_cosine_guided_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    weight: WeightPair = (1.0, 0.5),
    options: LossOptions = PUBLISHED,
) -> Tensor:
    """`cosine_guided_losses` of one masked variant, `mask` being (B, H, W): a scalar.

    Example:
        >>> student = torch.randn(1, 8, 4, 5, requires_grad=True)
        >>> loss = masked_cosine_guided_loss(student, torch.randn(1, 8, 4, 5), torch.zeros(1, 4, 5))
        >>> loss.backward(); loss.item()
        0.0
    """
    return cosine_guided_losses(student, teacher, [Variant(weight, mask)], options)[0]


def cosine_guided_vector_loss(
    student: Tensor, teacher: Tensor, weight: WeightPair = (1.0, 1.0), options: LossOptions = PUBLISHED
) -> Tensor:
    r"""Cosine-guided distillation loss of vectors, one a region of interest.

    .. math:: v_i = 1 - \cos(S_i, T_i), \qquad
       L = w_1 \frac{1}{nd} \sum_i |v_i|\, \lVert S_i - T_i \rVert^2 + w_2 \operatorname{mean}_i v_i

    :math:`S, T` are student and teacher, :math:`i` the vector, :math:`n` their number, :math:`d` their length. No
    vectors at all give a zero that is still connected to the graph.

    Args:
        student: vectors (n, d).
        teacher: vectors (n, d); nothing flows back to them.
        weight: of the guided squared error and of the cosine distances.
        options: variants of the guidance and of the cosine.

    Returns:
        The loss, a scalar.

    Raises:
        ShapeError: the shapes differ.

    Example:
        >>> student = torch.randn(5, 16, requires_grad=True)
        >>> loss = cosine_guided_vector_loss(student, torch.randn(5, 16))
        >>> loss.backward()

    Source: docs/algorithm.md 1.4.
    """
    if student.dim() != 2 or student.shape != teacher.shape:
        raise ShapeError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)}: expected vectors (n, d) of one shape"
        )
    if not len(student):
        return 0 * student.sum()
    with torch.autocast(device_type=student.device.type, enabled=False):
        s, t = at_least_float32(student), at_least_float32(teacher.detach())
        v = 1 - (s * t).sum(1) / norms(s, t, 1, options.eps_mode)
        guidance = v.abs().detach() if options.detach_guidance else v.abs()
        if options.guidance_min is not None:
            guidance = guidance.clamp_min(options.guidance_min)
        return weight[0] * (guidance @ (s - t).square()).sum() / s.numel() + weight[1] * v.mean()


class CosineGuidedLoss(nn.Module):
    """Module twin of `cosine_guided_loss`; with a mask, of `masked_cosine_guided_loss`, which takes no `avg_factor`."""

    def __init__(self, weight: WeightPair = (1.0, 0.5), options: LossOptions = PUBLISHED) -> None:
        super().__init__()
        self.weight = weight
        self.options = options

    def forward(
        self, student: Tensor, teacher: Tensor, mask: Tensor | None = None, avg_factor: Tensor | float | None = None
    ) -> Tensor:
        variant = Variant(self.weight, mask, avg_factor)
        return cosine_guided_losses(student, teacher, [variant], self.options)[0]

    def extra_repr(self) -> str:
        return f"weight={self.weight}, options={self.options}"


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32 if its precision is lower."""
    return x if x.dtype == torch.float64 else x.float()


def check_shapes(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> None:
    """Refuse features that are not (B, C, H, W) of one shape, or a mask that is not (B, H, W) of theirs.

    Raises:
        ShapeError: says which, and what to do.
    """
    if student.dim() != 4:
        raise ShapeError(f"student {tuple(student.shape)}: expected features (B, C, H, W)")
    if student.shape != teacher.shape:
        given = f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        if student.shape[:1] + student.shape[2:] == teacher.shape[:1] + teacher.shape[2:]:
            raise ShapeError(f"{given} differ in channels: give an adapter")
        raise ShapeError(f"{given} differ: both must see the same images at the same strides")
    if mask is not None and mask.shape != student.shape[:1] + student.shape[2:]:
        expected = tuple(student.shape[:1] + student.shape[2:])
        raise ShapeError(f"mask {tuple(mask.shape)}: expected {expected}, one value a position")
