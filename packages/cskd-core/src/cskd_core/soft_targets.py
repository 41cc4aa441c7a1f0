"""Losses against soft targets, which the assistant predictors learn from the teacher (docs/algorithm.md 5)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cskd_core.errors import ShapeError

ALPHA, GAMMA = 0.25, 2.0
"""Class balance and focusing exponent of the published recipes."""


def soft_focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    r"""Focal loss with targets anywhere in [0, 1], per element.

    .. math:: \ell = [\alpha t + (1 - \alpha)(1 - t)]\, q^\gamma\, \mathrm{BCE}(x, t), \qquad q = (1 - p) t + p (1 - t)

    :math:`x` is the logit, :math:`p = \sigma(x)`, :math:`t` the target, :math:`\alpha = 0.25`, :math:`\gamma = 2`. The
    minimum is not zero when 0 < t < 1.

    Args:
        logits: any shape.
        targets: the same shape, in [0, 1].

    Returns:
        The loss of each element, in the shape of `logits`.

    Raises:
        ShapeError: the shapes differ.

    Example:
        >>> logits = torch.tensor([0.3, -1.2, 2.0], requires_grad=True)
        >>> loss = soft_focal_loss(logits, torch.tensor([0.2, 0.9, 0.0]))
        >>> [round(value, 4) for value in loss.tolist()]
        [0.1532, 0.2059, 1.2376]
        >>> loss.sum().backward()

    Source: docs/algorithm.md 5.2; Lin et al. 2017, Focal Loss for Dense Object Detection, equation 5, for hard targets.
    """
    if logits.shape != targets.shape:
        raise ShapeError(f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} differ")
    loss: Tensor = _SoftFocal.apply(logits, targets)
    return loss


class _SoftFocal(torch.autograd.Function):
    """Logits and targets are all that the backward keeps."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        distance = _distance(logits.sigmoid(), targets)
        loss = F.softplus(logits, threshold=80).addcmul_(logits, targets, value=-1)  # cross entropy
        return loss.mul_(distance).mul_(distance).mul_(_balance(targets))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        logits, targets = ctx.saved_tensors
        p = logits.sigmoid()
        distance = _distance(p, targets)
        entropy = F.softplus(logits, threshold=80).addcmul_(logits, targets, value=-1)
        slope = (1 - p).mul_(p).mul_(1 - 2 * targets)  # of the distance
        slope = slope.mul_(entropy).mul_(2).addcmul_(distance, p.sub_(targets))
        return slope.mul_(distance).mul_(_balance(targets)).mul_(gradients[0]), None


def _distance(p: Tensor, targets: Tensor) -> Tensor:
    """q = (1 - p) t + p (1 - t), for gamma = 2."""
    return torch.addcmul(p + targets, p, targets, value=-2)


def _balance(targets: Tensor) -> Tensor:
    """alpha t + (1 - alpha) (1 - t)."""
    return targets * (2 * ALPHA - 1) + (1 - ALPHA)
