"""Pictures inside a page: each stands there once, within its share of a budget, and boxes are drawn over it as SVG."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from cskd_data.images import read_image
from cskd_train.report.markup import Html, element, joined
from cskd_train.report.matches import Marked

SIDE = 520
"""Pixels of the longer side, at most."""
MOST_BYTES = 48_000
"""Of one picture as JPEG. A report has about twenty of them: a megabyte and a half in all."""
_MOST_LETTERED = 12  # boxes with names: of more only the pointer tells them


class Pictures:
    """The pictures of a page."""

    def __init__(self) -> None:
        self._by_file: dict[Path, tuple[str, tuple[int, int]]] = {}
        self._images: list[Html] = []
        self.bytes = 0

    def add(self, file: Path) -> tuple[str, tuple[int, int]]:
        """Take in a picture; gives its name in the page, and its width and height in pixels as stored.

        Raises:
            DataError: the file cannot be read.
        """
        if file not in self._by_file:
            image = read_image(file)
            height, width = image.shape[:2]
            name, content = f"picture{len(self._images)}", shrunk(image)
            self.bytes += len(content)
            data = f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
            self._images.append(element("image", id=name, href=data, width=width, height=height))
            self._by_file[file] = name, (width, height)
        return self._by_file[file]

    def all(self) -> Html:
        """Every picture, for the page to hold once."""
        return element("svg", element("defs", self._images), class_="hidden", aria_hidden="true")

    def drawn(self, file: Path, boxes: Sequence[Marked], alt: str, over: Sequence[Html] = ()) -> Html:
        """A picture with boxes: whole lines are right ones, broken lines wrong or missed ones.

        Args:
            over: what lies between the picture and its boxes.
        """
        name, (width, height) = self.add(file)
        in_front = sorted(boxes, key=lambda one: (one.right, one.score or 0.0))
        content = [element("use", href=f"#{name}"), *over, *map(_box, in_front)]
        if len(boxes) <= _MOST_LETTERED:
            content += _names(in_front[::-1], width, height)
        return element(
            "svg", joined(content), viewBox=f"0 0 {width} {height}", class_="picture", role="img", aria_label=alt
        )


def _box(one: Marked) -> Html:
    x, y, w, h = (round(float(value), 1) for value in one.box)
    shape = {"x": x, "y": y, "width": max(w, 0), "height": max(h, 0)}
    dash = None if one.right else "6 4"
    drawn = element("rect", element("title", _said(one)), **shape, class_=_kind(one), stroke_dasharray=dash)
    return joined([element("rect", **shape, class_="under"), drawn])


def _names(boxes: Sequence[Marked], width: int, height: int) -> list[Html]:
    """What boxes are, at their upper left corner or below what stands there already, where there is room for it."""
    letter = max(width, height) / 22
    taken: list[tuple[float, float, float]] = []
    drawn = []
    for one in boxes:
        said = _said(one)
        long = 0.62 * letter * len(said)
        x = min(max(float(one.box[0]), 0.0), max(width - long, 0.0))
        top = float(one.box[1]) - letter / 4
        for line in range(4):
            y = max(top, letter) + line * letter * 1.1
            free = all(abs(y - other) >= letter or x + long <= left or right <= x for left, right, other in taken)
            if free and y <= height:
                taken.append((x, x + long, y))
                at = {"x": round(x, 1), "y": round(y, 1), "font_size": round(letter, 1)}
                drawn.append(element("text", said, **at, class_=f"name {_kind(one)}"))
                break
    return drawn


def _said(one: Marked) -> str:
    return one.name if one.score is None else f"{one.name} {one.score:.2f}"


def _kind(one: Marked) -> str:
    return "right" if one.right else "wrong"


def shrunk(image: np.ndarray, side: int = SIDE, most: int = MOST_BYTES) -> bytes:
    """A JPEG of at most so many pixels a side and so many bytes."""
    scale = min(1.0, side / max(image.shape[:2]))
    for quality in (85, 75, 65, 55, 45, 35, 25):
        size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
        smaller = image if scale == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        content = bytes(cv2.imencode(".jpg", smaller, [cv2.IMWRITE_JPEG_QUALITY, quality])[1])
        if len(content) <= most:
            break
        scale *= 1 if quality > 55 else 0.8
    return content


def heat(values: np.ndarray, high: float) -> bytes:
    """A map of values in [0, `high`] as a PNG, a pixel a value: dark blue is 0, yellow is `high`."""
    from matplotlib import colormaps

    colours = colormaps["cividis"](np.clip(values / (high or 1.0), 0, 1))[..., :3]
    pixels = np.ascontiguousarray((255 * colours[..., ::-1]).round().astype(np.uint8))
    return bytes(cv2.imencode(".png", pixels)[1])


def heat_over(values: np.ndarray, high: float, size: tuple[float, float]) -> Html:
    """Such a map over a picture, of a width and height in its pixels."""
    data = f"data:image/png;base64,{base64.b64encode(heat(values, high)).decode()}"
    return element(
        "image", href=data, width=round(size[0], 1), height=round(size[1], 1), preserveAspectRatio="none",
        class_="cells", opacity=0.75,
    )  # fmt: skip
