"""mmcv's deformable convolutions on torchvision's kernel where it runs, in plain torch elsewhere.

A deformable convolution reads, for each point of its kernel, not the cell under that point but the bilinear value at an
offset from it (Dai et al. 2017, Deformable Convolutional Networks, section 2.1); a modulated one also multiplies that
value by a mask (Zhu et al. 2019, Deformable ConvNets v2, section 3.2). One cell or more outside, samples are zero.

In plain torch the cells are the rows of a table and every sample is a bag of four embeddings: exact at whole cells too,
where the derivative by an offset is the one to the right, as in mmcv, and differentiable by autograd.

The functions that return nothing have the signatures of mmcv's compiled ones, out-arguments included.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from cskd_train.mm.plain_ops import at_least_float32, torchvision_loads


@dataclass(frozen=True)
class Sampling:
    """Where a kernel lies, rows before columns, and how channels are grouped.

    Attributes:
        groups: of the convolution.
        deform_groups: of the input's channels; each has offsets and a mask of its own.
    """

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int = 1
    deform_groups: int = 1


@dataclass(frozen=True)
class Operands:
    """What a deformable convolution takes.

    Attributes:
        features: (B, C, H, W).
        weight: (O, C / groups, kernel rows, kernel columns).
        offset: (B, deform_groups * points * 2, rows, columns), in cells: y and x of each point of the kernel.
        mask: (B, deform_groups * points, rows, columns).
        bias: (O,).
    """

    features: Tensor
    weight: Tensor
    offset: Tensor
    mask: Tensor
    bias: Tensor

    @classmethod
    def unmodulated(cls, features: Tensor, weight: Tensor, offset: Tensor) -> Operands:
        """Without a mask and a bias."""
        return cls(features, weight, offset, torch.ones_like(offset[:, ::2]), weight.new_zeros(len(weight)))

    def in_float32(self) -> Operands:
        """In float32 at least: half precision has no room for coordinates of a few hundred cells with a fraction."""
        return Operands(*(at_least_float32(getattr(self, field.name)) for field in fields(self)))

    def of(self, images: slice) -> Operands:
        """Those of some of the images."""
        return replace(self, features=self.features[images], offset=self.offset[images], mask=self.mask[images])


@cache
def torchvision_deforms(device: str) -> bool:
    """Whether torchvision's deformable convolution serves on a type of device.

    On a processor it does not: plain torch takes a quarter of its time there (kernels of 3 x 3 on 256 channels).
    """
    if device == "cpu" or not torchvision_loads():
        return False
    operands = Operands.unmodulated(*(torch.zeros(1, channels, 1, 1, device=device) for channels in (1, 1, 2)))
    try:
        _torchvision_deform_conv(operands, Sampling((1, 1), (0, 0), (1, 1)))
    except (AttributeError, RuntimeError):  # no such operator; no kernel for this device
        return False
    return True


def deform_conv(operands: Operands, sampling: Sampling) -> Tensor:
    """The convolved maps (B, O, rows, columns)."""
    operands = replace(operands, offset=_readable_offset(operands, sampling))
    if torchvision_deforms(operands.features.device.type):
        return _torchvision_deform_conv(operands, sampling)
    return torch.cat([gathered_deform_conv(operands.of(image), sampling) for image in _images(operands)])


def add_gradients(operands: Operands, sampling: Sampling, grad_output: Tensor, to: Mapping[str, Tensor]) -> None:
    """Add to the tensors `to` the gradients of the operands that they are named after."""
    for images in _images(operands):
        part = operands.of(images)
        leaves = {name: getattr(part, name).detach().requires_grad_() for name in to}
        with torch.enable_grad():
            output = deform_conv(replace(part, **leaves), sampling)
        found = torch.autograd.grad(output, list(leaves.values()), grad_output[images].to(output.dtype))
        for (name, total), gradient in zip(to.items(), found, strict=True):
            total = total if name in ("weight", "bias") else total[images]
            total += gradient


def _images(operands: Operands) -> list[slice]:
    """All at once, or, where samples are gathered, one by one: those of one image are as many as mmcv holds."""
    if torchvision_deforms(operands.features.device.type):
        return [slice(None)]
    return [slice(image, image + 1) for image in range(len(operands.features))]


_FAR = -1e6  # cells: outside of every map


def _readable_offset(operands: Operands, sampling: Sampling) -> Tensor:
    """The offset, with samples that mmcv does not read far outside, where they are zero and have no gradient.

    At a whole cell outside, torchvision has a gradient; infinite offsets give it NaN, and at NaN it reads anywhere.
    """
    height, width = operands.features.shape[2:]
    y, x = positions(operands, sampling).unbind(3)
    read = (y > -1) & (y < height) & (x > -1) & (x < width)
    offset = operands.offset.unflatten(1, (sampling.deform_groups, -1, 2))
    return torch.where(read.unsqueeze(3), offset, _FAR).flatten(1, 3)


def positions(operands: Operands, sampling: Sampling) -> Tensor:
    """(B, deform_groups, points, 2, rows, columns): where each point of the kernel reads, y and x, in cells."""
    offset = operands.offset.unflatten(1, (sampling.deform_groups, -1, 2))
    kernel = operands.weight.shape[2:]

    def undeformed(axis: int) -> Tensor:
        """(points of the axis, outputs along the axis)"""
        outputs = torch.arange(offset.shape[4 + axis], device=offset.device) * sampling.stride[axis]
        points = torch.arange(kernel[axis], device=offset.device) * sampling.dilation[axis]
        return (points.unsqueeze(1) + outputs - sampling.padding[axis]).to(offset.dtype)

    y = undeformed(0).repeat_interleave(kernel[1], 0).unsqueeze(2)
    x = undeformed(1).repeat(kernel[0], 1).unsqueeze(1)
    return offset + torch.stack(torch.broadcast_tensors(y, x), 1)


def _torchvision_deform_conv(operands: Operands, sampling: Sampling) -> Tensor:
    output: Tensor = torch.ops.torchvision.deform_conv2d(
        operands.features,
        operands.weight,
        operands.offset,
        operands.mask,
        operands.bias,
        *sampling.stride,
        *sampling.padding,
        *sampling.dilation,
        sampling.groups,
        sampling.deform_groups,
        True,
    )
    return output


def gathered_deform_conv(operands: Operands, sampling: Sampling) -> Tensor:
    """`deform_conv` of one image in plain torch: samples gathered as bags of embeddings, then a matrix product."""
    groups, deform_groups = sampling.groups, sampling.deform_groups
    height, width = operands.features.shape[2:]
    outputs, (rows, columns) = len(operands.weight), operands.offset.shape[2:]
    y, x = positions(operands, sampling)[0].unbind(2)
    cells, shares = _corners(y, x, height, width)
    shares = shares * operands.mask[0].unflatten(0, (deform_groups, -1)).unsqueeze(-1)

    # Channels in blocks that share offsets and filters: samples come in the order in which the product takes them.
    blocks = math.lcm(groups, deform_groups)

    def by_block(corners: Tensor) -> Tensor:
        """(deform_groups, points, rows, columns, 4) to (groups, rows * columns, blocks a group, points, 4)."""
        repeated = corners.repeat_interleave(blocks // deform_groups, 0)
        return repeated.unflatten(0, (groups, -1)).permute(0, 3, 4, 1, 2, 5).flatten(1, 2)

    table = operands.features[0].unflatten(0, (blocks, -1)).flatten(2).transpose(1, 2)
    begin = torch.arange(blocks, device=cells.device).view(groups, 1, -1, 1, 1) * (height * width)
    bags, bag_shares = (by_block(cells) + begin).reshape(-1, 4), by_block(shares).reshape(-1, 4)
    samples = F.embedding_bag(bags, table.flatten(0, 1), mode="sum", per_sample_weights=bag_shares)
    filters = operands.weight.reshape(groups, outputs // groups, blocks // groups, table.shape[2], -1)
    summed = samples.view(groups, rows * columns, -1) @ filters.permute(0, 2, 4, 3, 1).flatten(1, 3)
    return summed.transpose(1, 2).reshape(1, outputs, rows, columns) + operands.bias.view(-1, 1, 1)


def _corners(y: Tensor, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four cells (..., 4) around points (...), as indices into the map, and the share of each.

    Args:
        y: finite, as x is.
        x: as y.
        height: of the map.
        width: of the map.
    """
    cells, shares = [], []
    for row, row_share in _neighbours(y, height):
        for column, column_share in _neighbours(x, width):
            cells.append(row * width + column)
            shares.append(row_share * column_share)
    return torch.stack(cells, -1), torch.stack(shares, -1)


def _neighbours(position: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    low = position.detach().floor()
    beyond = position - low
    for cell, share in ((low, 1 - beyond), (low + 1, beyond)):
        yield cell.clamp(0, size - 1).long(), share * ((cell >= 0) & (cell < size))


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Write the convolved maps into `output`. `columns`, `ones` and `im2col_step` are mmcv's buffers: not needed."""
    sampling = Sampling((dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
    output.copy_(deform_conv(Operands.unmodulated(input, weight, offset).in_float32(), sampling))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Add the gradients of features and offsets to `grad_input` and `grad_offset`."""
    sampling = Sampling((dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
    operands = Operands.unmodulated(input, weight, offset).in_float32()
    add_gradients(operands, sampling, grad_output, {"features": grad_input, "offset": grad_offset})


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Add `scale` times the gradient of the weight to `grad_weight`."""
    sampling = Sampling((dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
    any_weight = torch.zeros_like(grad_weight)  # the convolution is linear in it
    operands = Operands.unmodulated(input, any_weight, offset).in_float32()
    add_gradients(operands, sampling, scale * grad_output, {"weight": grad_weight})


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Write the convolved maps into `output`. `columns` and `ones` are mmcv's buffers: not needed."""
    sampling = Sampling((stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), group, deformable_group)
    used = bias if with_bias else weight.new_zeros(len(weight))
    offset, mask = (_as_read(tensor, output.shape[2:]) for tensor in (offset, mask))
    output.copy_(deform_conv(Operands(input, weight, offset, mask, used).in_float32(), sampling))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Add the gradient of every operand to the tensor that is named after it."""
    sampling = Sampling((stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), group, deformable_group)
    size = grad_output.shape[2:]
    used = bias if with_bias else weight.new_zeros(len(weight))
    operands = Operands(input, weight, _as_read(offset, size), _as_read(mask, size), used)
    dense_offset, dense_mask = grad_offset.contiguous(), grad_mask.contiguous()
    to = {"offset": _as_read(dense_offset, size), "mask": _as_read(dense_mask, size)}
    to |= {"features": grad_input, "weight": grad_weight}
    if with_bias:
        to["bias"] = grad_bias
    add_gradients(operands.in_float32(), sampling, grad_output, to)
    grad_offset.copy_(dense_offset)
    grad_mask.copy_(dense_mask)


def _as_read(tensor: Tensor, size: torch.Size) -> Tensor:
    """An offset or a mask (B, n, rows, columns) as mmcv's modulated convolution reads it for an output of some size.

    It does not ask whether they have the output's size, but reads the memory of each image from its beginning as if
    they had. DyHead depends on it: it applies the offsets of one level to the next one, half as large.
    """
    if tensor.shape[2:] == size:
        return tensor
    return tensor.flatten(1)[:, : tensor.shape[1] * size.numel()].unflatten(1, (-1, *size))
