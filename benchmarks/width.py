"""The same detector with more or fewer channels."""

from __future__ import annotations

from typing import Any

_CHANNELS = ("base_channels", "in_channels", "out_channels", "feat_channels", "fc_out_channels")


def scaled(model: Any, factor: float) -> Any:
    """The `model` config of a detector with `factor` times the channels everywhere; its depth is as it was."""
    model = {**model, "backbone": {"base_channels": 64, **model["backbone"]}}  # 64: mmdet's default
    return _scaled(model, factor)


def _scaled(value: Any, factor: float, is_count: bool = False) -> Any:
    if isinstance(value, dict):
        return {key: _scaled(item, factor, key in _CHANNELS) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_scaled(item, factor, is_count) for item in value)
    return round(value * factor) if is_count else value
