"""Plain data into frozen dataclasses: all keys known, all values of their kind, all errors with the full key."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from cskd_core.choices import check_choice
from cskd_core.errors import PlanError
from cskd_core.similarity import WeightPair


def parse_dataclass(kind: Any, value: Any, where: str) -> Any:
    """`value` as the dataclass `kind`.

    Two short forms: a value that is no dict stands for the field that `kind.shorthand` names; True for a dataclass
    whose fields all have defaults. `kind.former` has the keys of earlier versions, each with those in its place.

    Args:
        kind: its fields are dataclasses, weight pairs, numbers, booleans, text, literals or text -> text mappings; each
            may be optional.
        where: the key of `value`, for messages.

    Raises:
        PlanError: an unknown key, a missing one, or a value of another kind.
    """
    fields = dataclasses.fields(kind)
    shorthand = getattr(kind, "shorthand", None)
    if shorthand and not isinstance(value, Mapping):
        return kind(**{shorthand: _parse(get_type_hints(kind)[shorthand], value, where)})
    if value is True and all(field.default is not dataclasses.MISSING for field in fields):
        return kind()
    if not isinstance(value, Mapping):
        raise PlanError(f"{where}: expected a dict, got {value!r}")
    known = [field.name for field in fields]
    former = getattr(kind, "former", {})
    for key, item in value.items():
        if key in former:
            names = former[key]
            instead = ", ".join(f"{name}={item!r}" for name in names)
            raise PlanError(f"{where}: '{key}' is now {' and '.join(map(repr, names))}: write {instead}")
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else "."
            raise PlanError(f"{where}: unknown key '{key}'{hint} Known: {', '.join(known)}")
    hints = get_type_hints(kind)
    parsed = {key: _parse(hints[key], item, f"{where}.{key}") for key, item in value.items()}
    for field in fields:
        if field.default is dataclasses.MISSING and field.name not in value:
            raise PlanError(f"{where}: missing key '{field.name}'")
    return kind(**parsed)


def _parse(kind: Any, value: Any, where: str) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (option for option in get_args(kind) if option is not type(None))
        # A term switched off: `assistant=False` as much as `assistant=None`.
        if value is None or (value is False and dataclasses.is_dataclass(kind)):
            return None
    if dataclasses.is_dataclass(kind):
        return parse_dataclass(kind, value, where)
    if get_origin(kind) is Literal:
        check_choice(value, get_args(kind), where)
        return value
    if kind == WeightPair:
        return _parse_pair(value, where)
    if kind == Mapping[str, str]:
        return _parse_names(value, where)
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise PlanError(f"{where}: expected a number, got {value!r}")
        return float(value)
    if not isinstance(value, kind):
        raise PlanError(f"{where}: expected a {kind.__name__}, got {value!r}")
    return value


def _parse_pair(value: Any, where: str) -> WeightPair:
    numbers = isinstance(value, (tuple, list)) and all(
        isinstance(item, (int, float)) and not isinstance(item, bool) and 0 <= item < math.inf for item in value
    )
    if not numbers or len(value) != 2:
        raise PlanError(f"{where}: expected two weights >= 0 (guided squared error, cosine), got {value!r}")
    return float(value[0]), float(value[1])


def _parse_names(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(item, str) for pair in value.items() for item in pair):
        raise PlanError(f"{where}: expected a dict of names to names, got {value!r}")
    return dict(value)
