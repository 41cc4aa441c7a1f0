"""The detector families that can be distilled, by the name of their mmdet detector class."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from cskd_core.family import Family
from cskd_train.errors import TrainError
from cskd_train.mm.families.faster_rcnn import FasterRCNNFamily
from cskd_train.mm.families.fcos import FCOSFamily
from cskd_train.mm.families.gfl import GFLFamily
from cskd_train.mm.families.retinanet import RetinaNetFamily

FAMILIES: dict[str, Callable[[nn.Module], Family]] = {
    "RetinaNet": lambda _: RetinaNetFamily(),
    "FCOS": FCOSFamily,
    "GFL": GFLFamily,
    "FasterRCNN": lambda _: FasterRCNNFamily(),
}


def family_of(student: nn.Module) -> Family:
    """The family of an mmdet detector, for distilling into it.

    Raises:
        TrainError: its class is none of the supported ones.
    """
    name = type(student).__name__
    if name not in FAMILIES:
        raise TrainError(f"a {name} cannot be distilled; supported detectors: {', '.join(FAMILIES)}")
    return FAMILIES[name](student)
