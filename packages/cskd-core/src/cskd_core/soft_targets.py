"""Losses against soft targets, which the assistant predictors learn from the teacher (docs/algorithm.md 5)."""

from __future__ import annotations

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
        >>> import torch
        >>> logits = torch.tensor([0.3, -1.2, 2.0], requires_grad=True)
        >>> loss = soft_focal_loss(logits, torch.tensor([0.2, 0.9, 0.0]))
        >>> [round(value, 4) for value in loss.tolist()]
        [0.1532, 0.2059, 1.2376]
        >>> loss.sum().backward()

    Source: docs/algorithm.md 5.2; Lin et al. 2017, Focal Loss for Dense Object Detection, equation 5, for hard targets.
    """
    if logits.shape != targets.shape:
        raise ShapeError(f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} differ")
    p = logits.sigmoid()
    distance = (1 - p) * targets + p * (1 - targets)
    balance = ALPHA * targets + (1 - ALPHA) * (1 - targets)
    return balance * distance**GAMMA * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
