"""The cosine-guided loss (docs/algorithm.md 1).

A mean squared error, weighted by how little student and teacher point the same way, beside the cosine distances.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from cskd_core.errors import ShapeError

EPS = 1e-6
"""Lower clamp of each norm of a cosine (docs/algorithm.md 1.3)."""

WeightPair = tuple[float, float]
"""(weight of the guided squared error, weight of the cosine distances)."""


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
    """

    detach_guidance: bool = False
    guidance_min: float | None = None
    count_outside: bool = True
    eps_mode: Literal["separate", "product"] = "separate"


PUBLISHED = LossOptions()


def cosine_distances(
    student: Tensor, teacher: Tensor, eps_mode: Literal["separate", "product"] = "separate"
) -> tuple[Tensor, Tensor]:
    r"""Channel and spatial cosine distance of two feature maps.

    .. math:: u_{bc} = 1 - \cos(S_{bc\cdot}, T_{bc\cdot}), \qquad v_{bp} = 1 - \cos(S_{b\cdot p}, T_{b\cdot p})

    :math:`S, T` are student and teacher, :math:`b` the image, :math:`c` the channel, :math:`p` the position. Each norm
    is clamped below by `EPS`, so that a zero vector is at distance 1 from everything and sends back no gradient.

    Args:
        student: features (B, C, P).
        teacher: features (B, C, P).
        eps_mode: see `LossOptions`.

    Returns:
        u (B, C) over the positions and v (B, P) over the channels.

    Source: docs/algorithm.md 1.1, 1.3.
    """
    product = student * teacher

    def distance(dim: int) -> Tensor:
        return 1 - product.sum(dim) / _norms(student, teacher, dim, eps_mode)

    return distance(2), distance(1)


def _norms(student: Tensor, teacher: Tensor, dim: int, eps_mode: Literal["separate", "product"]) -> Tensor:
    """The denominator of a cosine along `dim`, clamped below."""
    if eps_mode == "product":
        squares = student.square().sum(dim) * teacher.square().sum(dim)
        return squares.clamp_min(EPS**2).sqrt()
    student_norm = torch.linalg.vector_norm(student, dim=dim).clamp_min(EPS)
    teacher_norm = torch.linalg.vector_norm(teacher, dim=dim).clamp_min(EPS)
    return student_norm * teacher_norm


def cosine_guided_loss(
    student: Tensor,
    teacher: Tensor,
    weight: WeightPair = (1.0, 0.5),
    mask: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
    options: LossOptions = PUBLISHED,
) -> Tensor:
    r"""Cosine-guided distillation loss of one feature map.

    .. math::
        \Gamma_{bcp} &= |u_{bc}\, v_{bp}|\, M_{bp} \\
        L &= w_1 \frac{1}{A} \sum_{bcp} \Gamma_{bcp} (S - T)_{bcp}^2
           + w_2 \Big( \operatorname{mean}_{bc} u_{bc} + \frac{1}{A'} \sum_{bp} v_{bp} \Big)

    :math:`u, v` are the `cosine_distances`; :math:`\Gamma` is the guidance (the gradient flows through it);
    :math:`M` the mask (it acts on the guidance alone); :math:`A` is `avg_factor`, or without one the number of elements
    (:math:`A = BCP`, :math:`A' = BP`). The sum over the guidance is :math:`|u|^T (S-T)^2 |v|`: no (B, C, P) guidance is
    ever built. All arithmetic is in float32 or better, also under autocast. Nothing flows back to the teacher.

    Args:
        student: features (B, C, H, W).
        teacher: features (B, C, H, W).
        weight: of the guided squared error and of the cosine distances.
        mask: (B, H, W) of zeros and ones.
        avg_factor: normalises the squared error and the spatial distance; positive.
        options: variants of the guidance and of the cosine.

    Returns:
        The loss, a scalar.

    Raises:
        ShapeError: the shapes differ.

    Example:
        >>> student = torch.randn(2, 8, 4, 5, requires_grad=True)
        >>> loss = cosine_guided_loss(student, torch.randn(2, 8, 4, 5))
        >>> loss.backward()

    Source: docs/algorithm.md 1.1.
    """
    _check_shapes(student, teacher, mask)
    with torch.autocast(device_type=student.device.type, enabled=False):
        s = at_least_float32(student).flatten(2)
        t = at_least_float32(teacher.detach()).flatten(2)
        inside = None if mask is None else mask.flatten(1)
        u, v = cosine_distances(s, t, options.eps_mode)
        squared_error = _guided_squared_error(s, t, u, v, inside, options)
        channel = u.mean()
        if inside is not None and not options.count_outside:
            v = v * inside
            channel = _mean_of_images(u, inside)
        if avg_factor is None:
            squared_error, spatial = squared_error / s.numel(), v.mean()
        else:
            squared_error, spatial = squared_error / avg_factor, v.sum() / avg_factor
        return weight[0] * squared_error + weight[1] * (channel + spatial)


def _guided_squared_error(
    s: Tensor, t: Tensor, u: Tensor, v: Tensor, inside: Tensor | None, options: LossOptions
) -> Tensor:
    """The sum of guidance (B, C, P) times squared difference."""
    u, v = u.abs(), v.abs()
    if options.detach_guidance:
        u, v = u.detach(), v.detach()
    squares = (s - t).square()
    if options.guidance_min is not None:
        guidance = (u.unsqueeze(2) * v.unsqueeze(1)).clamp_min(options.guidance_min)
        return (guidance * squares if inside is None else guidance * squares * inside.unsqueeze(1)).sum()
    guide = v if inside is None else v * inside
    return ((u.unsqueeze(1) @ squares).squeeze(1) * guide).sum()


def _mean_of_images(u: Tensor, inside: Tensor) -> Tensor:
    """The mean of u (B, C) over the images that have a position inside."""
    counted = (inside.sum(1) > 0).to(u.dtype)
    return (u.mean(1) * counted).sum() / counted.sum().clamp_min(1)


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
        v = 1 - (s * t).sum(1) / _norms(s, t, 1, options.eps_mode)
        guidance = v.abs().detach() if options.detach_guidance else v.abs()
        if options.guidance_min is not None:
            guidance = guidance.clamp_min(options.guidance_min)
        return weight[0] * (guidance @ (s - t).square()).sum() / s.numel() + weight[1] * v.mean()


def masked_cosine_guided_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    weight: WeightPair = (1.0, 0.5),
    options: LossOptions = PUBLISHED,
) -> Tensor:
    """`cosine_guided_loss` of the masked features, normalised by the number of masked elements.

    A position outside the mask is at spatial distance 1: it adds a constant to the value and nothing to the gradient
    (docs/algorithm.md 1.5), unless `options.count_outside` is off. A mask of zeros gives a zero that is still connected
    to the graph.

    Args:
        student: features (B, C, H, W).
        teacher: features (B, C, H, W).
        mask: (B, H, W) of zeros and ones.
        weight: of the guided squared error and of the cosine distances.
        options: variants of the guidance and of the cosine.

    Returns:
        The loss, a scalar.

    Raises:
        ShapeError: the shapes differ.

    Example:
        >>> student = torch.randn(1, 8, 4, 5, requires_grad=True)
        >>> loss = masked_cosine_guided_loss(student, torch.randn(1, 8, 4, 5), torch.zeros(1, 4, 5))
        >>> loss.backward(); loss.item()
        0.0

    Source: docs/algorithm.md 1.5, 2.3.
    """
    elements = mask.sum() * student.shape[1]
    area = mask.unsqueeze(1)
    loss = cosine_guided_loss(student * area, teacher * area, weight, mask, elements.clamp_min(1), options)
    return loss * (elements > 0)


class CosineGuidedLoss(nn.Module):
    """Module twin of `cosine_guided_loss`; with a mask and no `avg_factor`, of `masked_cosine_guided_loss`."""

    def __init__(self, weight: WeightPair = (1.0, 0.5), options: LossOptions = PUBLISHED) -> None:
        super().__init__()
        self.weight = weight
        self.options = options

    def forward(
        self, student: Tensor, teacher: Tensor, mask: Tensor | None = None, avg_factor: Tensor | float | None = None
    ) -> Tensor:
        if mask is not None and avg_factor is None:
            return masked_cosine_guided_loss(student, teacher, mask, self.weight, self.options)
        return cosine_guided_loss(student, teacher, self.weight, mask, avg_factor, self.options)

    def extra_repr(self) -> str:
        return f"weight={self.weight}, options={self.options}"


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32 if its precision is lower."""
    return x if x.dtype == torch.float64 else x.float()


def _check_shapes(student: Tensor, teacher: Tensor, mask: Tensor | None) -> None:
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
