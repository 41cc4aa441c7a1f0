"""What a detector learns beside its state dict, in attributes of its parts.

Dynamic R-CNN keeps its IoU threshold, the beta of its loss and their histories so, DDOD its counts of samples, YOLOX
the size of its images and the number of its steps, DropBlock that number too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import nn


class Attributes:
    """The attributes of a detector and of its parts that change as it trains: numbers, texts and lists of them.

    Parts are its modules, and the assigners, samplers, coders and the like that these hold. Nobody says which
    attributes are learnt: all that are not as they were before the first step are taken.

    Args:
        model: as its config builds it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._built = copy.deepcopy(self._now())

    def changed(self) -> dict[str, Any]:
        """Dotted path -> value of each attribute that is not as it was built."""
        return {
            path: _stored(value)
            for path, value in self._now().items()
            if path not in self._built or self._built[path] != value
        }

    def restore(self, values: Mapping[str, Any]) -> None:
        """Set what `changed` gave; of parts that the detector does not have, nothing."""
        parts = dict(_parts(self._model))
        for path, value in values.items():
            part, _, name = path.rpartition(".")
            if part in parts:
                setattr(parts[part], name, copy.deepcopy(value))

    def _now(self) -> dict[str, Any]:
        return {
            f"{path}.{name}": value
            for path, part in _parts(self._model)
            for name, value in vars(part).items()
            if name != "training" and not name.startswith("__") and _is_plain(value)
        }


def _parts(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Dotted path and object of a detector, which is "", and of each of its parts, each once."""
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", model)]
    while waiting:
        path, part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield path, part
        held = {**vars(part), **vars(part).get("_modules", {})}
        for name, value in held.items():
            items: Iterable[tuple[Any, Any]] = enumerate(value) if isinstance(value, (list, tuple)) else [("", value)]
            for place, one in items:
                if _is_part(one, part):
                    waiting.append((".".join(filter(None, (path, name, str(place)))), one))


def _is_part(value: Any, holder: Any) -> bool:
    """Whether an object is a module, or a helper of mmdet's or of the package that the holder's class comes from."""
    if isinstance(value, nn.Module):
        return True
    of_this_kind = _package(value) in {"mmdet", _package(holder)} - {"torch"}
    return of_this_kind and hasattr(value, "__dict__") and not isinstance(value, dict)


def _package(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, np.generic))


def _stored(value: Any) -> Any:
    """As a checkpoint may hold it, which is read as data only; a value of its own."""
    if isinstance(value, (list, tuple)):
        items = [_stored(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value.item() if isinstance(value, np.generic) else value
