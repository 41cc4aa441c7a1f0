"""RoIAlign in plain torch against loops over bins and samples."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck

from cskd_core.errors import ShapeError
from cskd_core.roi_align import gathered_roi_align, roi_align

ROIS = torch.tensor(
    [
        [0, 1.2, 0.7, 5.9, 4.4],
        [1, 0.0, 0.0, 0.3, 0.2],
        [0, -2.0, -1.5, 9.5, 8.0],
        [1, 3.0, 2.0, 3.0, 2.0],
    ],
    dtype=torch.float64,
)


def slow_roi_align(features, rois, size, scale, ratio, aligned):
    """One bilinear sample at a time, as He et al. describe it."""
    _, channels, height, width = features.shape

    def sample(image, channel, y, x):
        if y < -1 or y > height or x < -1 or x > width:
            return 0.0
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
        ly, lx = y - y0, x - x0
        f = features[image, channel]
        return (1 - ly) * ((1 - lx) * f[y0, x0] + lx * f[y0, x1]) + ly * ((1 - lx) * f[y1, x0] + lx * f[y1, x1])

    out = torch.zeros(len(rois), channels, *size, dtype=features.dtype)
    for n, roi in enumerate(rois):
        x1, y1, x2, y2 = (float(v) * scale - (0.5 if aligned else 0) for v in roi[1:])
        w, h = x2 - x1, y2 - y1
        if not aligned:
            w, h = max(w, 1), max(h, 1)
        bin_h, bin_w = h / size[0], w / size[1]
        rows = ratio or math.ceil(bin_h)
        columns = ratio or math.ceil(bin_w)
        for c in range(channels):
            for i in range(size[0]):
                for j in range(size[1]):
                    total = 0.0
                    for iy in range(rows):
                        for ix in range(columns):
                            y = y1 + bin_h * (i + (iy + 0.5) / rows)
                            x = x1 + bin_w * (j + (ix + 0.5) / columns)
                            total = total + sample(int(roi[0]), c, y, x)
                    out[n, c, i, j] = total / max(rows * columns, 1)
    return out


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
@pytest.mark.parametrize(("size", "scale"), [((2, 3), 1.0), ((7, 7), 0.5)])
def test_forward_equals_loops_over_samples(size, scale, ratio, aligned):
    features = torch.randn(2, 2, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected = slow_roi_align(features, ROIS, size, scale, ratio, aligned)
    torch.testing.assert_close(gathered_roi_align(features, ROIS, size, scale, ratio, aligned), expected)
    torch.testing.assert_close(roi_align(features, ROIS, size, scale, ratio, aligned), expected)


@pytest.mark.parametrize("ratio", [0, 2])
def test_gradient_equals_finite_differences(ratio):
    features = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda f: gathered_roi_align(f, ROIS, (2, 2), 1.0, ratio, True), (features,))


def test_no_rois_give_an_empty_result():
    assert roi_align(torch.zeros(1, 4, 5, 5), torch.zeros(0, 5), 7).shape == (0, 4, 7, 7)


def test_shapes_are_checked():
    with pytest.raises(ShapeError, match=r"rois \(3, 4\): expected \(B, C, H, W\) and \(N, 5\)"):
        roi_align(torch.zeros(1, 4, 5, 5), torch.zeros(3, 4), 7)
