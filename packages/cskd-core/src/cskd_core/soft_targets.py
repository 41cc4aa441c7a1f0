"""Losses against soft targets, which the assistant predictors learn from the teacher (docs/algorithm.md 5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from cskd_core.derivatives import refuse_second_derivative
from cskd_core.errors import ShapeError

ALPHA = 0.25
"""Class balance and focusing exponent of the published recipes."""


def soft_focal_loss(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    r"""Focal loss with targets anywhere in [0, 1], summed over all elements.

    .. math::
        L = \sum w\, [\alpha t + (1 - \alpha)(1 - t)]\, q^\gamma\, \mathrm{BCE}(x, t), \qquad
        q = (1 - p) t + p (1 - t)

    :math:`x` is the logit, :math:`p = \sigma(x)`, :math:`t` the target, :math:`\alpha = 0.25`, :math:`\gamma = 2`. The
    minimum is not zero when 0 < t < 1.

    Args:
        logits: any shape.
        targets: the same shape, in [0, 1]; they get no gradient.
        weights: of each element, in a shape that broadcasts to that of `logits`; they get no gradient.

    Returns:
        A scalar.

    Raises:
        ShapeError: the shapes differ.

    Example:
        >>> logits = torch.tensor([0.3, -1.2, 2.0], requires_grad=True)
        >>> loss = soft_focal_loss(logits, torch.tensor([0.2, 0.9, 0.0]))
        >>> round(loss.item(), 4)
        1.5966
        >>> loss.backward()

    Source: docs/algorithm.md 5.2; Lin et al. 2017, Focal Loss for Dense Object Detection, equation 5, for hard targets.
    """
    if logits.shape != targets.shape:
        raise ShapeError(f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} differ")
    loss: Tensor = _SoftFocal.apply(logits, targets, weights)
    return loss


class _SoftFocal(torch.autograd.Function):
    """The value and the gradient share nearly all they are made of, so the forward computes both, in four buffers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, t: Tensor, weights: Tensor | None) -> Tensor:
        p = x.sigmoid()
        entropy = softplus(x, threshold=80).addcmul_(x, t, value=-1)
        q = torch.add(p, t).addcmul_(p, t, value=-2)
        factor = torch.rsub(t, 1 - ALPHA, alpha=1 - 2 * ALPHA).mul_(q)
        if weights is not None:
            factor.mul_(weights)
        entropy.mul_(factor)
        length = q.shape[-1] if q.dim() else 1
        rows = q.numel() // max(length, 1)  # their sums of products need no buffer
        loss = torch.bmm(q.reshape(rows, 1, length), entropy.reshape(rows, length, 1)).sum()
        # factor * [2 BCE q' + q (p - t)], with q' = p (1 - p) (1 - 2 t)
        slope = factor.mul_(q).mul_(torch.sub(p, t, out=q))
        torch.addcmul(p, p, p, value=-1, out=q).addcmul_(q, t, value=-2)
        ctx.save_for_backward(slope.addcmul_(q, entropy, value=2))
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("the soft focal loss")
        (slope,) = ctx.saved_tensors
        return slope * gradients[0], None, None
