"""The cosine-guided loss of one pair of features over several masks at once, with its backward written by hand.

The full map, the foreground and the background of a level share every product of the two features, so that each of them
is read once for all. Neither direction holds a (B, C, P) tensor for the other: the backward rebuilds what it needs from
the two features and from vectors over the channels and the positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cskd_core.derivatives import refuse_second_derivative

EPS = 1e-6
"""Lower clamp of each norm of a cosine (docs/algorithm.md 1.3)."""

CACHED_ELEMENTS = 1 << 19
FEWEST_IMAGES = 8  # products of fewer matrices use one core only


class GuidedLosses(torch.autograd.Function):
    r"""K losses of one pair of features; the gradient goes to the student's alone.

    .. math::
        L_k = \alpha_k \sum_{bcp} |u_{kbc} v_{bp}| M_{kbp} (S - T)^2_{bcp}
            + \beta_k \sum_{bp} v_{bp} M_{kbp} + \sum_{bc} \gamma_{kb} u_{kbc}

    with :math:`u_k` the channel distance of the features under mask k and :math:`v` the spatial one
    (docs/algorithm.md 1.1, 1.5). With
    :math:`\partial u / \partial S = b\,S - a\,T` for a = 1 / (norm of S times norm of T) and b = cosine / squared norm
    of S, the gradient is :math:`X \odot S - Y \odot T`, where X and Y are sums of 2 K + 1 outer products.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        masks: Tensor,
        squared: Tensor,
        spatial: Tensor,
        channel: Tensor,
        detach_guidance: bool,
        eps_mode: str,
    ) -> Tensor:
        """The losses (K,).

        Args:
            student: S (B, C, P).
            teacher: T (B, C, P).
            masks: M (B, K, P), zeros and ones.
            squared: alpha (K,).
            spatial: beta (K,).
            channel: gamma (K, B).
            detach_guidance: let no gradient flow through u and v of the first term.
            eps_mode: `separate` or `product`, see `cskd_core.similarity.LossOptions`.
        """
        parts = _parts(student)
        buffer = torch.empty_like(student[parts[0]])
        sums = [_sums(student[part], teacher[part], masks[part], buffer, eps_mode) for part in parts]
        u, a_c, b_c, v, a_p, b_p, over_channels, over_positions = (torch.cat(one) for one in zip(*sums, strict=True))
        v_masked = v.abs().unsqueeze(1) * masks  # (B, K, P)
        losses = squared * (over_channels * v_masked).sum((0, 2))
        losses = losses + spatial * (v.unsqueeze(1) * masks).sum((0, 2))
        losses = losses + (channel.T.unsqueeze(1) * u).sum((0, 1))
        ctx.save_for_backward(
            student, teacher, masks, squared, spatial, channel, u, a_c, b_c, v, a_p, b_p, over_channels, over_positions
        )
        ctx.detach_guidance = detach_guidance
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("the cosine-guided loss")
        student, teacher, masks, squared, spatial, channel, u, a_c, b_c, v, a_p, b_p, over_channels, over_positions = (
            ctx.saved_tensors
        )
        (gradient,) = gradients
        squared, spatial = squared * gradient, spatial * gradient
        to_u = (channel * gradient.unsqueeze(1)).T.unsqueeze(1).expand_as(u)  # (B, C, K)
        to_v = spatial.unsqueeze(1) * masks  # (B, K, P)
        if not ctx.detach_guidance:
            to_u = to_u + squared * u.sign() * over_positions
            to_v = to_v + squared.unsqueeze(1) * v.sign().unsqueeze(1) * over_channels * masks
        to_v = to_v.sum(1)  # (B, P)
        guidance = 2 * squared * u.abs()
        v_masked = v.abs().unsqueeze(1) * masks
        ones = torch.ones_like(u[..., :1])

        def factors(per_channel: Tensor, per_position: Tensor) -> tuple[Tensor, Tensor]:
            left = torch.cat([guidance, to_u * per_channel, ones], 2)
            return left, torch.cat([v_masked, masks, (to_v * per_position).unsqueeze(1)], 1)

        x_left, x_right = factors(b_c, b_p)
        y_left, y_right = factors(a_c, a_p)
        to_student = torch.empty_like(student)
        parts = _parts(student)
        buffer = torch.empty_like(student[parts[0]])
        for part in parts:
            into = to_student[part]
            torch.bmm(x_left[part], x_right[part], out=into).mul_(student[part])
            y = torch.bmm(y_left[part], y_right[part], out=buffer[: len(into)])
            into.addcmul_(y, teacher[part], value=-1)
        return to_student, None, None, None, None, None, None, None


def _parts(features: Tensor) -> list[slice]:
    """Images that are worked through together: on a processor no more than its cache holds, for RoIs are many."""
    count = len(features)
    if not features.is_cuda and features.numel():
        count = max(FEWEST_IMAGES, CACHED_ELEMENTS * count // features.numel())
    return [slice(first, first + count) for first in range(0, max(len(features), 1), max(count, 1))]


def _sums(
    student: Tensor, teacher: Tensor, mask: Tensor, buffer: Tensor, eps_mode: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """u (B, C, K), v (B, P), each with a and b; then |u|^T (S - T)^2 (B, K, P) and (S - T)^2 |v M| (B, C, K)."""
    columns, products = mask.transpose(1, 2), buffer[: len(student)]
    torch.mul(student, teacher, out=products)
    dot_c, dot_p = products @ columns, products.sum(1)
    torch.mul(student, student, out=products)
    student_c, student_p = products @ columns, products.sum(1)
    torch.mul(teacher, teacher, out=products)
    teacher_c, teacher_p = products @ columns, products.sum(1)
    u, a_c, b_c = _distance(dot_c, student_c, teacher_c, eps_mode)
    v, a_p, b_p = _distance(dot_p, student_p, teacher_p, eps_mode)
    squares = torch.sub(student, teacher, out=products).square_()
    over_positions = squares @ (v.abs().unsqueeze(1) * mask).transpose(1, 2)
    return u, a_c, b_c, v, a_p, b_p, u.abs().transpose(1, 2) @ squares, over_positions


def _distance(dot: Tensor, student: Tensor, teacher: Tensor, eps_mode: str) -> tuple[Tensor, Tensor, Tensor]:
    """1 - cosine from a dot product and two squared norms; then a and b of its derivative b S - a T."""
    if eps_mode == "product":
        clamped = student * teacher < EPS**2
        norms = (student * teacher).clamp_min(EPS**2).sqrt()
    else:
        clamped = student < EPS**2
        norms = student.clamp_min(EPS**2).sqrt() * teacher.clamp_min(EPS**2).sqrt()
    cosine = dot / norms
    b = torch.where(clamped, 0, cosine / student.clamp_min(torch.finfo(student.dtype).tiny))
    return 1 - cosine, 1 / norms, b
