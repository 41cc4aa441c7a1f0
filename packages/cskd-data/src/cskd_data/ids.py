"""The user's own ids: whole numbers or text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Key = int | str
"""An id as the user's file has it."""


def key_of(value: Any) -> Key | None:
    """An id as it stands, a whole float as the whole number; None for what is no id."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else None


def with_aliases(ids: Mapping[Key, int]) -> dict[Any, int]:
    """`ids`, and each also under its other form, 7 as "7" and back, unless that is an id of its own.

    Tools mix the two in one file.
    """
    found: dict[Any, int] = dict(ids)
    for key, number in ids.items():
        if isinstance(key, int):
            found.setdefault(str(key), number)
        elif key.isascii() and key.isdecimal() and len(key) < 20:
            found.setdefault(int(key), number)
    return found
