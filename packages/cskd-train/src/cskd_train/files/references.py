"""`${key.sub}` in the values of a config: the value of another key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cskd_train.errors import TrainError

_REFERENCE = re.compile(r"\$\{([a-zA-Z\d_.]*)\}")


def referred_names(text: str) -> frozenset[str]:
    """The top-level keys that the references in a text name."""
    return frozenset(key.partition(".")[0] for key in _REFERENCE.findall(text))


def resolve_references(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with every `${key.sub}` replaced, as mmdet's `replace_cfg_vals` does.

    A text that is one reference becomes the value, of any kind; references inside of a text become text. Unlike in
    mmdet, a value that is referred to may hold references of its own.

    Raises:
        TrainError: a reference to a key that is missing, to itself, or inside of a text to a dict or a list.
    """
    return {key: _resolve(value, config, str(key), ()) for key, value in config.items()}


def _resolve(value: Any, config: Mapping[str, Any], path: str, under: tuple[str, ...]) -> Any:
    """`value`, which stands at `path`, resolved; `under` are the references that led to it."""
    if isinstance(value, Mapping):
        return {key: _resolve(item, config, f"{path}.{key}", under) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_resolve(item, config, f"{path}.{place}", under) for place, item in enumerate(value))
    if not isinstance(value, str):
        return value
    if whole := _REFERENCE.fullmatch(value):
        return _look_up(whole[1], config, path, under)
    return _REFERENCE.sub(lambda found: _as_text(_look_up(found[1], config, path, under), found[0], path), value)


def _look_up(key: str, config: Mapping[str, Any], path: str, under: tuple[str, ...]) -> Any:
    if key in under:
        raise TrainError(f"config key {path}: ${{{key}}} refers to itself")
    value: Any = config
    for name in key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise TrainError(f"config key {path}: ${{{key}}} refers to a key that the config has not")
        value = value[name]
    return _resolve(value, config, path, (*under, key))


def _as_text(value: Any, reference: str, path: str) -> str:
    if isinstance(value, (Mapping, list, tuple)):
        raise TrainError(f"config key {path}: {reference} is {value!r}, which cannot be a part of a text")
    return str(value)
