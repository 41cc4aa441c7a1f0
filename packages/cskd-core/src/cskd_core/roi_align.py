"""RoIAlign with average pooling: torchvision's kernel where it runs, otherwise plain, differentiable torch.

A bin's average of bilinear samples is a weighted sum of cells, and the weights are products of one along the rows and
one along the columns. With the cells as the rows of a table this is a bag of embeddings, exact, and differentiable by
autograd.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
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
    kernel = _torchvision_kernel(features.device.type)
    if kernel is not None:
        pooled: Tensor = kernel(features, rois, spatial_scale, rows, columns, sampling_ratio, aligned)
        return pooled
    return gathered_roi_align(features, rois, (rows, columns), spatial_scale, sampling_ratio, aligned)


def gathered_roi_align(
    features: Tensor,
    rois: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """`roi_align` as weighted sums of cells; arguments as there, `rois` in the dtype of `features`."""
    channels, height, width = features.shape[1:]
    table = features.permute(0, 2, 3, 1).reshape(-1, channels)
    boxes = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    starts, extents = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    if not aligned:
        extents = extents.clamp_min(1)
    bins = extents / extents.new_tensor([output_size[1], output_size[0]])
    counts = torch.full_like(bins, sampling_ratio) if sampling_ratio > 0 else bins.ceil().clamp_min(0)
    if not len(rois):
        return 0 * features.sum() + features.new_zeros((0, channels, *output_size))
    most = counts.amax(1)
    groups, sizes = [], torch.zeros_like(most, dtype=torch.int64)
    for samples in most.unique().tolist():  # RoIs with as many samples together, so that few weights are zero
        chosen = (most == samples).nonzero().squeeze(1)
        x_cells, x_shares = _taps(starts[chosen, 0], bins[chosen, 0], counts[chosen, 0], output_size[1], width)
        y_cells, y_shares = _taps(starts[chosen, 1], bins[chosen, 1], counts[chosen, 1], output_size[0], height)
        rows = rois[chosen, 0].long().view(-1, 1, 1) * height + y_cells
        cells = (rows * width)[:, :, None, :, None] + x_cells[:, None, :, None, :]
        shares = y_shares[:, :, None, :, None] * x_shares[:, None, :, None, :]
        sizes[chosen] = cells[0, 0, 0].numel()  # 0 for RoIs without an extent: they have no samples
        groups.append((chosen, cells.flatten(3).flatten(1, 2), shares.flatten(3).flatten(1, 2)))
    offsets = sizes.repeat_interleave(output_size[0] * output_size[1]).cumsum(0).roll(1)
    total, offsets[0] = int(offsets[0]), 0
    all_cells, all_shares = offsets.new_empty(total), table.new_empty(total)
    for chosen, cells, shares in groups:
        places = offsets.view(len(rois), -1)[chosen].unsqueeze(2) + torch.arange(cells.shape[2], device=rois.device)
        all_cells[places], all_shares[places] = cells, shares
    bags = F.embedding_bag(all_cells, table, offsets, mode="sum", per_sample_weights=all_shares)
    return bags.view(len(rois), *output_size, channels).permute(0, 3, 1, 2)


def _taps(start: Tensor, bin_size: Tensor, count: Tensor, bins: int, size: int) -> tuple[Tensor, Tensor]:
    """Cells (N, bins, 2 * samples) that the samples of each bin of one axis lie between, and the share of each.

    Args:
        start: of each RoI (N,), in cells.
        bin_size: of each RoI (N,), in cells.
        count: samples a bin (N,).
        bins: of the axis.
        size: cells of the axis.
    """
    index = torch.arange(int(count.max()), dtype=start.dtype, device=start.device)
    within_bin = (index + 0.5) / count.clamp_min(1).unsqueeze(1)
    bin_index = torch.arange(bins, dtype=start.dtype, device=start.device)
    position = start.view(-1, 1, 1) + bin_size.view(-1, 1, 1) * (bin_index.view(1, -1, 1) + within_bin.unsqueeze(1))
    counted = (position >= -1) & (position <= size) & (index < count.unsqueeze(1)).unsqueeze(1)
    position = position.clamp(0, size - 1)
    low = position.floor()
    high_share = position - low
    share = counted / count.clamp_min(1).view(-1, 1, 1)
    cells = torch.cat([low.long(), (low.long() + 1).clamp_max(size - 1)], 2)
    return cells, torch.cat([share * (1 - high_share), share * high_share], 2)


@cache
def _torchvision_kernel(device: str) -> Callable[..., Any] | None:
    """torchvision's operator, or None where it is missing, was built for another torch or not for this device type.

    Only trying tells: a torchvision for the CPU loads beside a torch for CUDA and fails at the first call.
    """
    try:
        importlib.import_module("torchvision")
        kernel: Callable[..., Any] = torch.ops.torchvision.roi_align
        kernel(torch.zeros(1, 1, 2, 2, device=device), torch.zeros(1, 5, device=device), 1.0, 1, 1, 1, True)
    except (ImportError, AttributeError, RuntimeError, ValueError):
        return None
    return kernel
