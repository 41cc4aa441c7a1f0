"""A config as JSON has it, which knows no tuples: mmdet tells them from lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cskd_train.stored import current_config

_TUPLES = "tuples_as_lists"


def config_to_json(data: Mapping[str, Any]) -> dict[str, Any]:
    """What `config_to_data` gave, for a JSON file that `load_config` reads as the same config.

    JSON has no tuples, and mmdet tells them from lists (`img_scale`): where they were stands in a key of its own.
    """
    return {**data, _TUPLES: list(_tuples(data, ""))}


def _tuples(value: Any, path: str) -> Iterator[str]:
    """The dotted keys of all tuples, each after what it holds."""
    items = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    )
    for key, item in items:
        yield from _tuples(item, f"{path}.{key}" if path else str(key))
    if isinstance(value, tuple):
        yield path


def config_from_json(data: dict[str, Any]) -> dict[str, Any]:
    """The config of a file that `config_to_json` made; any other as it is. What is no list any more stays as it is."""
    paths = data.pop(_TUPLES, None)
    if not isinstance(paths, list):
        return data
    for path in paths:
        *parents, last = str(path).split(".")
        holder: Any = data
        for key in parents:
            holder = _item(holder, key)
        if isinstance(found := _item(holder, last), list):
            holder[int(last) if isinstance(holder, list) else last] = tuple(found)
    return current_config(data)


def _item(holder: Any, key: str) -> Any:
    """What a dict or a list has at a key; None where it has nothing."""
    if isinstance(holder, list):
        return holder[int(key)] if key.isdecimal() and int(key) < len(holder) else None
    return holder.get(key) if isinstance(holder, dict) else None
