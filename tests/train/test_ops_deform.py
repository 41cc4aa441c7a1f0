"""mmcv's deformable convolutions without compiled extensions, against a loop over samples."""

from __future__ import annotations

import math

import mmcv.ops
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cskd_train import mm
from cskd_train.mm import plain_deform

pytestmark = pytest.mark.skipif(
    mm.ops.native_extension().serves, reason="a native mmcv-full serves here, not the operators under test"
)

NAMES = ("features", "offset", "mask", "weight", "bias")


def sample(feature: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The bilinear value (C,) at a point of a map (C, H, W) that is zero outside; none at all a cell outside."""
    height, width = feature.shape[1:]
    if not (-1 < y < height and -1 < x < width):
        return feature[:, 0, 0] * 0
    top, left = math.floor(y.item()), math.floor(x.item())
    value = torch.zeros_like(feature[:, 0, 0])
    for row, row_share in ((top, top + 1 - y), (top + 1, y - top)):
        for column, column_share in ((left, left + 1 - x), (left + 1, x - left)):
            if 0 <= row < height and 0 <= column < width:
                value = value + row_share * column_share * feature[:, row, column]
    return value


def loop(features, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups) -> Tensor:
    """Equation 2 of Zhu et al. 2019 as it stands: each output a sum over the kernel's points."""
    kernel_rows, kernel_columns = weight.shape[2:]
    points = [(i, j) for i in range(kernel_rows) for j in range(kernel_columns)]
    width = features.shape[1] // deform_groups
    images = []
    for image, image_offset, image_mask in zip(features, offset, mask, strict=True):
        cells = []
        for row in range(offset.shape[2]):
            for column in range(offset.shape[3]):
                samples = []
                for number, (i, j) in enumerate(points):
                    parts = []
                    for group in range(deform_groups):
                        at = group * len(points) + number
                        dy, dx = image_offset[2 * at : 2 * at + 2, row, column]
                        value = sample(
                            image[group * width : (group + 1) * width],
                            row * stride[0] - padding[0] + i * dilation[0] + dy,
                            column * stride[1] - padding[1] + j * dilation[1] + dx,
                        )
                        parts.append(value * image_mask[at, row, column])
                    samples.append(torch.cat(parts))
                columns = torch.stack(samples, 1).chunk(groups)  # (C / groups, points) each
                filters = weight.flatten(2).chunk(groups)
                cells.append(torch.cat([(f * c).sum((1, 2)) for f, c in zip(filters, columns, strict=True)]) + bias)
        images.append(torch.stack(cells, 1).view(-1, *offset.shape[2:]))
    return torch.stack(images)


def operands(size, kernel, settings, spread, dtype=torch.float64, channels=4, outputs=8) -> list[Tensor]:
    """Features, offset, mask, weight and bias; offsets of `spread` cells, a third of them whole ones."""
    stride, padding, dilation, groups, deform_groups = settings
    rows, columns = (
        (size[axis] + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1
        for axis in (0, 1)
    )
    points = deform_groups * kernel[0] * kernel[1]
    offset = torch.randn(2, 2 * points, rows, columns, dtype=dtype) * spread
    offset = torch.where(torch.rand_like(offset) < 1 / 3, offset.round(), offset)
    return [
        torch.randn(2, channels, *size, dtype=dtype),
        offset,
        torch.rand(2, points, rows, columns, dtype=dtype),
        torch.randn(outputs, channels // groups, *kernel, dtype=dtype),
        torch.randn(outputs, dtype=dtype),
    ]


def with_gradients(function, values, weights=None) -> list[Tensor]:
    """What a function of tensors gives, and the gradient of each of them."""
    leaves = [value.detach().clone().requires_grad_() for value in values]
    output = function(*leaves)
    torch.manual_seed(1)
    (output * torch.randn(output.shape, dtype=torch.float64).to(output.dtype)).sum().backward()
    # A loop that reads no sample does not use the offset.
    return [output, *(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)]


def assert_close(found, expected, names, **tolerance) -> None:
    for name, one, other in zip(names, found, expected, strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


pairs = st.tuples(st.integers(1, 2), st.integers(1, 2))
SETTINGS = st.tuples(
    pairs,
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    pairs,
    st.sampled_from((1, 2, 4)),
    st.sampled_from((1, 2, 4)),
)


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(3, 5), st.integers(3, 5)),
    kernel=st.sampled_from(((1, 1), (1, 2), (2, 2), (2, 1))),
    settings=SETTINGS,
    spread=st.sampled_from((0.0, 0.5, 4.0)),
    seed=st.integers(0, 9),
)
def test_deformable_convolution_equals_a_loop_over_its_samples_forward_and_backward(
    size, kernel, settings, spread, seed
) -> None:
    torch.manual_seed(seed)
    features, offset, mask, weight, bias = operands(size, kernel, settings, spread)
    ones, zeros = torch.ones_like(mask), torch.zeros_like(bias)

    modulated = with_gradients(
        lambda f, o, m, w, b: mmcv.ops.modulated_deform_conv2d(f, o, m, w, b, *settings),
        [features, offset, mask, weight, bias],
    )
    plain = with_gradients(lambda f, o, w: mmcv.ops.deform_conv2d(f, o, w, *settings), [features, offset, weight])

    expected = with_gradients(lambda *all_of: loop(*all_of, *settings), [features, offset, mask, weight, bias])
    assert_close(modulated, expected, ("output", *NAMES), atol=1e-11, rtol=1e-11)
    expected = with_gradients(lambda f, o, w: loop(f, o, ones, w, zeros, *settings), [features, offset, weight])
    assert_close(plain, expected, ("output", "features", "offset", "weight"), atol=1e-11, rtol=1e-11)


def test_a_kernel_of_three_rows_and_columns_equals_the_loop() -> None:
    torch.manual_seed(0)
    settings = ((1, 1), (1, 1), (1, 1), 2, 1)
    values = operands((4, 5), (3, 3), settings, 1.0)

    found = with_gradients(lambda *all_of: mmcv.ops.modulated_deform_conv2d(*all_of, *settings), values)

    expected = with_gradients(lambda *all_of: loop(*all_of, *settings), values)
    assert_close(found, expected, ("output", *NAMES), atol=1e-11, rtol=1e-11)


def test_without_offsets_it_is_the_convolution_and_the_offsets_gradient_is_the_one_to_the_right() -> None:
    torch.manual_seed(0)
    features, weight = torch.randn(2, 6, 7, 9, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    offset = torch.zeros(2, 18, 4, 5, dtype=torch.float64, requires_grad=True)

    output = mmcv.ops.deform_conv2d(features, offset, weight, 2, 1, 1, 2)
    output.sum().backward()

    torch.testing.assert_close(output, F.conv2d(features, weight, None, 2, 1, 1, 2), atol=1e-12, rtol=1e-12)
    # The sample of the kernel's middle lies on a whole cell: what one row further down adds.
    summed = weight.view(2, 2, 3, 3, 3).sum(1).flatten(0, 1)[:, 1, 1]  # over the outputs that read a channel
    cell, below = features[0, :, 2, 4], features[0, :, 3, 4]
    torch.testing.assert_close(offset.grad[0, 8, 1, 2], ((below - cell) * summed).sum(), atol=1e-12, rtol=1e-12)
    # A corner of the kernel in the image's corner lies a whole cell outside: no gradient there.
    assert offset.grad[0, :2, 0, 0].tolist() == [0, 0]


@pytest.mark.parametrize("far", [1e3, 1e30, math.inf, math.nan])
def test_offsets_that_lead_far_out_of_the_image_read_zero(far: float) -> None:
    features = torch.rand(1, 2, 4, 4, requires_grad=True)
    offset = torch.full((1, 2, 4, 4), far, requires_grad=True)
    weight = torch.rand(3, 2, 1, 1, requires_grad=True)

    output = mmcv.ops.deform_conv2d(features, offset, weight)
    output.sum().backward()

    for tensor in (output, features.grad, offset.grad, weight.grad):
        assert not tensor.any()


def test_gradients_are_numerical_derivatives() -> None:
    torch.manual_seed(0)
    settings = ((1, 2), (1, 0), (2, 1), 2, 2)
    features, offset, mask, weight, bias = operands((3, 3), (2, 1), settings, 0.0, outputs=4)
    offset = torch.rand_like(offset) * 0.8 + 0.1  # away from whole cells, where there is no derivative
    leaves = [value.requires_grad_() for value in (features, offset, mask, weight, bias)]

    assert torch.autograd.gradcheck(lambda *all_of: mmcv.ops.modulated_deform_conv2d(*all_of, *settings), leaves)
    assert torch.autograd.gradcheck(
        lambda f, o, w: mmcv.ops.deform_conv2d(f, o, w, *settings), [features, offset, weight]
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-2), (torch.bfloat16, 1e-1)])
def test_lower_precision_rounds_what_goes_in_and_out_alone(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    settings = ((1, 1), (1, 1), (1, 1), 1, 2)
    rounded = [value.to(dtype) for value in operands((5, 6), (3, 3), settings, 0.7)]

    found = with_gradients(lambda *all_of: mmcv.ops.modulated_deform_conv2d(*all_of, *settings), rounded)

    exact = [value.double() for value in rounded]
    expected = with_gradients(lambda *all_of: mmcv.ops.modulated_deform_conv2d(*all_of, *settings), exact)
    assert {tensor.dtype for tensor in found} == {dtype}
    assert_close([tensor.double() for tensor in found], expected, ("output", *NAMES), atol=tolerance, rtol=tolerance)


def test_a_map_in_channels_last_and_a_sliced_weight_give_the_same() -> None:
    torch.manual_seed(0)
    settings = ((1, 1), (1, 1), (1, 1), 2, 2)
    features, offset, mask, weight, bias = operands((5, 6), (3, 3), settings, 0.7)
    strided = torch.stack([weight, weight], -1)[..., 0]

    expected = mmcv.ops.modulated_deform_conv2d(features, offset, mask, weight, bias, *settings)

    last = features.to(memory_format=torch.channels_last)
    torch.testing.assert_close(mmcv.ops.modulated_deform_conv2d(last, offset, mask, strided, bias, *settings), expected)


def test_an_offset_and_a_mask_of_a_larger_map_are_read_as_memory() -> None:
    # As mmcv's compiled operator does, and as mmdet's DyHead has it: offsets of one level for the next one.
    torch.manual_seed(0)
    settings = ((1, 1), (1, 1), (1, 1), 1, 2)
    features, offset, mask, weight, bias = operands((3, 4), (3, 3), settings, 0.7)
    large_offset, large_mask = (
        torch.randn(2, 36, 6, 8, dtype=torch.float64),
        torch.rand(2, 18, 6, 8, dtype=torch.float64),
    )
    for large, small in ((large_offset, offset), (large_mask, mask)):
        large.view(2, -1)[:, : small[0].numel()] = small.flatten(1)

    found = with_gradients(
        lambda *all_of: mmcv.ops.modulated_deform_conv2d(*all_of, *settings),
        [features, large_offset, large_mask, weight, bias],
    )

    expected = with_gradients(
        lambda *all_of: mmcv.ops.modulated_deform_conv2d(*all_of, *settings), [features, offset, mask, weight, bias]
    )
    for index in (2, 3):
        assert not found[index].view(2, -1)[:, expected[index][0].numel() :].any()
        found[index] = found[index].view(2, -1)[:, : expected[index][0].numel()].view_as(expected[index])
    assert_close(found, expected, ("output", *NAMES), atol=1e-12, rtol=1e-12)


def test_the_packs_of_mmcv_begin_as_plain_convolutions_and_learn_their_offsets() -> None:
    torch.manual_seed(0)
    features = torch.randn(1, 4, 6, 6)
    for pack, factor in ((mmcv.ops.DeformConv2dPack, 1.0), (mmcv.ops.ModulatedDeformConv2dPack, 0.5)):
        layer = pack(4, 4, 3, padding=1)

        output = layer(features)
        output.square().sum().backward()

        bias = getattr(layer, "bias", None)
        torch.testing.assert_close(
            output, factor * F.conv2d(features, layer.weight, None, 1, 1) + (0 if bias is None else bias.view(-1, 1, 1))
        )
        assert layer.conv_offset.weight.grad.abs().sum() > 0


def test_the_gradient_of_the_weight_is_added_as_many_times_as_it_is_asked_for() -> None:
    generator = torch.Generator().manual_seed(2)
    features, offset, grad_output = (torch.randn(1, n, 3, 5, generator=generator) for n in (2, 2, 4))
    found = []
    for scale in (1.0, -2.5):
        gradient = torch.ones(4, 2, 1, 1)
        plain_deform.deform_conv_backward_parameters(
            features,
            offset,
            grad_output,
            gradient,
            torch.empty(0),
            torch.empty(0),
            1,
            1,
            1,
            1,
            0,
            0,
            1,
            1,
            1,
            1,
            scale,
            1,
        )
        found.append(gradient - 1)
    assert found[0].abs().min() > 0
    torch.testing.assert_close(found[1], -2.5 * found[0])
