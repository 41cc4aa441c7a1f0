"""Which values of an activation INT8 represents: those between which rounding to 256 steps costs the least.

Of a range, the whole of it or a part, the values inside are off by up to half a step, and those outside by how far they
lie outside. The range with the least sum of squares over the calibration images is taken (Nagel et al. 2021, "A White
Paper on Neural Network Quantization", 3.1, https://arxiv.org/abs/2106.08295).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_BINS = 4096  # of a histogram; half of them for values below zero
_STEPS = 255
_SHARES = np.linspace(1.0, 0.2, 41)  # parts of the whole range that are tried


class Histogram:
    """How often an activation takes which values, over images that come one by one.

    Bins have the width of a power of two, so that two of them become one where a value lies beyond the last.
    """

    def __init__(self) -> None:
        self.lowest = self.highest = 0.0  # INT8 has a zero in any case
        self._width = 0.0
        self._counts = np.zeros(_BINS, dtype=np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count the values of an image; an array of no values is none."""
        if not values.size:
            return
        flat = values.ravel()
        self.lowest, self.highest = min(self.lowest, float(flat.min())), max(self.highest, float(flat.max()))
        self._widen(max(-self.lowest, self.highest))
        if self._width:
            places = np.floor(flat / np.float32(self._width)).astype(np.int32) + _BINS // 2
            self._counts += np.bincount(places, minlength=_BINS)

    def _widen(self, largest: float) -> None:
        if not self._width and largest > 0:
            self._width = 2.0 ** np.ceil(np.log2(largest / (_BINS // 2)))
        while largest >= self._width * (_BINS // 2):
            if not largest:
                return
            half = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts[:] = 0
            self._counts[_BINS // 4 : 3 * _BINS // 4] = half
            self._width *= 2

    def fitted(self, symmetric: bool) -> tuple[float, float]:
        """The least and the largest value of the range that costs the least.

        Args:
            symmetric: the range is as wide below zero as above.
        """
        seen = np.flatnonzero(self._counts)
        centres, counts = (seen - _BINS // 2 + 0.5) * self._width, self._counts[seen]

        def cost(low: float, high: float) -> float:
            step = (high - low) / _STEPS
            if not step > 0:
                return float(counts @ centres**2)
            rounded = np.rint(centres.clip(low, high) / step) * step
            return float(counts @ (rounded - centres) ** 2)

        if symmetric:
            largest = max(-self.lowest, self.highest)
            largest = _best(lambda share: cost(-share * largest, share * largest)) * largest
            return -largest, largest
        low, high = self.lowest, self.highest
        for _ in range(2):  # each end with the other where it is by now
            high = self.highest * _best(lambda share: cost(low, self.highest * share))  # noqa: B023
            low = self.lowest * _best(lambda share: cost(self.lowest * share, high))  # noqa: B023
        return low, high


def _best(cost: Callable[[float], float]) -> float:
    return float(min(_SHARES, key=cost))
