"""Variables of config files: `${...}` is replaced by what it refers to, and one that changes nothing is found out."""

from __future__ import annotations

import ast
import difflib
import io
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmcv
from mmcv import Config

from cskd_train.errors import TrainError
from cskd_train.files.vocabulary import TABLES

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


SETTINGS = frozenset(TABLES[""])
_OF_BASE = re.compile(r"\{\{\s*_base_\.(\w+)[\w.]*\s*\}\}")


@dataclass(frozen=True)
class _File:
    """One file of a config: the names that it sets, that its own expressions read, and that it refers to."""

    path: Path
    assigned: frozenset[str]
    read: frozenset[str]
    referred: frozenset[str]
    bases: tuple[str, ...]


def unread_names(cfg: Config) -> list[str]:
    """Notes on top-level names of mmdet's own files that are no setting, that nothing reads and that are not in effect.

    A name is in effect where a setting has its value: a config that a program has written out (a run's config.json)
    holds its variables beside the settings made from them. There, a name that resembles no setting is noted too. A
    config without a file, out of a checkpoint, is not looked at.

    Raises:
        TrainError: such a name in a file of the user's: names the file and what to set.
    """
    try:
        files = _files(Path(cfg.filename)) if cfg.filename else []
    except (OSError, ValueError):
        return []  # mmcv finds more than can be read here: a `_base_` that is computed
    referred = frozenset[str]().union(*(file.referred for file in files))
    notes = []
    for name in cfg:
        setters = [file for file in files if name in file.assigned]
        if name in SETTINGS or name in referred or not setters or name in setters[0].read:
            continue
        if next(copies(cfg, name, cfg[name]), None) is not None:
            continue
        message = f"{name} in {setters[0].path}: {_advice(cfg, name, setters)}"
        written_out = len(files) == 1 and not files[0].read and "did you mean" not in message
        if not written_out and ".mim/configs" not in setters[0].path.as_posix():
            raise TrainError(message)
        notes.append(message)
    return notes


def _advice(cfg: Config, name: str, setters: list[_File]) -> str:
    for base in setters[1:]:
        places = list(copies(cfg, name, Config.fromfile(str(base.path))[name])) if name in base.read else []
        if places:
            root = ", or give --set data_root=..., which moves every path" if name == "data_root" else ""
            return f"it changes nothing, for {base.path.name} has copied its own value. Set {listed(places)}{root}"
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


def _files(path: Path) -> list[_File]:
    """The file and its bases; where two set a name, the one whose value counts comes first."""
    text = path.read_text(encoding="utf-8")
    file = (_python_file if path.suffix == ".py" else _data_file)(path, text)
    below = [_files(Path(os.path.normpath(path.parent / base))) for base in file.bases]
    return [file, *(inner for files in below for inner in files)]


def _python_file(path: Path, text: str) -> _File:
    tree = ast.parse(text)
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    assigned = frozenset(node.id for node in names if isinstance(node.ctx, ast.Store))
    read = frozenset(node.id for node in names if isinstance(node.ctx, ast.Load))
    bases = None
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "_base_":
            bases = ast.literal_eval(node.value)
    return _File(path, assigned, read, _referred(text), _as_tuple(bases))


def _data_file(path: Path, text: str) -> _File:
    try:
        data = mmcv.load(io.StringIO(_OF_BASE.sub('"base"', text)), file_format=path.suffix[1:])
    except Exception as error:
        raise ValueError(f"{path}: {error}") from error
    return _File(path, frozenset(data), frozenset(), _referred(text), _as_tuple(data.get("_base_")))


def _referred(text: str) -> frozenset[str]:
    return referred_names(text) | frozenset(_OF_BASE.findall(text))


def _as_tuple(bases: Any) -> tuple[str, ...]:
    return (bases,) if isinstance(bases, str) else tuple(bases or ())
