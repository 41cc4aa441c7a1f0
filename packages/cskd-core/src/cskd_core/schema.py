"""Plain data into frozen dataclasses: all keys known, all values of their kind, all errors with the full key.

A dataclass that is built in Python obeys the same rules by `settle`. Where an option takes one of a few words, another
is refused and never taken for a default.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from cskd_core.errors import PlanError

WeightPair = tuple[float, float]
"""(weight of the guided squared error, weight of the cosine distances)."""


def settle(options: Any, where: str) -> None:
    """Give each field of a frozen dataclass the value that a config's would have; for its `__post_init__`.

    Args:
        where: the key of the dataclass, for messages.

    Raises:
        PlanError: a value that a config could not have, in the same words.
    """
    kind: Any = type(options)
    for field in dataclasses.fields(options):
        value = _parse(_hints(kind)[field.name], getattr(options, field.name), f"{where}.{field.name}")
        object.__setattr__(options, field.name, value)


def check_choice(value: Any, choices: Sequence[Any], where: str) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        PlanError: the message names the key `where` and the choices.
    """
    if value not in choices:
        raise PlanError(f"{where}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def parse_dataclass(kind: Any, value: Any, where: str) -> Any:
    """`value` as the dataclass `kind`.

    One that it is already stays. Two short forms: a value that is no dict stands for the field that `kind.shorthand`
    names; True for a dataclass whose fields all have defaults. `kind.former` has the keys of earlier versions, each
    with those in its place.

    Args:
        kind: its fields are dataclasses, weight pairs, numbers, booleans, text, literals or text -> text mappings; each
            may be optional.
        where: the key of `value`, for messages.

    Raises:
        PlanError: an unknown key, a missing one, or a value of another kind.
    """
    if isinstance(value, kind):
        return value
    fields = dataclasses.fields(kind)
    shorthand = getattr(kind, "shorthand", None)
    if shorthand and not isinstance(value, Mapping):
        return kind(**{shorthand: _parse(_hints(kind)[shorthand], value, where)})
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
    hints = _hints(kind)
    parsed = {key: _parse(hints[key], item, f"{where}.{key}") for key, item in value.items()}
    for field in fields:
        if field.default is dataclasses.MISSING and field.name not in value:
            raise PlanError(f"{where}: missing key '{field.name}'")
    return kind(**parsed)


def _parse(kind: Any, value: Any, where: str) -> Any:
    optional = get_origin(kind) in (Union, types.UnionType)
    if optional:
        (kind,) = (option for option in get_args(kind) if option is not type(None))
        # A term switched off: `assistant=False` as much as `assistant=None`.
        if value is None or (value is False and dataclasses.is_dataclass(kind)):
            return None
    if dataclasses.is_dataclass(kind):
        return parse_dataclass(kind, value, where)
    if get_origin(kind) is Literal:
        check_choice(value, get_args(kind) + ((None,) if optional else ()), where)
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
