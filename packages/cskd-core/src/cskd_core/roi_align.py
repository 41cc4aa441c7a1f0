"""RoIAlign with average pooling: torchvision's kernel where it loads, otherwise plain, differentiable torch.

Bilinear sampling on a regular grid is separable. Averaging the samples of a bin is therefore two small matrices a RoI,
one along the rows and one along the columns: pooled = Wy . feature . Wx^T, exact, and differentiable by autograd.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from cskd_core.errors import ShapeError


def roi_align(
    features: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> Tensor:
    """Pool every RoI to a fixed size.

    Args:
        features: (B, C, H, W).
        rois: (N, 5): image index, x1, y1, x2, y2. They get no gradient.
        output_size: rows and columns of the pooled RoI.
        spatial_scale: factor from RoI units to cells of the feature map.
        sampling_ratio: samples a bin and axis; 0 takes as many as the bin has cells, rounded up.
        aligned: half a cell is subtracted, so that a cell's value sits at its centre.

    Returns:
        (N, C, rows, columns).

    Raises:
        ShapeError: `rois` is not (N, 5), or `features` not (B, C, H, W).

    Example:
        >>> features = torch.arange(16.0).reshape(1, 1, 4, 4).requires_grad_()
        >>> pooled = roi_align(features, torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]]), 2)
        >>> pooled.detach().flatten().tolist()
        [2.5, 4.5, 10.5, 12.5]
        >>> pooled.sum().backward()

    Source: He et al. 2017, Mask R-CNN, section 3; `aligned` as in Detectron2.
    """
    if features.dim() != 4 or rois.dim() != 2 or rois.shape[1] != 5:
        raise ShapeError(
            f"features {tuple(features.shape)} and rois {tuple(rois.shape)}: expected (B, C, H, W) and (N, 5)"
        )
    rows, columns = (output_size, output_size) if isinstance(output_size, int) else output_size
    rois = rois.detach().to(features)
    kernel = _torchvision_kernel()
    if kernel is not None:
        pooled: Tensor = kernel(features, rois, spatial_scale, rows, columns, sampling_ratio, aligned)
        return pooled
    return separable_roi_align(features, rois, (rows, columns), spatial_scale, sampling_ratio, aligned)


def separable_roi_align(
    features: Tensor,
    rois: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """`roi_align` as two matrix products a RoI; arguments as there, `rois` in the dtype of `features`."""
    height, width = features.shape[2:]
    boxes = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    along_x = _sampling_matrix(boxes[:, 0], boxes[:, 2], output_size[1], width, sampling_ratio, aligned)
    along_y = _sampling_matrix(boxes[:, 1], boxes[:, 3], output_size[0], height, sampling_ratio, aligned)
    pooled = features.new_empty((len(rois), features.shape[1], *output_size))
    parts, order = [], []
    for image in range(len(features)):
        chosen = (rois[:, 0] == image).nonzero().squeeze(1)
        columns_kept = torch.einsum("nph,chw->npcw", along_y[chosen], features[image])
        parts.append(torch.einsum("npcw,nqw->ncpq", columns_kept, along_x[chosen]))
        order.append(chosen)
    if not parts:
        return pooled
    return pooled.index_copy(0, torch.cat(order), torch.cat(parts))


def _sampling_matrix(start: Tensor, end: Tensor, bins: int, size: int, sampling_ratio: int, aligned: bool) -> Tensor:
    """(N, bins, size): the share of each cell in each bin of one axis, for RoIs from `start` to `end` (N,) in cells."""
    extent = end - start
    if not aligned:
        extent = extent.clamp_min(1)
    bin_size = extent / bins
    if sampling_ratio > 0:
        count = torch.full_like(extent, sampling_ratio)
    else:
        count = bin_size.ceil().clamp_min(0)
    samples = int(count.max()) if len(count) else 0
    index = torch.arange(samples, dtype=start.dtype, device=start.device)
    within_bin = (index + 0.5) / count.clamp_min(1).unsqueeze(1)
    bin_index = torch.arange(bins, dtype=start.dtype, device=start.device)
    position = start.view(-1, 1, 1) + bin_size.view(-1, 1, 1) * (bin_index.view(1, -1, 1) + within_bin.unsqueeze(1))
    counted = (position >= -1) & (position <= size) & (index < count.unsqueeze(1)).unsqueeze(1)
    position = position.clamp(0, size - 1)
    low = position.floor()
    high_share = position - low
    share = counted / count.clamp_min(1).view(-1, 1, 1)
    matrix = position.new_zeros((len(start), bins, size))
    matrix.scatter_add_(2, low.long(), share * (1 - high_share))
    return matrix.scatter_add_(2, (low.long() + 1).clamp_max(size - 1), share * high_share)


@cache
def _torchvision_kernel() -> Callable[..., Any] | None:
    """torchvision's operator, or None where torchvision is missing or was built for another torch."""
    try:
        importlib.import_module("torchvision")
        kernel: Callable[..., Any] = torch.ops.torchvision.roi_align
    except (ImportError, AttributeError, RuntimeError, ValueError):
        return None
    return kernel
