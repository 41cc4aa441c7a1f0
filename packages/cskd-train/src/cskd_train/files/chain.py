"""A config file and the files that it builds on: which names each of them sets and reads."""

from __future__ import annotations

import ast
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmcv

from cskd_train.files.locate import base_path

_REFERENCE = re.compile(r"\$\{([a-zA-Z\d_.]*)\}")
_OF_BASE = re.compile(r"\{\{\s*_base_\.(\w+)[\w.]*\s*\}\}")


@dataclass(frozen=True)
class ConfigFile:
    """One file of a config: the names that it sets, that its own expressions read, and that it refers to."""

    path: Path
    assigned: frozenset[str]
    read: frozenset[str]
    referred: frozenset[str]  # as ${name}
    of_base: frozenset[str]  # as {{_base_.name}}
    keys: frozenset[str]  # of its dicts
    bases: tuple[ConfigFile, ...]

    def all_files(self) -> Iterator[ConfigFile]:
        """The file, and those below it; where two set a name, the one whose value counts comes first."""
        yield self
        for base in self.bases:
            yield from base.all_files()

    def setter(self, name: str) -> ConfigFile | None:
        """The file whose value of a top-level name counts."""
        return next((file for file in self.all_files() if name in file.assigned), None)


def read_chain(path: Path) -> ConfigFile | None:
    """The file of a config; None where mmcv finds more than can be read here: a `_base_` that is computed."""
    try:
        return _read(path)
    except (OSError, ValueError):
        return None


def referred_names(text: str) -> frozenset[str]:
    """The top-level keys that the references (`${key.sub}`) in a text name."""
    return frozenset(key.partition(".")[0] for key in _REFERENCE.findall(text))


def _read(path: Path) -> ConfigFile:
    text = path.read_text(encoding="utf-8")
    assigned, read, keys, bases = (_of_python if path.suffix == ".py" else _of_data)(path, text)
    names = (bases,) if isinstance(bases, str) else tuple(bases or ())
    below = tuple(_read(base_path(name, path.parent)) for name in names)
    of_base = frozenset(_OF_BASE.findall(text))
    return ConfigFile(path, frozenset(assigned), frozenset(read), referred_names(text), of_base, frozenset(keys), below)


Names = set[str]


def _of_python(path: Path, text: str) -> tuple[Names, Names, Names, Any]:
    tree = ast.parse(text)
    nodes = list(ast.walk(tree))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    keys = {node.arg for node in nodes if isinstance(node, ast.keyword) and node.arg}
    for node in nodes:
        keys |= {str(key.value) for key in getattr(node, "keys", ()) if isinstance(key, ast.Constant)}
    bases = None
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "_base_":
            bases = ast.literal_eval(node.value)
    assigned = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    return assigned, {node.id for node in names if isinstance(node.ctx, ast.Load)}, keys, bases


def _of_data(path: Path, text: str) -> tuple[Names, Names, Names, Any]:
    try:
        data = mmcv.load(io.StringIO(_OF_BASE.sub('"base"', text)), file_format=path.suffix[1:])
    except Exception as error:
        raise ValueError(f"{path}: {error}") from error
    return set(data), set(), set(_keys(data)), data.get("_base_")


def _keys(data: Any) -> Iterator[str]:
    if isinstance(data, dict):
        yield from map(str, data)
    for item in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        yield from _keys(item)
