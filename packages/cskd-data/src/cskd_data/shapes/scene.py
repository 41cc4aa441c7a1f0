"""One generated picture: figures of six classes over a cluttered background, and the boxes of what is to be seen."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

CLASSES = ("circle", "ring", "square", "triangle", "star", "cross")

# The side of a figure as a share of the image's shorter side, and how often each scale is drawn.
SCALES = {"small": (0.13, 0.20), "medium": (0.20, 0.36), "large": (0.36, 0.56)}
_SCALE_SHARES = (0.3, 0.4, 0.3)
# A figure of which less than this share is visible (covered, or over the image's edge) is not annotated.
MIN_VISIBLE = 0.4
_FIGURES = (3, 8)  # at least, at most
_EMPTY_SHARE = 0.02  # images without any figure
_FREE_PLACE_SHARE = 0.1  # figures put anywhere, whatever they cover; the others look for a place
_PLACE_TRIES = 12
_MIN_CONTRAST = 70.0  # distance of the mean colours of figure and background, in levels of RGB
# Each class has a usual colour, as bananas have: a hint, not a proof.
_USUAL_COLOUR_SHARE = 0.8
_HUE_SPREAD = 0.05  # standard deviation; the classes' hues are 1/6 apart
_SUBPIXEL_BITS = 6

Pixels = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Figure:
    """A figure to be annotated: `bbox` (x, y, width, height in pixels) is tight around what is visible of it."""

    name: str
    scale: str
    bbox: tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """`image` is (height, width, 3) uint8, BGR."""

    image: NDArray[np.uint8]
    figures: tuple[Figure, ...]


@dataclass
class _Placed:
    name: str
    scale: str
    area: float  # of the whole figure, in pixels
    visible: Mask = field(repr=False)

    def visible_share(self, cover: Mask | None = None) -> float:
        """What is left to be seen of the whole figure, after `cover` too."""
        visible = self.visible if cover is None else self.visible & ~cover
        return float(np.count_nonzero(visible)) / self.area


def draw_scene(rng: np.random.Generator, height: int, width: int) -> Scene:
    """Draw one scene; all that is random comes from `rng`.

    Texture, rotation, stretch, place and light do not depend on the class. Colour hints at it; the outline decides.
    """
    unit = min(height, width) / 160.0  # strokes and texture keep their share of the image
    canvas = _background(rng, height, width)
    backdrop = canvas.mean(axis=(0, 1))
    for _ in range(int(rng.integers(2, 7))):
        _stroke(rng, canvas, unit)

    placed: list[_Placed] = []
    wanted = 0 if rng.random() < _EMPTY_SHARE else int(rng.integers(_FIGURES[0], _FIGURES[1] + 1))
    for _ in range(wanted):
        name = CLASSES[rng.integers(len(CLASSES))]
        scale = list(SCALES)[rng.choice(len(SCALES), p=_SCALE_SHARES)]
        found = _place(rng, name, scale, (height, width), placed)
        if found is None:
            continue
        figure, alpha = found
        for earlier in placed:
            earlier.visible &= ~figure.visible
        placed.append(figure)
        x, y, figure_width, figure_height = cv2.boundingRect((alpha > 0).astype(np.uint8))
        inside = (slice(y, y + figure_height), slice(x, x + figure_width))
        paint = _texture(rng, figure_height, figure_width, _figure_colour(rng, name, backdrop), unit)
        _blend(canvas[inside], paint, alpha[inside])

    if rng.random() < 0.5:
        _stroke(rng, canvas, unit)  # in front of the figures
    image = _photograph(rng, canvas)
    figures = tuple(
        Figure(figure.name, figure.scale, _bounds(figure.visible))
        for figure in placed
        if figure.visible_share() >= MIN_VISIBLE
    )
    return Scene(image, figures)


def _place(
    rng: np.random.Generator, name: str, scale: str, size: tuple[int, int], placed: list[_Placed]
) -> tuple[_Placed, Pixels] | None:
    """A figure with its coverage (height, width) in [0, 1]; None when no place was found for it."""
    height, width = size
    low, high = SCALES[scale]
    radius = 0.5 * min(size) * float(np.exp(rng.uniform(np.log(low), np.log(high))))
    turn = _turn_and_stretch(rng, radius)
    contours = [contour @ turn.T for contour in _OUTLINES[name]()]
    area = abs(cv2.contourArea(contours[0])) - sum(abs(cv2.contourArea(hole)) for hole in contours[1:])
    anywhere = rng.random() < _FREE_PLACE_SHARE
    for _ in range(_PLACE_TRIES):
        centre = (
            rng.uniform(0.7 * radius, width - 0.7 * radius),
            rng.uniform(0.7 * radius, height - 0.7 * radius),
        )
        coverage = np.zeros(size, np.uint8)
        points = [np.round((contour + centre) * 2**_SUBPIXEL_BITS).astype(np.int32) for contour in contours]
        cv2.fillPoly(coverage, points, 255, lineType=cv2.LINE_AA, shift=_SUBPIXEL_BITS)
        figure = _Placed(name, scale, area, coverage > 127)
        fits = figure.visible_share() >= MIN_VISIBLE and all(
            earlier.visible_share(figure.visible) >= min(MIN_VISIBLE, earlier.visible_share()) for earlier in placed
        )
        if fits or anywhere:
            return figure, coverage.astype(np.float32) / 255
    return None


# Outlines: lists of contours (points, 2) in a circle of radius 1 around the origin; a second contour is a hole.


def _regular(corners: int, radius: float = 1.0) -> NDArray[np.float32]:
    angles = np.arange(corners) * (2 * np.pi / corners)
    return (radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)).astype(np.float32)


def _star() -> NDArray[np.float32]:
    points = _regular(10)
    points[1::2] *= 0.45
    return points


def _cross() -> NDArray[np.float32]:
    a, b = 0.32, 0.95
    points = [
        (a, a),
        (a, b),
        (-a, b),
        (-a, a),
        (-b, a),
        (-b, -a),
        (-a, -a),
        (-a, -b),
        (a, -b),
        (a, -a),
        (b, -a),
        (b, a),
    ]
    return np.array(points, np.float32)


_OUTLINES: dict[str, Callable[[], list[NDArray[np.float32]]]] = {
    "circle": lambda: [_regular(72)],
    "ring": lambda: [_regular(72), _regular(72, 0.5)],
    "square": lambda: [_regular(4)],
    "triangle": lambda: [_regular(3)],
    "star": lambda: [_star()],
    "cross": lambda: [_cross()],
}


def _turn_and_stretch(rng: np.random.Generator, radius: float) -> NDArray[np.float32]:
    """A (2, 2) matrix: turned by any angle, then up to 20 % wider than high or the reverse, in any direction."""
    turn, direction = rng.uniform(0, 2 * np.pi, 2)
    stretch = np.exp(rng.uniform(-0.1, 0.1))
    axes = _rotation(direction) @ np.diag([stretch, 1 / stretch]) @ _rotation(-direction)
    return (radius * axes @ _rotation(turn)).astype(np.float32)


def _rotation(angle: float) -> NDArray[np.float64]:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


# Paint: backgrounds, textures, strokes, light.


def _background(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Cloudy patches between two dull colours, (height, width, 3) in [0, 255]."""
    first = rng.uniform(40, 215) + rng.normal(0, 15, 3)
    second = first + rng.normal(0, 25) + rng.normal(0, 10, 3)
    cells = int(rng.integers(2, 12))
    clouds = cv2.resize(rng.random((cells, cells)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    grain = rng.normal(0, rng.uniform(0, 0.15), (height, width)).astype(np.float32)
    return np.clip(_mix(first, second, np.clip(clouds + grain, 0, 1)), 0, 255)


def _texture(rng: np.random.Generator, height: int, width: int, colour: NDArray[np.float64], unit: float) -> Pixels:
    """A surface of one of five kinds around `colour`, (height, width, 3) in [0, 255]."""
    second = np.clip(colour + rng.normal(0, 35, 3), 0, 255)
    kind = rng.integers(5)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    # A float64 scalar makes float64 of these with NumPy 2, and float32 with NumPy 1: the pictures would differ.
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    along = columns * cosine + rows * sine
    across = rows * cosine - columns * sine
    period = rng.uniform(5, 14) * unit
    if kind == 0:
        weight = np.zeros((height, width))
    elif kind == 1:  # shading
        weight = (along - along.min()) / max(1.0, float(np.ptp(along)))
    elif kind == 2:  # stripes
        weight = 0.5 + 0.5 * np.sin(2 * np.pi * along / period)
    elif kind == 3:  # checks
        weight = ((along // period + across // period) % 2).astype(np.float32)
    else:  # speckles
        grain = rng.random((max(2, int(height / unit / 3)), max(2, int(width / unit / 3)))).astype(np.float32)
        weight = cv2.resize(grain, (width, height), interpolation=cv2.INTER_LINEAR)
    return _mix(colour, second, weight)


def _figure_colour(rng: np.random.Generator, name: str, backdrop: NDArray[np.float32]) -> NDArray[np.float64]:
    """A colour (B, G, R) that stands out: more vivid than any background, far from this one, mostly the class's own."""
    usual = CLASSES.index(name) / len(CLASSES)
    while True:
        own = rng.random() < _USUAL_COLOUR_SHARE
        hue = rng.normal(usual, _HUE_SPREAD) if own else rng.random()
        red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, rng.uniform(0.5, 1.0), rng.uniform(0.45, 1.0))
        colour: NDArray[np.float64] = 255.0 * np.array([blue, green, red], dtype=np.float64)
        if np.linalg.norm(colour - backdrop) >= _MIN_CONTRAST:
            return colour


def _stroke(rng: np.random.Generator, canvas: Pixels, unit: float) -> None:
    """A bent line or an open arc that belongs to no class."""
    height, width = canvas.shape[:2]
    colour = tuple(float(level) for level in rng.uniform(0, 255, 3))
    thickness = max(1, round(rng.uniform(0.8, 3.0) * unit))
    points = rng.uniform((0, 0), (width, height), (int(rng.integers(2, 5)), 2)).astype(np.int32)
    if rng.random() < 0.5:
        cv2.polylines(canvas, [points], False, colour, thickness, cv2.LINE_AA)
        return
    axes = tuple(int(axis) for axis in rng.uniform(0.06, 0.3, 2) * min(height, width))
    begin, sweep = rng.uniform(0, 360), rng.uniform(40, 200)
    centre = (int(points[0, 0]), int(points[0, 1]))
    cv2.ellipse(canvas, centre, axes, rng.uniform(0, 180), begin, begin + sweep, colour, thickness, cv2.LINE_AA)


def _photograph(rng: np.random.Generator, canvas: Pixels) -> NDArray[np.uint8]:
    """Uneven light, a lens that is a little soft, a noisy sensor."""
    height, width = canvas.shape[:2]
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    light = rng.uniform(0.8, 1.1) + rng.uniform(0, 0.25) * (columns * np.cos(angle) + rows * np.sin(angle))
    image = canvas * light[..., None].astype(np.float32)
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.8))
    image += rng.uniform(2, 8) * rng.standard_normal(image.shape, np.float32)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def _mix(first: NDArray[np.float64], second: NDArray[np.float64], weight: NDArray[np.floating]) -> Pixels:
    """`first` where the weight (height, width) is 0, `second` where it is 1."""
    towards = (second - first).astype(np.float32)
    return first.astype(np.float32) + weight[..., None].astype(np.float32) * towards


def _blend(canvas: Pixels, paint: Pixels, alpha: Pixels) -> None:
    canvas += alpha[..., None] * (paint - canvas)


def _bounds(mask: Mask) -> tuple[int, int, int, int]:
    """x, y, width, height around the true pixels."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return x, y, width, height
