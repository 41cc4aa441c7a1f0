"""Configs: read from a file, changed from the command line, stored in a checkpoint as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmcv import Config

from cskd_train.errors import TrainError
from cskd_train.files.chain import read_chain
from cskd_train.files.json_form import config_from_json, config_to_json
from cskd_train.files.locate import resolve_config_path
from cskd_train.files.once import follow_classes, set_once
from cskd_train.files.overrides import apply_overrides
from cskd_train.files.reading import read_config
from cskd_train.files.variables import resolve_references

__all__ = [
    "config_from_data",
    "config_to_data",
    "config_to_json",
    "load_config",
    "refuse_lost_tuples",
]


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a Python, YAML or JSON config with its `_base_` files, apply `overrides`, then resolve `${key}` values.

    Args:
        path: a file, or `mmdet::FOLDER/FILE.py` for one that the mmdet package ships, `cskd::_base_/FILE.py` for one of
            this package; a `_base_` takes these names too.
        overrides: dotted key -> value, as `--set` gives them.

    Raises:
        TrainError: a file that is missing, has a syntax error, or fails as it runs; a base that is missing; an unknown
            key in `overrides`; a `${key}` that refers to nothing.
    """
    file, overrides = resolve_config_path(path), dict(overrides or {})
    config = read_config(file)
    data, rest = config_from_json(config_to_data(config)), overrides
    chain = read_chain(file)
    if chain is not None:
        data, rest = set_once(
            data, chain, overrides, lambda bound: config_from_json(config_to_data(read_config(file, bound)))
        )
    apply_overrides(data, rest)
    data = resolve_references(data)
    follow_classes(data, chain, overrides)
    _leave_out(data)
    return Config(data, cfg_text=config.text, filename=str(file))


def _leave_out(data: dict[str, Any]) -> None:
    """Take out images without labels that are set to None: runs are compared by what their configs have."""
    splits = data.get("data")
    if isinstance(splits, dict) and splits.get("unlabeled", {}) is None:
        del splits["unlabeled"]


def config_to_data(config: Config | Mapping[str, Any]) -> dict[str, Any]:
    """The config as plain dicts, lists, tuples, text, numbers, booleans and None.

    Raises:
        TrainError: a value that is code (a class, a function) or another object, which no checkpoint may hold.
    """
    return {key: _plain(value, str(key)) for key, value in config.items()}


def _plain(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple, range)):  # mmdet writes a range as gpu_ids
        items = (_plain(item, f"{path}.{place}") for place, item in enumerate(value))
        return tuple(items) if isinstance(value, tuple) else list(items)
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise TrainError(
        f"config key {path} holds {type(value).__name__} {value!r}; expected plain data "
        "(dict, list, tuple, text, number, boolean, None)"
    )


def refuse_lost_tuples(cfg: Config) -> None:
    """Refuse a config with the size of images in a list: mmdet, which wants a tuple, refuses it without a word.

    Raises:
        TrainError: names the first such size, and what to write.
    """
    place, size = next(_lists_of_size(dict(cfg.items()), ""), ("", None))
    if size is None:
        return
    way = f"write ({', '.join(map(str, size))})"
    if str(cfg.filename).endswith(".json"):
        way = (
            "JSON has none. A run of an earlier version has written this file, perhaps: give the config that the run "
            "was made from (the command is in result.json beside it)"
        )
    raise TrainError(f"config {cfg.filename}: {place} = {size} is a list, mmdet wants a tuple; {way}")


def _lists_of_size(value: Any, path: str) -> Iterator[tuple[str, list[Any]]]:
    """The dotted key and the value of each `img_scale` that is a list of numbers, or holds one."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        where = f"{path}.{key}" if path else str(key)
        if key == "img_scale" and isinstance(item, list):
            yield from ((where, one) for one in (item, *item) if isinstance(one, list) and isinstance(one[0], int))
        else:
            yield from _lists_of_size(item, where)


def config_from_data(data: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Config:
    """The config that `config_to_data` turned into plain data, with `overrides` applied. Nothing in it is executed.

    Raises:
        TrainError: an unknown key in `overrides`.
    """
    plain = config_to_data(data)
    apply_overrides(plain, overrides or {})
    return Config(plain)
