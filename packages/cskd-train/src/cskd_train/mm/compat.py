"""mmdet 2 and mmcv 1 on today's torch: one function a change, each with its reason and the versions it concerns."""

from __future__ import annotations

import functools
import importlib
import logging
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np

from cskd_train.mm.ops import torchvision_loads


@functools.cache
def apply() -> None:
    """Make every change that mmdet needs to be imported, once. mmcv's operators (`ops.install`) have to be there."""
    import_runner_without_torchvision()
    quiet_initialisation()
    keep_a_pixel()
    restore_numpy_aliases()


@functools.cache
def apply_to_mmdet() -> None:
    """Make every change to mmdet itself, once."""
    make_point_flags_without_a_gpu()


def import_runner_without_torchvision() -> None:
    """`mmcv.runner` imports torchvision without a condition, for the addresses of its pretrained weights.

    Concerns every torch for which torchvision has no build: there it is missing, or it raises "operator
    torchvision::nms does not exist". mmcv keeps a stand-in that leads it to its own list of addresses, so that
    `torchvision://resnet18` still loads. Nobody else sees the stand-in: it leaves `sys.modules` at once.
    """
    if torchvision_loads():
        importlib.import_module("mmcv.runner")
        return
    stand_in = ModuleType("torchvision")
    stand_in.__spec__ = ModuleSpec("torchvision", loader=None)
    # mmcv goes by the version: 0.13 is the one where it reads its own list and then looks into `models` for more.
    stand_in.__dict__.update(__version__="0.13.0", models=ModuleType("torchvision.models"))
    sys.modules["torchvision"] = stand_in
    try:
        importlib.import_module("mmcv.runner")
    finally:
        del sys.modules["torchvision"]


def quiet_initialisation() -> None:
    """`init_weights` reports every parameter, hundreds of lines, to a logger "mmcv" that it sets up to print.

    Concerns every mmcv 1.x. mmcv sets a logger up once only; here it is done first, for warnings and errors.
    """
    from mmcv.utils import get_logger

    get_logger("mmcv", log_level=logging.WARNING)


def keep_a_pixel() -> None:
    """`rescale_size` gives the short side of a long thin image no pixel, and OpenCV refuses to make such an image.

    Concerns every mmcv 1.x. One pixel is left, as `cskd_deploy.detect.preprocess` leaves it.
    """
    from mmcv.image import geometric

    stock = geometric._scale_size

    @functools.wraps(stock)
    def scale_size(size: tuple[int, int], scale: Any) -> tuple[int, int]:
        width, height = stock(size, scale)
        return max(width, 1), max(height, 1)

    geometric._scale_size = scale_size


def make_point_flags_without_a_gpu() -> None:
    """RepPoints asks which points of a map are inside the image without saying on which device, and gets them on a GPU.

    Concerns every mmdet 2.x: without a GPU RepPoints does not train. On the processor the flags serve tensors anywhere.
    """
    from mmdet.core.anchor.point_generator import MlvlPointGenerator

    stock = MlvlPointGenerator.valid_flags

    @functools.wraps(stock)
    def valid_flags(self: Any, featmap_sizes: Any, pad_shape: Any, device: Any = "cpu") -> Any:
        return stock(self, featmap_sizes, pad_shape, device)

    MlvlPointGenerator.valid_flags = valid_flags


def restore_numpy_aliases() -> None:
    """numpy 1.24 removed `np.int` and `np.float`, which corners of mmdet 2 and mmcv 1 still name."""
    for name, meaning in {"int": int, "float": float}.items():
        if name not in np.__dict__:
            setattr(np, name, meaning)
