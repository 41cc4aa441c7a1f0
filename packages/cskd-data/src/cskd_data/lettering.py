"""Text on pictures, in the letters that OpenCV draws."""

from __future__ import annotations

import unicodedata

import cv2
import numpy as np

Colour = tuple[int, int, int]
"""Blue, green, red."""

_FONT = cv2.FONT_HERSHEY_SIMPLEX


def printable(name: str, label: int) -> str:
    """A class name in the letters that OpenCV draws; its number where it has none of them."""
    letters = plain(name)
    return letters if letters.strip("? ") else f"class {label}"


def plain(text: str) -> str:
    """Accents taken off, a question mark for what has no letter."""
    bare = "".join(one for one in unicodedata.normalize("NFKD", text) if not unicodedata.combining(one))
    return bare.encode("ascii", "replace").decode()


def fitting(text: str, size: float, room: int) -> str:
    """`text`, its middle left out where it is wider than `room` pixels."""
    if width_of(text, size) <= room:
        return text
    while len(text) > 4 and width_of(text, size) > room:
        middle = len(text) // 2
        text = f"{text[: middle - 2]}..{text[middle + 1 :]}" if ".." not in text else _shorter(text)
    return text


def _shorter(text: str) -> str:
    first, _, second = text.partition("..")
    return f"{first[:-1]}..{second}" if len(first) > len(second) else f"{first}..{second[1:]}"


def width_of(text: str, size: float) -> int:
    return int(cv2.getTextSize(text, _FONT, size, 1)[0][0])


def write(canvas: np.ndarray, text: str, place: tuple[int, int], size: float, colour: Colour) -> None:
    cv2.putText(canvas, text, place, _FONT, size, colour, 1, cv2.LINE_AA)
