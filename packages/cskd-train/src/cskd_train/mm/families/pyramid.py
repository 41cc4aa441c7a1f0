"""Any detector with a neck: its pyramid is compared, and nothing of its heads (docs/algorithm.md 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from cskd_core.errors import TapError
from cskd_core.family import Observation, PyramidSpec
from cskd_core.taps import Recording
from cskd_train.mm.families.base import DetectorFamily

SIDE = 512
"""Pixels of the image on which a pyramid is seen: a multiple of every stride that detectors have."""


class PyramidFamily(DetectorFamily):
    """A detector whose features come out of a neck, whatever its heads are: `extract_feat` gives one map a level.

    Args:
        level_reduce: of the student's own family.
    """

    exported = {"AutoAssign": ("AutoAssignHead",), "FasterRCNN": ("ConvFCBBoxHead",)}  # noqa: RUF012

    def __init__(self, student: Any, level_reduce: Literal["sum", "mean"] = "sum") -> None:
        super().__init__(student)
        self.level_reduce = level_reduce  # type: ignore[misc]

    def check(self, detector: Any) -> None:
        self.check_pyramid(detector)

    @staticmethod
    def check_pyramid(detector: Any) -> None:
        """Refuse what has no pyramid.

        Raises:
            TapError: it is no mmdet detector, or it has no neck.
        """
        name = type(detector).__name__
        if not callable(getattr(detector, "extract_feat", None)):
            raise TapError(f"a {name} cannot be distilled: it is no mmdet detector with extract_feat")
        if getattr(detector, "neck", None) is None:
            raise TapError(f"a {name} without a neck cannot be distilled: there is no feature pyramid to compare")

    def pyramid(self, detector: Any) -> PyramidSpec:
        """As the neck gives it on an image of zeros: necks do not all say their channels, nor heads their strides."""
        levels = _levels(detector)
        return PyramidSpec(
            channels=tuple(level.shape[1] for level in levels),
            strides=tuple(round(SIDE / level.shape[2]) for level in levels),
        )

    def taps(self, detector: Any) -> Mapping[str, str]:
        return {"pyramid": "neck"}

    def infer(self, detector: Any, images: Tensor) -> None:
        detector.extract_feat(images)

    def read(self, detector: Any, recording: Recording) -> Observation:
        return Observation(pyramid=recording.last("pyramid"), towers={}, predictions={})


def _levels(detector: Any) -> list[Tensor]:
    weight = next(detector.parameters())
    training = [module for module in detector.modules() if module.training]
    detector.eval()
    try:
        with torch.no_grad():
            levels = detector.extract_feat(weight.new_zeros(1, 3, SIDE, SIDE))
    finally:
        for module in training:
            module.training = True
    if not isinstance(levels, (list, tuple)) or not all(isinstance(level, Tensor) for level in levels):
        raise TapError(f"a {type(detector).__name__} cannot be distilled: its neck does not give one map a level")
    return list(levels)
