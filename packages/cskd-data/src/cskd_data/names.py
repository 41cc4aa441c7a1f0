"""Names of classes and files as people mean them."""

from __future__ import annotations

import unicodedata

_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"))


def counted(number: int, noun: str) -> str:
    """`1 image`, `2 images`, `2 boxes`."""
    if number != 1:
        noun += "es" if noun.endswith(("x", "ss")) else "s"
    return f"{number} {noun}"


def plain_name(name: str) -> str:
    """`name` with plain spaces for every other white space, none at its ends, and no invisible characters.

    Example:
        >>> plain_name("tea\\u00a0cup ")
        'tea cup'
    """
    visible = name.translate(_INVISIBLE)
    return "".join(" " if character.isspace() else character for character in visible).strip()


def folded(name: str) -> str:
    """`name` as file systems compare it that know no upper and lower case."""
    return unicodedata.normalize("NFC", name).casefold()
