"""Configs: read from a file, changed from the command line, stored in a checkpoint as plain data."""

from __future__ import annotations

import difflib
import importlib.util
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmcv import Config

from cskd_train.errors import TrainError
from cskd_train.files.overrides import apply_overrides
from cskd_train.files.variables import resolve_references

MMDET_PREFIX = "mmdet::"


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a Python, YAML or JSON config with its `_base_` files, apply `overrides`, then resolve `${key}` values.

    Args:
        path: a file, or `mmdet::FOLDER/FILE.py` for one that the mmdet package ships.
        overrides: dotted key -> value, as `--set` gives them.

    Raises:
        TrainError: a file that is missing, has a syntax error, or fails as it runs; a base that is missing; an unknown
            key in `overrides`; a `${key}` that refers to nothing.
    """
    file = resolve_config_path(path)
    search_path = list(sys.path)
    try:
        config = Config.fromfile(str(file))
    except Exception as error:
        message = _why_unreadable(error)
        _drop_temporary_files(error)
        raise TrainError(f"config {file}{message}") from error
    finally:
        sys.path[:] = search_path  # mmcv leaves its temporary folder there when a config fails
    data = config_to_data(config)
    apply_overrides(data, overrides or {})
    return Config(resolve_references(data), cfg_text=config.text, filename=str(file))


def resolve_config_path(path: str | Path) -> Path:
    """The file of a config name.

    Raises:
        TrainError: there is no such file; for `mmdet::` names the message offers near ones.
    """
    name = str(path)
    if not name.startswith(MMDET_PREFIX):
        file = Path(name).expanduser()
        if not file.is_file():
            raise TrainError(f"config {name}: no such file (looked in {Path.cwd()})")
        if file.suffix not in (".py", ".json", ".yaml", ".yml"):
            raise TrainError(f"config {name}: expected a .py, .yaml or .json file; to evaluate a checkpoint use `test`")
        return file
    root = shipped_configs()
    file = root / name.removeprefix(MMDET_PREFIX)
    if file.is_file():
        return file
    shipped = {shipped.name: shipped for shipped in root.glob("*/*.py") if not shipped.parent.name.startswith("_")}
    near = difflib.get_close_matches(file.name, shipped, n=3)
    offers = ", ".join(f"{MMDET_PREFIX}{shipped[match].relative_to(root)}" for match in near)
    raise TrainError(f"config {name}: mmdet ships no such file{f'; near ones: {offers}' if offers else ''}")


def shipped_configs() -> Path:
    """The folder of the configs that the mmdet package ships.

    Raises:
        TrainError: it ships none.
    """
    spec = importlib.util.find_spec("mmdet")
    for location in (spec.submodule_search_locations or []) if spec else []:
        if (root := Path(location) / ".mim" / "configs").is_dir():
            return root
    raise TrainError("the installed mmdet ships no configs (mmdet/.mim/configs); install the mmdet 2.28.2 wheel")


def _why_unreadable(error: Exception) -> str:
    """What is wrong with a config that mmcv could not read, and in which line."""
    if isinstance(error, FileNotFoundError):
        return f": a file it builds on (_base_) is missing: {error}"
    if isinstance(error, SyntaxError):
        return f": {error}"
    # mmcv runs a copy of the config from a temporary folder; the line is the same.
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == "<module>"]
    in_config = frames and frames[-1].filename.startswith(tempfile.gettempdir())
    return f"{f', line {frames[-1].lineno}' if in_config else ''}: {type(error).__name__}: {error}"


def _drop_temporary_files(error: Exception) -> None:
    """Close the temporary file that mmcv leaves in the frames of a config that failed.

    Its folder is gone by then, so that closing it complains, on the user's screen and whenever the garbage collector
    comes to it. Here it is closed at once, and in silence.
    """
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        traceback.clear_frames(error.__traceback__)
    finally:
        sys.unraisablehook = hook


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


def config_from_data(data: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Config:
    """The config that `config_to_data` turned into plain data, with `overrides` applied. Nothing in it is executed.

    Raises:
        TrainError: an unknown key in `overrides`.
    """
    plain = config_to_data(data)
    apply_overrides(plain, overrides or {})
    return Config(plain)
