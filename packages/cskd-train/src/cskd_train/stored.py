"""What earlier versions stored, in the words of this one: `distill` blocks in configs, names of loss terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

Value = TypeVar("Value")

_TERMS = {
    "pyramid": "pyramid_full",
    "pyramid_fg": "pyramid_foreground",
    "pyramid_bg": "pyramid_background",
    "roi_assistant_cls": "assistant_roi_cls",
    "roi_assistant_reg": "assistant_roi_reg",
}
_REGION, _REGIONS = "region", ("foreground", "background")


def current_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config that a run stored (`config.json`, a checkpoint): both regions of a pyramid had one weight."""
    block = config.get("distill")
    pyramid = block.get("pyramid") if isinstance(block, Mapping) else None
    if not isinstance(block, Mapping) or not isinstance(pyramid, Mapping) or _REGION not in pyramid:
        return dict(config)
    weights = {key: value for key, value in pyramid.items() if key != _REGION}
    weights |= {key: pyramid[_REGION] for key in _REGIONS if key not in pyramid}
    return {**config, "distill": {**block, "pyramid": weights}}


def current_terms(values: Mapping[str, Value]) -> dict[str, Value]:
    """Values of loss terms, with or without the `loss_` in their names."""
    return {_current(name): value for name, value in values.items()}


def _current(name: str) -> str:
    term = name.removeprefix("loss_")
    return name[: len(name) - len(term)] + _TERMS.get(term, term)
