"""Build a stock mmdet detector from its config."""

from __future__ import annotations

from typing import Any

from mmcv import ConfigDict
from mmdet import models
from torch import nn

from cskd_train.errors import TrainError
from cskd_train.mm.pretrained import barred_mmcv_loader


def build_detector(model: Any) -> nn.Module:
    """The detector of a `model` config, its weights not initialised.

    Raises:
        TrainError: the model cannot be built, or reads a file of weights while it is (see `barred_mmcv_loader`).
    """
    try:
        with barred_mmcv_loader():
            detector: nn.Module = models.build_detector(model)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise TrainError(f"the config's model cannot be built: {error}") from error
    return detector


def build_without_pretrained(model: Any) -> nn.Module:
    """The detector of a `model` config, ready for a checkpoint: nothing is fetched that it would overwrite.

    Raises:
        TrainError: the model cannot be built.
    """
    return build_detector(ConfigDict(_strip(model)))


def _strip(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strip(item) for key, item in value.items() if not _asks_for_pretrained(key, item)}
    return [_strip(item) for item in value] if isinstance(value, list) else value


def _asks_for_pretrained(key: str, value: Any) -> bool:
    return key == "pretrained" or (key == "init_cfg" and isinstance(value, dict) and value.get("type") == "Pretrained")
