"""Variables of config files: `${...}` is replaced by what it refers to, and one that changes nothing is found out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmcv import Config

from cskd_train.errors import TrainError
from cskd_train.files.chain import ConfigFile, read_chain
from cskd_train.files.locate import shipped_by
from cskd_train.files.reading import read_config
from cskd_train.files.vocabulary import TABLES

_REFERENCE = re.compile(r"\$\{([a-zA-Z\d_.]*)\}")


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


def standing(value: Any, config: Mapping[str, Any], path: str) -> tuple[str, Any]:
    """Where the value of a text that is one reference stands, and the value as it stands there; any other as it is."""
    while isinstance(value, str) and (whole := _REFERENCE.fullmatch(value)):
        path, value = whole[1], _look_up(whole[1], config, path, (), whole=False)
    return path, value


def _look_up(key: str, config: Mapping[str, Any], path: str, under: tuple[str, ...], whole: bool = True) -> Any:
    if key in under:
        raise TrainError(f"config key {path}: ${{{key}}} refers to itself")
    value: Any = config
    for name in key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise TrainError(f"config key {path}: ${{{key}}} refers to a key that the config has not")
        value = value[name]
    return _resolve(value, config, path, (*under, key)) if whole else value


def _as_text(value: Any, reference: str, path: str) -> str:
    if isinstance(value, (Mapping, list, tuple)):
        raise TrainError(f"config key {path}: {reference} is {value!r}, which cannot be a part of a text")
    return str(value)


SETTINGS = frozenset(TABLES[""])


def unread_names(cfg: Config) -> list[str]:
    """Notes on top-level names of mmdet's own files that are no setting, that nothing reads and that are not in effect.

    A name is in effect where a setting has its value: a config that a program has written out (a run's config.json)
    holds its variables beside the settings made from them. There, a name that resembles no setting is noted too. A
    config without a file, out of a checkpoint, is not looked at.

    Raises:
        TrainError: such a name in a file of the user's: names the file and what to set.
    """
    chain = read_chain(Path(cfg.filename)) if cfg.filename else None
    files = [*chain.all_files()] if chain else []
    referred = frozenset[str]().union(*(file.referred | file.of_base for file in files))
    notes = []
    for name in cfg:
        setters = [file for file in files if name in file.assigned]
        if name in SETTINGS or name in referred or not setters or name in setters[0].read:
            continue
        if next(copies(cfg, name, cfg[name]), None) is not None:
            continue
        message = f"{name} in {setters[0].path}: {_advice(cfg, name, setters)}"
        written_out = len(files) == 1 and not files[0].read and "did you mean" not in message
        if not written_out and shipped_by(setters[0].path) is None:
            raise TrainError(message)
        notes.append(message)
    return notes


def _advice(cfg: Config, name: str, setters: list[ConfigFile]) -> str:
    for base in setters[1:]:
        places = list(copies(cfg, name, read_config(base.path)[name])) if name in base.read else []
        if places:
            return f"it changes nothing, for {base.path.name} has copied its own value. Set {listed(places)}"
    near = difflib.get_close_matches(name, SETTINGS, n=1)
    return f"it is no setting, and nothing reads it; {f'did you mean {near[0]}?' if near else 'take it out'}"


def listed(places: list[str]) -> str:
    """The first of the places, for a message."""
    return ", ".join(places[:4]) + (f" and {len(places) - 4} more" if len(places) > 4 else "")


def copies(config: Mapping[str, Any] | Config, name: str, value: Any) -> Iterator[str]:
    """The dotted keys of the settings that have the value of a variable: whole, within a dict, or as the folder of a
    path; a number, a boolean or None counts only where the last key is the variable's name."""
    return _copies({key: item for key, item in config.items() if key in SETTINGS}, name, value, ())


def _copies(node: Any, name: str, value: Any, path: tuple[str, ...]) -> Iterator[str]:
    if isinstance(value, Mapping):
        found = bool(value) and isinstance(node, Mapping) and value.items() <= node.items()
    elif isinstance(value, str) and isinstance(node, str):
        found = bool(value) and (node == value or node.startswith(value.rstrip("/") + "/"))
    elif isinstance(value, (list, tuple)):
        found = bool(value) and node == value
    else:
        found = path[-1:] == (name,) and node == value
    if found:
        yield ".".join(path)
        return
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, item in items:
        yield from _copies(item, name, value, (*path, str(key)))
