"""A config file read by mmcv, which here knows names of shipped configs in `_base_`, and values that were set later."""

from __future__ import annotations

import ast
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmcv import Config

from cskd_train.errors import TrainError
from cskd_train.files.locate import base_path

Bound = Mapping[Path, Mapping[str, Any]]
"""File -> top-level name -> the value that the file sets it to, in place of its own."""

_lock = threading.RLock()


def read_config(file: Path, bound: Bound | None = None) -> Config:
    """What a config file and its bases say, `${key}` values unresolved.

    Args:
        bound: values for the variables of some of the files: what they make from a variable follows.

    Raises:
        TrainError: a file that has a syntax error, or fails as it runs; a base that is missing.
    """
    search_path = list(sys.path)
    try:
        with _extended(bound or {}):
            return Config.fromfile(str(file))
    except TrainError as error:
        _drop_temporary_files(error)
        raise
    except Exception as error:
        message = _why_unreadable(error)
        _drop_temporary_files(error)
        raise TrainError(f"config {file}{message}") from error
    finally:
        sys.path[:] = search_path  # mmcv leaves its temporary folder there when a config fails


@contextmanager
def _extended(bound: Bound) -> Iterator[None]:
    """While the context lasts, mmcv finds bases by `cskd::` and `mmdet::` names, and sets bound variables.

    mmcv has no door for either: it joins a base's name to the folder of the file, and runs a copy of each file.
    """
    read, copy = Config._file2dict, Config._substitute_predefined_vars
    values = {file.resolve(): names for file, names in bound.items()}

    def read_named(filename: str, *args: Any, **kwargs: Any) -> Any:
        folder, scheme, name = str(filename).rpartition("::")
        if scheme:
            package = folder.rpartition("/")[2]
            filename = str(base_path(f"{package}::{name}", Path()))
        return read(filename, *args, **kwargs)

    def copy_bound(filename: str, copied: str) -> None:
        copy(filename, copied)
        if names := values.get(Path(filename).resolve()):
            file = Path(copied)
            file.write_bytes(_bind(file.read_bytes(), names, Path(filename)))

    with _lock:
        Config._file2dict, Config._substitute_predefined_vars = staticmethod(read_named), staticmethod(copy_bound)
        try:
            yield
        finally:
            Config._file2dict, Config._substitute_predefined_vars = staticmethod(read), staticmethod(copy)


def _bind(source: bytes, values: Mapping[str, Any], file: Path) -> bytes:
    """A Python config with other values in its assignments to some names; every line stays where it is.

    Raises:
        TrainError: a name that is also set otherwise than by `name = value` at the top level.
    """
    tree = ast.parse(source)
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    plain = [
        node
        for node in tree.body
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and getattr(node.targets[0], "id", None) in values
    ]
    targets = {id(node.targets[0]) for node in plain}
    for name in found:
        if name.id in values and id(name) not in targets:
            raise TrainError(
                f"{name.id} is set from outside, but {file}, line {name.lineno}, sets it otherwise than by a plain "
                f"{name.id} = ... at the top level: write that"
            )
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node in reversed(plain):
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
        key = node.targets[0].id  # type: ignore[attr-defined]
        value = values[key]
        if isinstance(value, str) and str(getattr(node.value, "value", "")).endswith("/"):
            value = value.rstrip("/") + "/"  # a folder, to which names are added
        padding = "\n" * source.count(b"\n", begin, end)
        source = source[:begin] + f"{key} = ({value!r}{padding})".encode() + source[end:]
    return source


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
