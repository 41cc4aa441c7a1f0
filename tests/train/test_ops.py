"""mmcv's operators without compiled extensions, against slow and obvious references."""

from __future__ import annotations

import math

import mmcv.ops
import pytest
import torch
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss
from torch import Tensor

from cskd_train import mm

pytestmark = pytest.mark.skipif(
    mm.ops.native_extension().serves, reason="a native mmcv-full serves here, not the operators under test"
)

# forward and gradient of values of order 1
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}

# image, x1, y1, x2, y2 in units of twice a cell: inside, over three borders, smaller than a cell, outside, everything
ROIS = [
    [0, 2.0, 3.0, 9.0, 11.0],
    [1, -3.0, 4.0, 25.0, 30.0],
    [0, 5.25, 6.5, 5.75, 7.0],
    [1, 40.0, 40.0, 60.0, 60.0],
    [0, 0.0, 0.0, 22.0, 18.0],
]


def sampled_roi_align(
    features: Tensor, rois: Tensor, size: tuple[int, int], scale: float, ratio: int, aligned: bool
) -> Tensor:
    """RoIAlign one sample at a time, as Mask R-CNN's section 3 tells it."""
    pooled = []
    for image, *corners in rois.tolist():
        x1, y1, x2, y2 = (corner * scale - (0.5 if aligned else 0) for corner in corners)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1), max(height, 1)
        bin_h, bin_w = height / size[0], width / size[1]
        samples_y = ratio or math.ceil(bin_h)
        samples_x = ratio or math.ceil(bin_w)
        bins = []
        for row in range(size[0]):
            for column in range(size[1]):
                values = [
                    bilinear(
                        features[int(image)],
                        y1 + (row + (i + 0.5) / samples_y) * bin_h,
                        x1 + (column + (j + 0.5) / samples_x) * bin_w,
                    )
                    for i in range(samples_y)
                    for j in range(samples_x)
                ]
                bins.append(torch.stack(values).mean(dim=0))
        pooled.append(torch.stack(bins, dim=1).view(-1, *size))
    return torch.stack(pooled)


def bilinear(feature: Tensor, y: float, x: float) -> Tensor:
    """The value (C,) at a point of a map (C, H, W); beyond one cell outside it is zero."""
    height, width = feature.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return feature[:, 0, 0] * 0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    return (feature[:, top, left] * (1 - across) + feature[:, top, right] * across) * (1 - down) + (
        feature[:, bottom, left] * (1 - across) + feature[:, bottom, right] * across
    ) * down


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_roi_align_equals_sampling_point_by_point_forward_and_backward(
    dtype: torch.dtype, sampling_ratio: int, aligned: bool
) -> None:
    torch.manual_seed(0)
    features = torch.rand(2, 3, 9, 11).to(dtype).requires_grad_()
    rois = torch.tensor(ROIS)
    weight = torch.rand(len(ROIS), 3, 3, 2).to(dtype)
    exact = features.detach().double().requires_grad_()
    expected = sampled_roi_align(exact, rois, (3, 2), 0.5, sampling_ratio, aligned)
    (expected * weight).sum().backward()

    layer = mmcv.ops.RoIAlign((3, 2), 0.5, sampling_ratio, aligned=aligned)
    pooled = layer(features, rois.to(dtype))
    (pooled * weight).sum().backward()

    assert pooled.dtype == features.grad.dtype == dtype
    torch.testing.assert_close(pooled.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    torch.testing.assert_close(features.grad.double(), exact.grad, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_gradient_of_roi_align_is_its_numerical_derivative(sampling_ratio: int, aligned: bool) -> None:
    features = torch.rand(2, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 1.0, 1.0, 7.0, 6.0], [1, -2.0, 0.0, 4.0, 9.0]], dtype=torch.float64)

    assert torch.autograd.gradcheck(
        lambda x: mmcv.ops.roi_align(x, rois, 2, 0.5, sampling_ratio, "avg", aligned), features
    )


def test_roi_align_of_channels_last_features_equals_that_of_contiguous_ones() -> None:
    features = torch.rand(2, 4, 9, 11)
    layer = mmcv.ops.RoIAlign(2, 0.5, 2)

    torch.testing.assert_close(
        layer(features.to(memory_format=torch.channels_last), torch.tensor(ROIS)), layer(features, torch.tensor(ROIS))
    )


def test_roi_align_without_any_roi_is_empty_and_passes_a_zero_gradient() -> None:
    features = torch.rand(1, 2, 4, 4, requires_grad=True)

    pooled = mmcv.ops.RoIAlign(3, 1.0, 0)(features, torch.zeros(0, 5))
    pooled.sum().backward()

    assert pooled.shape == (0, 2, 3, 3)
    assert features.grad.abs().sum() == 0


def test_roi_align_keeps_float32_under_autocast() -> None:
    features, rois = torch.rand(2, 3, 9, 11), torch.tensor(ROIS)
    layer = mmcv.ops.RoIAlign(2, 0.5, 2)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = layer(features, rois)

    assert torch.equal(under_autocast, layer(features, rois))


def greedy_nms(boxes: list[list[float]], scores: list[float], threshold: float, offset: int) -> list[int]:
    """Non-maximum suppression as its name says: take the best, drop what overlaps it, again."""
    left = sorted(range(len(scores)), key=lambda i: -scores[i])
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [i for i in left if not iou(boxes[best], boxes[i], offset) > threshold]
    return kept


def iou(a: list[float], b: list[float], offset: int) -> float:
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
    area_a, area_b = ((c[2] - c[0] + offset) * (c[3] - c[1] + offset) for c in (a, b))
    union = area_a + area_b - width * height
    return width * height / union if union else math.nan


def random_boxes(count: int, spread: float) -> Tensor:
    corner = torch.rand(count, 2, dtype=torch.float64) * spread
    return torch.cat([corner, corner + 1 + torch.rand(count, 2, dtype=torch.float64) * 30], dim=1)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("count", "spread"), [(1, 10.0), (60, 20.0), (400, 60.0), (400, 600.0)])
def test_nms_keeps_what_greedy_suppression_keeps(count: int, spread: float, threshold: float, offset: int) -> None:
    torch.manual_seed(count)
    boxes, scores = random_boxes(count, spread), torch.rand(count, dtype=torch.float64)

    dets, kept = mmcv.ops.nms(boxes, scores, threshold, offset=offset)

    assert kept.tolist() == greedy_nms(boxes.tolist(), scores.tolist(), threshold, offset)
    assert torch.equal(dets, torch.cat([boxes[kept], scores[kept, None]], dim=1))


def test_nms_resolves_a_long_chain_of_overlaps_in_order() -> None:
    # Each box overlaps only its neighbours, so every second one survives: the deepest dependence there is.
    start = torch.arange(300.0)
    boxes = torch.stack([start, torch.zeros(300), start + 2, torch.ones(300)], dim=1)

    kept = mmcv.ops.nms(boxes, torch.linspace(1, 0, 300), 0.2)[1]

    assert kept.tolist() == list(range(0, 300, 2))


def test_nms_takes_equal_scores_in_the_order_given() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]])

    assert mmcv.ops.nms(boxes, torch.ones(3), 0.5)[1].tolist() == [0, 2]


def test_nms_keeps_boxes_without_area_and_takes_none_at_all() -> None:
    empty = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 5]])

    assert mmcv.ops.nms(empty, torch.tensor([0.9, 0.8]), 0.5)[1].tolist() == [0, 1]
    assert mmcv.ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)[1].tolist() == []


def test_nms_of_half_precision_boxes_is_that_of_the_same_boxes_in_float32() -> None:
    torch.manual_seed(0)
    boxes, scores = random_boxes(200, 60).half(), torch.rand(200).half()

    assert torch.equal(mmcv.ops.nms(boxes, scores, 0.5)[1], mmcv.ops.nms(boxes.float(), scores.float(), 0.5)[1])


def test_mmcv_honours_score_threshold_and_number_of_boxes() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]])
    scores = torch.tensor([0.1, 0.9, 0.5, 0.7])

    assert mmcv.ops.nms(boxes, scores, 0.5, score_threshold=0.3)[1].tolist() == [1, 3, 2]
    assert mmcv.ops.nms(boxes, scores, 0.5, max_num=2)[1].tolist() == [1, 3]


@pytest.mark.parametrize("split_thr", [10000, 10])
def test_batched_nms_suppresses_within_a_class_only(split_thr: int) -> None:
    torch.manual_seed(0)
    boxes, scores, classes = random_boxes(150, 40).float(), torch.rand(150), torch.randint(0, 3, (150,))

    dets, kept = mmcv.ops.batched_nms(
        boxes, scores, classes, {"type": "nms", "iou_threshold": 0.5, "split_thr": split_thr}
    )

    expected = []
    for index in range(3):
        members = (classes == index).nonzero().squeeze(1)
        expected += members[greedy_nms(boxes[members].tolist(), scores[members].tolist(), 0.5, 0)].tolist()
    assert sorted(kept.tolist()) == sorted(expected)
    assert torch.equal(dets[:, 4], scores[kept])
    assert (dets[:-1, 4] >= dets[1:, 4]).all()


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (1.5, 0.6), (0.5, 0.3)])
def test_sigmoid_focal_loss_equals_mmdets_own_formula_forward_and_backward(gamma: float, alpha: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(12, 4, dtype=torch.float64, requires_grad=True)
    classes = torch.randint(0, 5, (12,))  # 4 is the background
    twin = logits.detach().clone().requires_grad_()
    one_hot = torch.nn.functional.one_hot(classes, 5)[:, :4]
    expected = py_sigmoid_focal_loss(twin, one_hot, gamma=gamma, alpha=alpha, reduction="none")
    weight = torch.rand(12, 4, dtype=torch.float64)
    (expected * weight).sum().backward()

    loss = mmcv.ops.sigmoid_focal_loss(logits, classes, gamma, alpha, None, "none")
    (loss * weight).sum().backward()

    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(logits.grad, twin.grad, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_sigmoid_focal_loss_of_extreme_logits_is_finite_with_a_finite_gradient(gamma: float) -> None:
    logits = torch.tensor([[100.0, -100.0], [-100.0, 100.0]], requires_grad=True)

    loss = mmcv.ops.sigmoid_focal_loss(logits, torch.tensor([0, 0]), gamma, 0.25, None, "none")
    loss.sum().backward()

    torch.testing.assert_close(loss, torch.tensor([[0.0, 0.0], [25.0, 75.0]]))
    torch.testing.assert_close(logits.grad, torch.tensor([[0.0, 0.0], [-0.25, 0.75]]))


def test_sigmoid_focal_loss_multiplies_by_the_weight_of_the_true_class() -> None:
    logits, classes = torch.randn(3, 2), torch.tensor([0, 1, 1])

    plain = mmcv.ops.sigmoid_focal_loss(logits, classes, 2.0, 0.25, None, "none")
    weighted = mmcv.ops.sigmoid_focal_loss(logits, classes, 2.0, 0.25, torch.tensor([2.0, 3.0]), "none")

    torch.testing.assert_close(weighted, plain * torch.tensor([[2.0], [3.0], [3.0]]))
