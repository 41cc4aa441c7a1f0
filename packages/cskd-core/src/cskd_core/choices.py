"""Options that take one of a few words: another word is refused wherever it is given, never taken for a default."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from cskd_core.errors import PlanError


def check_choice(value: Any, choices: Sequence[Any], where: str) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        PlanError: the message names the key `where` and the choices.
    """
    if value not in choices:
        raise PlanError(f"{where}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def check_choices(options: Any, where: str) -> None:
    """Refuse a dataclass with a field of another value than its `Literal` lists.

    Args:
        where: the key of the dataclass, for the message.

    Raises:
        PlanError: as `check_choice`.
    """
    kind: Any = type(options)
    for name, choices in _choices(kind).items():
        check_choice(getattr(options, name), choices, f"{where}.{name}")


@functools.cache
def _choices(kind: type) -> dict[str, tuple[Any, ...]]:
    """Field -> what it may be, None among it where it is optional."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        members = get_args(hint) if get_origin(hint) is not Literal else (hint,)
        literals = [member for member in members if get_origin(member) is Literal]
        if literals:
            optional = (None,) if type(None) in members else ()
            found[name] = tuple(choice for member in literals for choice in get_args(member)) + optional
    return found
