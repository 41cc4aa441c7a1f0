"""Losses of a feature map by others, to compare the cosine-guided one with (docs/rival_terms.md).

Each takes student and teacher features (B, C, H, W) of one shape and gives a scalar. All arithmetic is in float32 or
better, also under autocast, and nothing flows back to the teacher.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cskd_core.similarity import check_shapes

EPS = 1e-6
"""A channel is constant where its standard deviation is no more than this share of its mean, or than this."""


def mean_squared_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean squared error.

    .. math:: L = \frac{1}{BCP} \sum_{bcp} (S - T)_{bcp}^2

    :math:`S, T` are student and teacher, :math:`b` the image, :math:`c` the channel, :math:`p` one of P positions.

    Args:
        student: features (B, C, H, W).
        teacher: features (B, C, H, W).

    Raises:
        ShapeError: the shapes differ.

    Example:
        >>> student = torch.randn(2, 8, 4, 5, requires_grad=True)
        >>> mean_squared_loss(student, torch.randn(2, 8, 4, 5)).backward()

    Source: Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, equation 3, there half the sum.
    """
    return F.mse_loss(*_compared(student, teacher))


def pearson_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Half the mean squared error of normalised channels: one minus their Pearson correlation, nearly.

    .. math::
        \hat S_{bcp} = \frac{S_{bcp} - \operatorname{mean}_{bp} S_c}{\operatorname{std}_{bp} S_c}, \qquad
        L = \operatorname{mean}_c \frac{1}{2m} \sum_{bp} (\hat S - \hat T)_{bcp}^2

    with :math:`m = BP`, the standard deviation over :math:`m - 1`, and :math:`\hat T` made like :math:`\hat S`. A
    channel that is constant in the batch is zero once normalised, and sends no gradient back.

    Args:
        student: features (B, C, H, W).
        teacher: features (B, C, H, W).

    Raises:
        ShapeError: the shapes differ.

    Example:
        >>> student = torch.randn(2, 8, 4, 5, requires_grad=True)
        >>> pearson_loss(student, 3 * student.detach() + 1).item() < 1e-6
        True
        >>> pearson_loss(student, torch.randn(2, 8, 4, 5)).backward()

    Source: Cao et al., PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient,
    NeurIPS 2022.
    """
    student, teacher = _compared(student, teacher)
    return F.mse_loss(_normalised(student), _normalised(teacher)) / 2


def channel_distribution_loss(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    r"""Divergence of where each channel is large: its softmax over the positions.

    .. math::
        \phi(S)_{bcp} = \frac{\exp(S_{bcp} / \tau)}{\sum_q \exp(S_{bcq} / \tau)}, \qquad
        L = \frac{\tau^2}{BC} \sum_{bcp} \phi(T)_{bcp} \log \frac{\phi(T)_{bcp}}{\phi(S)_{bcp}}

    Args:
        student: features (B, C, H, W).
        teacher: features (B, C, H, W).
        tau: temperature, above zero.

    Raises:
        ShapeError: the shapes differ.

    Example:
        >>> student = torch.randn(2, 8, 4, 5, requires_grad=True)
        >>> channel_distribution_loss(student, torch.randn(2, 8, 4, 5), tau=4.0).backward()

    Source: Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021.
    """
    student, teacher = _compared(student, teacher)
    of_student, of_teacher = ((side.flatten(2) / tau).log_softmax(2) for side in (student, teacher))
    divergence = F.kl_div(of_student, of_teacher, reduction="sum", log_target=True)
    return divergence * tau**2 / (student.shape[0] * student.shape[1])


def _compared(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one precision, float32 at least; the teacher without a graph."""
    check_shapes(student, teacher)
    precision = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return student.to(precision), teacher.detach().to(precision)


def _normalised(features: Tensor) -> Tensor:
    """Each channel with zero mean and unit variance over images and positions; zero where it is constant."""
    count = features.shape[0] * features.shape[2] * features.shape[3]
    variance, mean = torch.var_mean(features, (0, 2, 3), correction=min(1, count - 1), keepdim=True)
    constant = variance <= (EPS * mean.abs().clamp_min(1)).square()
    scale = variance.masked_fill(constant, 1).rsqrt().masked_fill(constant, 0)
    return (features - mean) * scale
