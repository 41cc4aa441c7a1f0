"""The operators that single detectors of mmdet ask of mmcv, without compiled extensions, against slow references."""

from __future__ import annotations

import math

import mmcv.ops
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cskd_train import mm

from .test_ops import iou

pytestmark = pytest.mark.skipif(
    mm.ops.native_extension().serves, reason="a native mmcv-full serves here, not the operators under test"
)


def boxes_of(count: int, spread: float) -> Tensor:
    corner = torch.rand(count, 2) * spread
    return torch.cat([corner, corner + 1 + torch.rand(count, 2) * 30], dim=1)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
def test_soft_nms_lowers_scores_box_after_box(method: str, offset: int) -> None:
    torch.manual_seed(0)
    boxes, scores = boxes_of(60, 40), torch.rand(60)
    left = dict(enumerate(scores.tolist()))
    expected = []
    while left:
        best = max(left, key=left.__getitem__)
        expected.append((best, left.pop(best)))
        for other in list(left):
            overlap = iou(boxes[best].tolist(), boxes[other].tolist(), offset)
            left[other] *= {
                "naive": 0 if overlap >= 0.4 else 1,
                "linear": 1 - overlap if overlap >= 0.4 else 1,
                "gaussian": math.exp(-(overlap**2) / 0.5),
            }[method]
            if left[other] < 0.05:
                del left[other]

    dets, kept = mmcv.ops.soft_nms(boxes, scores, 0.4, 0.5, 0.05, method, offset)

    assert kept.tolist() == [index for index, _ in expected]
    assert 5 < len(kept) < 60
    assert torch.equal(dets[:, :4], boxes[kept])
    torch.testing.assert_close(dets[:, 4], torch.tensor([score for _, score in expected]))


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_soft_nms_of_boxes_without_area_and_of_none(method: str) -> None:
    empty = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 5]])

    dets, kept = mmcv.ops.soft_nms(empty, torch.tensor([0.5, 0.9]), method=method)

    assert kept.tolist() == [1, 0]
    torch.testing.assert_close(dets[:, 4], torch.tensor([0.9, 0.5]))
    assert mmcv.ops.soft_nms(torch.zeros(0, 4), torch.zeros(0), method=method)[1].tolist() == []


def test_nms_match_groups_each_kept_box_with_those_that_it_suppresses() -> None:
    torch.manual_seed(0)
    boxes, scores = boxes_of(50, 40), torch.rand(50)
    order, expected = scores.argsort(descending=True).tolist(), []
    while order:
        best, *order = order
        suppressed = [other for other in order if iou(boxes[best].tolist(), boxes[other].tolist(), 0) >= 0.3]
        order = [other for other in order if other not in suppressed]
        expected.append([best, *suppressed])

    groups = mmcv.ops.nms_match(torch.cat([boxes, scores.unsqueeze(1)], 1), 0.3)

    assert [group.tolist() for group in groups] == expected
    assert 1 < len(expected) < 50
    same = torch.tensor([[5.0, 5, 5, 5, 0.1], [1, 1, 3, 3, 0.9], [1, 1, 3, 3, 0.5]])
    assert [group.tolist() for group in mmcv.ops.nms_match(same, 1.0)] == [[1, 2], [0]]


def test_a_masked_convolution_is_the_convolution_where_the_mask_is_and_zero_elsewhere() -> None:
    torch.manual_seed(0)
    layer = mmcv.ops.MaskedConv2d(3, 5, (3, 1), padding=(1, 0))
    features, mask = torch.rand(1, 3, 6, 7), torch.rand(1, 6, 7) > 0.6

    with torch.no_grad():
        output = layer(features, mask)
        expected = F.conv2d(features, layer.weight, layer.bias, padding=(1, 0)) * mask

    torch.testing.assert_close(output, expected)
    assert 0 < mask.sum() < 42


def test_carafe_is_a_weighted_sum_of_the_cells_around_the_one_below_forward_and_backward() -> None:
    torch.manual_seed(0)
    kernel, groups, factor = 3, 2, 2
    features = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    masks = torch.rand(2, kernel**2 * groups, 6, 10, dtype=torch.float64, requires_grad=True)
    padded = F.pad(features, (1, 1, 1, 1))
    expected = torch.stack(
        [
            (
                padded[:, channel, row // factor :, column // factor :][:, :kernel, :kernel].flatten(1)
                * masks[:, channel // 2 * 9 : channel // 2 * 9 + 9, row, column]
            ).sum(1)
            for channel in range(4)
            for row in range(6)
            for column in range(10)
        ],
        1,
    ).view(2, 4, 6, 10)

    output = mmcv.ops.carafe(features, masks, kernel, groups, factor)

    weight = torch.randn_like(expected)
    torch.testing.assert_close(output, expected, atol=1e-12, rtol=1e-12)
    found = torch.autograd.grad((output * weight).sum(), (features, masks))
    for one, other in zip(found, torch.autograd.grad((expected * weight).sum(), (features, masks)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)
