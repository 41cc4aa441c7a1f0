"""The range that INT8 gives an activation: the one that costs the least, against all ranges of a grid on the values."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cskd_deploy.lower.int8 import Histogram


def cost(values: np.ndarray, low: float, high: float) -> float:
    """The mean square that rounding to 256 steps costs, by the values themselves."""
    step = (high - low) / 255
    return float(np.mean((np.rint(values.clip(low, high) / step) * step - values) ** 2))


def seen(*images: np.ndarray) -> Histogram:
    histogram = Histogram()
    for image in images:
        histogram.add(image.astype(np.float32))
    return histogram


@pytest.fixture(scope="module")
def heavy() -> np.ndarray:
    """Values of which two lie far out."""
    values = np.random.default_rng(0).standard_normal(200_000)
    values[[7, 100_007]] = 20, -12
    return values


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_no_range_of_a_grid_costs_less(rectified, symmetric, heavy):
    values = heavy.clip(0) if rectified else heavy
    low, high = seen(*np.array_split(values, 3)).fitted(symmetric)
    shares = np.linspace(0.1, 1, 19)
    if symmetric:
        assert low == -high
        tried = [cost(values, -share * 20, share * 20) for share in shares]
    else:
        assert (low == 0) == rectified
        lows = [values.min() * share for share in shares] if not rectified else [0.0]
        tried = [cost(values, one, 20 * share) for one, share in itertools.product(lows, shares)]
    assert cost(values, low, high) < 1.02 * min(tried)
    assert cost(values, low, high) < 0.95 * cost(values, -20 if symmetric else min(values.min(), 0), 20)


def test_what_has_no_tail_keeps_its_whole_range():
    values = np.random.default_rng(1).uniform(-1, 3, 20_000)
    low, high = seen(values).fitted(symmetric=False)
    assert (low, high) == pytest.approx((-1, 3), abs=0.1)


def test_images_one_by_one_count_as_all_at_once(heavy):
    small, large = heavy * 0.001, heavy * 1000  # the bins of the first are far too narrow for the second
    for images in ((small, large), (large, small)):
        histogram = seen(*images)
        assert histogram.fitted(False) == pytest.approx(seen(np.concatenate([small, large])).fitted(False), rel=1e-6)
        assert (histogram.lowest, histogram.highest) == pytest.approx((large.min(), large.max()))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="not finite"):
        seen(np.array([1.0, value, 2.0]))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], (0, 0)),
        ([0, 0, 0], (0, 0)),
        ([2, 2], (0, 2)),
        ([-4.0], (-4, 0)),
        ([64.0], (0, 64)),
        ([1e-30, 0], (0, 1e-30)),
    ],
)
def test_degenerate_values_have_a_range_that_holds_zero(values, expected):
    low, high = seen(np.array(values)).fitted(symmetric=False)
    assert low <= 0 <= high
    assert (low, high) == pytest.approx(expected, rel=0.01)
