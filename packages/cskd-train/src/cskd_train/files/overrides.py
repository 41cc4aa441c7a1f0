"""`--set a.b.c=value`: changes to a config from the command line, with unknown keys refused."""

from __future__ import annotations

import ast
import copy
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from cskd_train.errors import TrainError
from cskd_train.files.chain import referred_names
from cskd_train.files.variables import SETTINGS, copies, listed, standing
from cskd_train.files.vocabulary import TABLES

# Keyword arguments of a class that is named elsewhere than under `type`: the class itself refuses an unknown one.
_KEYWORD_DICTS = ("lr_config", "momentum_config", "distill")
_OF_ALL_LOADERS = {
    "data.samples_per_gpu": ("train_dataloader",),
    "data.workers_per_gpu": ("train_dataloader", "val_dataloader", "test_dataloader"),
}
_WORDS = {"true": True, "false": False, "none": None, "null": None}


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """Read `a.b=value` pairs; a value is a Python literal where it reads as one, text otherwise.

    Raises:
        TrainError: a pair without `=`, or with an empty key.
    """
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise TrainError(f"--set {assignment!r}: expected KEY=VALUE, for example --set data.samples_per_gpu=4")
        overrides[key.strip()] = _parse_value(text.strip())
    return overrides


def _parse_value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def apply_overrides(config: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """Set each dotted key of `overrides` in `config`, in place; a number in a key is a place in a list.

    A new top-level `data_root` also replaces the old one wherever a path under `data` begins with it, since mmdet's
    configs copy the root into every split. `data.samples_per_gpu` and `data.workers_per_gpu` also replace what the
    blocks of single loaders say of them.

    Raises:
        TrainError: a key that neither the config nor a run knows, the message names near ones; a variable of the config
            file, the message names the settings that were made from it.
    """
    for key, value in overrides.items():
        if key == "data_root":
            old_root = config.get("data_root")
            if isinstance(old_root, str) and isinstance(config.get("data"), dict):
                config["data"] = move_root(config["data"], old_root, str(value))
        else:
            _refuse_variable(config, key)
        assign(config, key, value)
        _drop_own_of_loaders(config, key, overrides)


def _drop_own_of_loaders(config: Mapping[str, Any], key: str, overrides: Mapping[str, Any]) -> None:
    """A size of batches or a number of workers for all loaders replaces that in the block of one, but not one given."""
    name = key.removeprefix("data.")
    for loader in _OF_ALL_LOADERS.get(key, ()):
        block = config["data"].get(loader)
        given = any(one == f"data.{loader}" or one == f"data.{loader}.{name}" for one in overrides)
        if isinstance(block, dict) and not given:
            block.pop(name, None)


def _refuse_variable(config: Mapping[str, Any], key: str) -> None:
    """Refuse a variable that settings have been made from: they would stay as they are."""
    name = key.partition(".")[0]
    if name in SETTINGS or name not in config or name in referred_names(repr(config)):
        return
    places = list(copies(config, name, config[name]))
    more = f"; set {listed(places)}" if places else ""
    raise TrainError(f"--set {key}: {name} is a variable of the config file, which has been read already{more}")


def assign(config: dict[str, Any], key: str, value: Any, free: bool = False) -> None:
    """Set one dotted key; `free` takes any new key.

    A reference on the way (`data.train.pipeline = "${train_pipeline}"`) becomes a copy of its own of what it refers to.
    """
    *parents, leaf = key.split(".")
    holder: Any = config
    for depth, name in enumerate(parents):
        path = ".".join(parents[:depth])
        if isinstance(holder, dict) and holder.get(name) is None and name in _optional(path):
            holder[name] = {}
        found = _child(holder, name, path, key)
        _, value_of = standing(found, config, f"{path}.{name}")
        if value_of is not found:
            found = holder[int(name) if isinstance(holder, list) else name] = copy.deepcopy(value_of)
        holder = found
    path = ".".join(parents)
    if isinstance(holder, list):
        holder[_index(holder, leaf, path, key)] = value
    elif isinstance(holder, dict):
        # A dict with `type` holds the keyword arguments of that class, which refuses an unknown one when it is built.
        keywords = "type" in holder or path.split(".")[0] in _KEYWORD_DICTS
        if leaf not in holder and leaf not in _optional(path) and not keywords and not free:
            raise _unknown(holder, leaf, path, key)
        holder[leaf] = value
    else:
        raise TrainError(f"--set {key}: {path} is {holder!r}, not a group of settings")


def _optional(path: str) -> set[str]:
    """The keys that a run obeys in a block, which the config may have left out.

    Another one is a slip of the pen where the config does not have it, because mmdet would silently ignore it.
    """
    return {key for key, rule in TABLES.get(path, {}).items() if rule.obeyed}


def _child(holder: Any, name: str, path: str, key: str) -> Any:
    if isinstance(holder, dict):
        if name not in holder:
            raise _unknown(holder, name, path, key)
        return holder[name]
    if isinstance(holder, list):
        return holder[_index(holder, name, path, key)]
    raise TrainError(f"--set {key}: {path} is {holder!r}, not a group of settings")


def _index(holder: list[Any], name: str, path: str, key: str) -> int:
    if not name.isdigit() or int(name) >= len(holder):
        raise TrainError(f"--set {key}: {path} is a list of {len(holder)}: give a place from 0 to {len(holder) - 1}")
    return int(name)


def _unknown(holder: Mapping[str, Any], name: str, path: str, key: str) -> TrainError:
    known = sorted({*map(str, holder), *_optional(path)})
    near = difflib.get_close_matches(name, known, n=3) or known
    if (rule := TABLES.get(path, {}).get(name)) and rule.say and not rule.obeyed:
        return TrainError(f"--set {key}: {rule.say}")
    where = f"{path} has" if path else "the config has"
    return TrainError(f"--set {key}: {where} no key {name!r}; did you mean {', '.join(near)}?")


def move_root(value: Any, old: str, new: str) -> Any:
    """`value` with every text that is `old`, or a path that begins with it, moved to `new`."""
    if isinstance(value, dict):
        return {key: move_root(item, old, new) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(move_root(item, old, new) for item in value)
    if not isinstance(value, str) or not old:
        return value
    if value.rstrip("/") == old.rstrip("/"):
        return new
    root = old.rstrip("/") + "/"
    if value.startswith(root):
        return f"{new.rstrip('/')}/{value[len(root) :]}"
    return value


def assignments(overrides: Mapping[str, Any]) -> list[str]:
    """Settings as `--set` takes them."""
    return [word for key, value in overrides.items() for word in ("--set", f"{key}={_literal(value)!r}")]


def _literal(value: Any) -> Any:
    """The value in Python's own types, which are written as `parse_overrides` reads them: NumPy's floats are not."""
    if isinstance(value, Mapping):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, range)):
        return tuple(map(_literal, value)) if isinstance(value, tuple) else [*map(_literal, value)]
    own = next((kind for kind in (bool, int, float, str) if isinstance(value, kind)), None)
    return value if own is None else own(value)
