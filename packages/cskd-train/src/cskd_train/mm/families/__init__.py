"""The detector families that can be distilled, by the name of their mmdet detector class."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from cskd_core.family import Family
from cskd_train.errors import TrainError
from cskd_train.mm.families.retinanet import RetinaNetFamily

FAMILIES: dict[str, Callable[[], Family]] = {"RetinaNet": RetinaNetFamily}


def family_of(detector: nn.Module) -> Family:
    """The family of an mmdet detector.

    Raises:
        TrainError: its class is none of the supported ones.
    """
    name = type(detector).__name__
    if name not in FAMILIES:
        raise TrainError(f"a {name} cannot be distilled yet; supported detectors: {', '.join(FAMILIES)}")
    return FAMILIES[name]()
