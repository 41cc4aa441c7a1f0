"""Numbers and lists that a user gives, checked once, below the command line and the Python functions."""

from __future__ import annotations

import math
import operator
from os import PathLike
from typing import Any

from cskd_deploy.errors import DeployError


def whole(value: Any, name: str, least: int = 1) -> int:
    """A whole number.

    Raises:
        DeployError: it is none, or less than `least`.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise DeployError(f"{name} is {value!r}, expected a whole number from {least} on")
    return number


def at_least(value: Any, name: str, least: float = 0.0) -> float:
    """A finite number.

    Raises:
        DeployError: it is none, or less than `least`.
    """
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not least <= number < math.inf:
        raise DeployError(f"{name} is {value!r}, expected a number from {least:g} on")
    return number


def several(values: Any) -> tuple[Any, ...]:
    """A list, a tuple or any other iterable as a tuple; a text, a path or a number alone as a tuple of it."""
    if isinstance(values, (str, bytes, PathLike)) or not hasattr(values, "__iter__"):
        return (values,)
    return tuple(values)
