"""The cosine-guided losses of many pairs of features at once, with their backward written by hand.

A feature map is read by a few operators, those that need all of it. Everything else is about vectors over channels or
over positions, and those of all pairs lie behind one another in one long vector (`Layout`): an operator on it serves
every pair. Neither direction holds a (B, C, P) tensor for the other: the backward rebuilds what it needs from the two
features and from vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from cskd_core.derivatives import refuse_second_derivative
from cskd_core.transfer import to_device

EPS = 1e-6
"""Lower clamp of each norm of a cosine (docs/algorithm.md 1.3)."""

CACHED_ELEMENTS = 1 << 19
FEWEST_IMAGES = 8  # products of fewer matrices use one core only


class Layout:
    """Where the vectors of each pair of features lie in one long vector.

    First those over channels, (K, B, C) a pair, then those over positions, (K, B, P) a pair; K is the number of losses
    of the pair.

    Args:
        features: (B, C, P) of each pair.
        masks: (K, B, P) of each pair, or None: K is 1.

    Attributes:
        segments: length of each loss's part of the vector, all of those over channels, then those over positions.
        split: where the positions begin.
        size: of the whole.
    """

    def __init__(self, features: Sequence[Tensor], masks: Sequence[Tensor | None]) -> None:
        self._shapes = [
            (1 if mask is None else len(mask), *feature.shape) for feature, mask in zip(features, masks, strict=True)
        ]
        channels = [images * channels for count, images, channels, _ in self._shapes for _ in range(count)]
        positions = [images * positions for count, images, _, positions in self._shapes for _ in range(count)]
        self.segments = channels + positions
        self.split, self.size = sum(channels), sum(self.segments)

    def channels(self, vector: Tensor) -> Iterator[Tensor]:
        """The part (..., K, B, C) of each pair, of a vector (..., size)."""
        first = 0
        for count, images, channels, _ in self._shapes:
            length = count * images * channels
            yield vector[..., first : first + length].unflatten(-1, (count, images, channels))
            first += length

    def positions(self, vector: Tensor) -> Iterator[Tensor]:
        """The part (..., K, B, P) of each pair, of a vector (..., size)."""
        first = self.split
        for count, images, _, positions in self._shapes:
            length = count * images * positions
            yield vector[..., first : first + length].unflatten(-1, (count, images, positions))
            first += length


def guided_losses(
    coefficients: Tensor,
    detach_guidance: bool,
    eps_mode: str,
    count_outside: bool,
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    masks: Sequence[Tensor | None],
) -> Tensor:
    """The losses of each pair of features, pair by pair, with a gradient to the students alone: see `GuidedLosses`.

    Args:
        coefficients: gamma, beta and alpha of each loss, (3, losses).
        detach_guidance: let no gradient flow through u and v of the first sum.
        eps_mode: `separate` or `product`, see `cskd_core.similarity.LossOptions`.
        count_outside: count an image without any masked position at channel distance 1, else at 0.
        students: S (B, C, P) of each pair.
        teachers: T (B, C, P) of each pair.
        masks: M (K, B, P) of each pair, zeros and ones, or None.
    """
    outlets = [
        _Outlet.apply(student, teacher, 1 if mask is None else len(mask), coefficients)
        for student, teacher, mask in zip(students, teachers, masks, strict=True)
    ]
    losses: Tensor = GuidedLosses.apply(
        coefficients,
        (detach_guidance, eps_mode, count_outside),
        len(masks),
        *(student.detach() for student in students),
        *teachers,
        *masks,
        *(factor for outlet in outlets for factor in outlet),
    )
    return losses


class _Outlet(torch.autograd.Function):
    """Where the gradient leaves for one student: what comes back are the factors of X and Y (see `GuidedLosses`).

    With one backward for all pairs, the gradients of all would be there before the features of any could be freed.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Two tensors without content, (2, 3, K, B, C) and (2, 3, K, B, P)."""
        ctx.save_for_backward(student, teacher)
        images, channels, positions = student.shape
        nothing = like[0, 0]
        return nothing.expand(2, 3, count, images, channels), nothing.expand(2, 3, count, images, positions)

    @staticmethod
    def backward(ctx: Any, *factors: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("the cosine-guided loss")
        return _gradient(*ctx.saved_tensors, *factors), None, None, None


class GuidedLosses(torch.autograd.Function):
    r"""K losses of each pair of features; the gradient goes to the student's alone.

    .. math::
        L_k = \alpha_k \sum_{bcp} |u_{kbc} v_{kbp}| (S - T)^2_{bcp}
            + \beta_k \sum_{bp} v_{kbp} + \gamma_k \sum_{bc} u_{kbc}

    with :math:`u_k` the channel distance of the features under mask k, and :math:`v_k` the spatial one where the mask
    is 1, else 0 (docs/algorithm.md 1.1, 1.5, 1.7). Let :math:`d` be any distance, u or v (`distances`), w the `weight`
    it has in the two last sums, and m what it has `met` in the first: :math:`\sum_p |v| (S - T)^2` where it is a u,
    :math:`\sum_c |u| (S - T)^2` where it is a v. Then

    .. math::
        \partial L / \partial d = w + \alpha \operatorname{sign}(d)\, m, \qquad
        \partial d / \partial S = b\, S - a\, T

    with a = 1 / (norm of S times norm of T) and b = cosine / squared norm of S, so that the gradient is
    :math:`X \odot S - Y \odot T`, where X and Y are sums of 3 K outer products (`factors`) of a vector over the
    channels and one over the positions.
    """

    @staticmethod
    def forward(
        ctx: Any, coefficients: Tensor, switches: tuple[bool, str, bool], pairs: int, *tensors: Tensor | None
    ) -> Tensor:
        """The losses; arguments as those of `guided_losses`, then the tensors of the outlets."""
        detach_guidance, eps_mode, count_outside = switches
        students, teachers, masks = _split(tensors, pairs)
        layout = Layout(students, masks)
        sums = students[0].new_empty(3, layout.size)
        for pair in zip(students, teachers, masks, layout.channels(sums), layout.positions(sums), strict=True):
            _products(*pair)
        distances = _distances(sums, eps_mode)
        for mask, channels, positions in zip(
            masks, layout.channels(distances), layout.positions(distances), strict=True
        ):
            if mask is not None:
                positions.mul_(mask)
                if not count_outside:
                    channels[0].mul_(mask.sum(2, keepdim=True) > 0)
        guidance, met = distances[0].abs(), torch.empty_like(distances[0])
        for student, teacher, *vectors in zip(
            students,
            teachers,
            layout.channels(guidance),
            layout.positions(guidance),
            layout.channels(met),
            layout.positions(met),
            strict=True,
        ):
            _squares(student, teacher, *vectors)
        guided = guidance[layout.split :] * met[layout.split :]
        lengths = to_device(layout.segments + layout.segments[len(layout.segments) // 2 :], sums.device)
        totals = torch.segment_reduce(torch.cat([distances[0], guided]), "sum", lengths=lengths, unsafe=True)
        ctx.save_for_backward(coefficients, lengths, distances, met, *masks)
        ctx.layout, ctx.detach_guidance = layout, detach_guidance
        losses: Tensor = (coefficients * totals.view_as(coefficients)).sum(0)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("the cosine-guided loss")
        coefficients, lengths, distances, met, *masks = ctx.saved_tensors
        layout, split = ctx.layout, ctx.layout.split
        scaled = coefficients * gradients[0]
        of_segments = torch.cat([scaled, scaled[2:]]).view(2, -1)
        weight, alpha = torch.repeat_interleave(
            of_segments, lengths[: of_segments.shape[1]], dim=1, output_size=layout.size
        )
        if not ctx.detach_guidance:
            weight = torch.addcmul(weight, alpha, distances[0].sign().mul_(met))
        # Three outer products make X: 2 alpha |u| with |v|, b dL/du with M, 1 with b dL/dv. Y has a in place of b.
        factors = distances.new_ones(2, 3, layout.size)
        factors[:, 0] = distances[0].abs()
        factors[:, 0, :split].mul_(2 * alpha[:split])
        torch.mul(distances[1:, :split], weight[:split], out=factors[:, 1, :split])
        torch.mul(distances[1:, split:], weight[split:], out=factors[:, 2, split:])
        for mask, of_mask in zip(masks, layout.positions(factors[:, 1]), strict=True):
            if mask is not None:
                of_mask.copy_(mask)
        of_outlets = zip(layout.channels(factors), layout.positions(factors), strict=True)
        inputs = 3 + 3 * len(masks)
        return (*(None for _ in range(inputs)), *(factor for pair in of_outlets for factor in pair))


def bounded_losses(
    coefficients: Tensor,
    bound: float,
    detach_guidance: bool,
    eps_mode: str,
    count_outside: bool,
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    masks: Sequence[Tensor | None],
) -> Tensor:
    """`GuidedLosses` with the guidance bounded below (docs/algorithm.md 9.4): no product then, it has to be built."""
    losses: list[Tensor] = []
    for s, t, of_pair in zip(students, teachers, masks, strict=True):
        for mask in (s.new_ones(1, len(s), s.shape[2]) if of_pair is None else of_pair).unbind():
            gamma, beta, alpha = coefficients[:, len(losses)]
            student, teacher = s * mask.unsqueeze(1), t * mask.unsqueeze(1)
            products = student * teacher
            u = 1 - products.sum(2) / norms(student, teacher, 2, eps_mode)
            v = 1 - products.sum(1) / norms(student, teacher, 1, eps_mode)
            guidance = (u.abs().unsqueeze(2) * v.abs().unsqueeze(1)).clamp_min(bound)
            if detach_guidance:
                guidance = guidance.detach()
            if not count_outside:
                u = u * (mask.sum(1, keepdim=True) > 0)
            squares = (guidance * (student - teacher).square()).sum()
            losses.append(alpha * squares + beta * (v * mask).sum() + gamma * u.sum())
    return torch.stack(losses)


def norms(student: Tensor, teacher: Tensor, dim: int, eps_mode: str) -> Tensor:
    """The denominator of a cosine along `dim`, clamped below as `eps_mode` says."""
    if eps_mode == "product":
        squares = student.square().sum(dim) * teacher.square().sum(dim)
        return squares.clamp_min(EPS**2).sqrt()
    student_norm = torch.linalg.vector_norm(student, dim=dim).clamp_min(EPS)
    teacher_norm = torch.linalg.vector_norm(teacher, dim=dim).clamp_min(EPS)
    return student_norm * teacher_norm


def _split(tensors: Sequence[Any], pairs: int) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor | None]]:
    """Students, teachers, masks."""
    return tensors[:pairs], tensors[pairs : 2 * pairs], tensors[2 * pairs : 3 * pairs]


def _parts(features: Tensor) -> list[slice]:
    """Images that are worked through together: on a processor no more than its cache holds, for RoIs are many."""
    count = len(features)
    if not features.is_cuda and features.numel():
        count = max(FEWEST_IMAGES, CACHED_ELEMENTS * count // features.numel())
    return [slice(first, first + count) for first in range(0, max(len(features), 1), max(count, 1))]


def _products(student: Tensor, teacher: Tensor, mask: Tensor | None, channels: Tensor, positions: Tensor) -> None:
    """Fill in the sums under each mask of S T, S S and T T: (3, K, B, C) over positions, (3, K, B, P) over channels."""
    for part in _parts(student):
        s, t, products = student[part], teacher[part], None
        for one, other, over_positions, over_channels in (
            (s, t, channels[0, :, part], positions[0, :, part]),
            (s, s, channels[1, :, part], positions[1, :, part]),
            (t, t, channels[2, :, part], positions[2, :, part]),
        ):
            products = torch.mul(one, other, out=products)
            if mask is None:
                torch.sum(products, 2, out=over_positions[0])
                torch.sum(products, 1, out=over_channels[0])
            else:
                inside = mask[:, part]
                torch.bmm(inside.transpose(0, 1), products.transpose(1, 2), out=over_positions.transpose(0, 1))
                torch.mul(inside, products.sum(1), out=over_channels)


def _squares(
    student: Tensor, teacher: Tensor, u: Tensor, v: Tensor, over_positions: Tensor, over_channels: Tensor
) -> None:
    """Fill in what |u| (K, B, C) and |v| (K, B, P) meet: (S - T)^2 times |v|, and |u| times (S - T)^2."""
    for part in _parts(student):
        squares = mse_loss(student[part], teacher[part], reduction="none")
        of_u, of_v = u[:, part].transpose(0, 1), v[:, part].transpose(0, 1)
        torch.bmm(of_v, squares.transpose(1, 2), out=over_positions[:, part].transpose(0, 1))
        torch.bmm(of_u, squares, out=over_channels[:, part].transpose(0, 1))


def _gradient(student: Tensor, teacher: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """X S - Y T, with the factors of X and Y in `left` (2, 3, K, B, C) and `right` (2, 3, K, B, P)."""
    left, right = left.permute(0, 3, 4, 1, 2).flatten(3), right.permute(0, 3, 1, 2, 4).flatten(2, 3)
    parts = _parts(student)
    whole = torch.empty_like(student) if len(parts) > 1 else None
    for part in parts:
        gradient = torch.bmm(left[0, part], right[0, part], out=None if whole is None else whole[part])
        y = torch.bmm(left[1, part], right[1, part])
        gradient.mul_(student[part]).addcmul_(y, teacher[part], value=-1)
    return gradient if whole is None else whole


def _distances(sums: Tensor, eps_mode: str) -> Tensor:
    """Turn S T, S S and T T in place into 1 - cosine, then b and a of its derivative b S - a T, (3, size)."""
    dot, student, teacher = sums
    if eps_mode == "product":
        squares = student * teacher
        clamped = squares < EPS**2
        norms = squares.clamp_min_(EPS**2).sqrt_()
    else:
        clamped = student < EPS**2
        student_norm, teacher_norm = sums[1:].clamp_min(EPS**2).sqrt_()
        norms = student_norm * teacher_norm
    cosine = dot.div_(norms)
    torch.div(cosine, student, out=student).masked_fill_(clamped, 0)
    torch.reciprocal(norms, out=teacher)
    cosine.neg_().add_(1)
    return sums
