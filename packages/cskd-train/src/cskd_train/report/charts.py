"""Charts as SVG: lines and bars, legible at any width, in the dark and on paper, by the colours of `style`.

A chart is as wide as a telephone and grows with the page. Each point and bar has a `<title>`, which browsers show under
the pointer; lines differ in colour and in dashes, since not everybody sees all colours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cskd_train.report.markup import Html, element, figure, joined

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 56, 44, 24, 36
_DASHES = (None, "7 3", "2 3", "9 3 2 3", "12 4", "4 4 1 4")
COLOURS = 8
"""How many colours `style` has; a series of a higher number takes one of them again."""
_APART = 0.8  # pixels
_MOST_DOTS = 15

Point = tuple[float, float]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Series:
    """A line.

    Attributes:
        name: in the legend.
        points: (x, y), x rising.
        colour: place in the palette.
        level: the line is a constant over the whole chart, that of the first point.
        marks: points that are marked, as the best epoch is.
    """

    name: str
    points: Sequence[Point]
    colour: int
    level: bool = False
    marks: Sequence[Point] = ()


@dataclass(frozen=True)
class Axis:
    """What an axis shows.

    Attributes:
        title: with the unit.
        low, high: ends; None goes by the values.
        log: a logarithmic scale, for values that are positive.
        whole: numbers have no fractions, as epochs have none.
    """

    title: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False


def line_chart(series: Sequence[Series], x: Axis, y: Axis, *, caption: Any, alt: str, labels: bool = False) -> Html:
    """Lines over an axis, with a legend where there are several.

    Args:
        alt: the chart in a sentence, for those who do not see it.
        labels: write the last value of each line at its end.
    """
    shown = [one for one in series if one.points]
    values = [point for one in shown for point in (*one.points, *one.marks)]
    across = _Scale(x, [point[0] for one in shown if not one.level for point in one.points], LEFT, WIDTH - RIGHT)
    up = _Scale(y, [point[1] for point in values], HEIGHT - BOTTOM, TOP)
    content = [*_grid(across, up, x, y)]
    for place, one in enumerate(shown):
        content += _line(one, across, up, _DASHES[place % len(_DASHES)])
    if labels:
        content += _end_labels(shown, up)
    return figure(_legend(shown), _svg(content, alt), caption=caption)


def bar_chart(
    groups: Sequence[tuple[str, Sequence[float | None]]],
    names: Sequence[str],
    colours: Sequence[int],
    *,
    title: str,
    high: float | None = None,
    digits: int = 2,
    caption: Any,
    alt: str,
) -> Html:
    """Bars that lie, a group a name and a bar a series; each has its value at its end.

    Args:
        groups: name and a value a series; None is no bar.
        names: of the series.
        title: of the values, with the unit.
    """
    bar, gap, row = 12, 12, 17
    most = max((value for _, values in groups for value in values if value is not None), default=0.0)
    scale = _Scale(Axis(title, 0.0, high if high is not None else most or 1.0), [], 0, WIDTH - 52)
    content: list[Html] = []
    top = 0.0
    for name, values in groups:
        content.append(_label(0, top + 11, _short(name), title=name))
        for place, value in enumerate(values):
            y = top + row + place * (bar + 2)
            if value is None:
                content.append(_label(2, y + 10, "-", class_="tick"))
                continue
            said = f"{value:.{digits}f}"
            content.append(
                element(
                    "rect",
                    element("title", f"{name}, {names[place]}: {said}"),
                    x=0,
                    y=_number(y),
                    width=_number(max(scale(value), 1)),
                    height=bar,
                    class_=f"fill{colours[place] % COLOURS}",
                )
            )
            content.append(_label(scale(value) + 4, y + 10, said, class_="tick"))
        top += row + len(values) * (bar + 2) + gap
    series = [Series(name, [(0, 0)], colour) for name, colour in zip(names, colours, strict=True)]
    return figure(_legend(series, bars=True), _svg(content, alt, max(top - gap, 1)), caption=caption)


def stacked_bars(
    rows: Sequence[tuple[str, Sequence[float]]],
    parts: Sequence[str],
    *,
    said: Callable[[float], str],
    caption: Any,
    alt: str,
) -> Html:
    """A bar a row, in parts that add up.

    Args:
        said: how a value is written.
    """
    most = max((sum(values) for _, values in rows), default=0.0) or 1.0
    content: list[Html] = []
    for place, (name, values) in enumerate(rows):
        top, left = place * 44, 0.0
        content.append(_label(0, top + 11, f"{_short(name)}: {said(sum(values))}", title=name))
        for part, value in enumerate(values):
            width = value / most * WIDTH
            title = element("title", f"{name}, {parts[part]}: {said(value)}")
            content.append(
                element(
                    "rect", title, x=_number(left), y=top + 17, width=_number(width), height=16, class_=f"fill{part}"
                )
            )
            left += width
    series = [Series(name, [(0, 0)], place) for place, name in enumerate(parts)]
    return figure(_legend(series, bars=True), _svg(content, alt, max(len(rows) * 44 - 6, 1)), caption=caption)


class _Scale:
    """From values to the places of an axis."""

    def __init__(self, axis: Axis, values: Sequence[float], start: float, end: float) -> None:
        finite = [value for value in values if math.isfinite(value) and (value > 0 or not axis.log)]
        low = axis.low if axis.low is not None else min(finite, default=0.0)
        high = axis.high if axis.high is not None else max(finite, default=1.0)
        if axis.log:
            low = 10 ** math.floor(math.log10(low or 1e-3))
            high = max(10 ** math.ceil(math.log10(high or 1.0)), 10 * low)
        elif high <= low:
            high = low + (abs(low) or 1.0)
        self.log, self.low, self.high, self._start, self._end = axis.log, low, high, start, end
        self._finest = 1.0 if axis.whole else 0.0

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return self._start + share * (self._end - self._start)

    def ticks(self, most: int) -> list[float]:
        """Round values, at most about so many."""
        if self.log:
            first, last = round(math.log10(self.low)), round(math.log10(self.high))
            step = max(1, math.ceil((last - first) / most))
            return [10.0**power for power in range(first, last + 1, step)]
        rough = max((self.high - self.low) / most, self._finest)
        power = 10 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        first = math.ceil(self.low / step - 1e-9)
        return [place * step for place in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _grid(across: _Scale, up: _Scale, x: Axis, y: Axis) -> list[Html]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    content = []
    for value in up.ticks(5):
        at = _number(up(value))
        content.append(element("line", x1=LEFT, x2=right, y1=at, y2=at, class_="grid"))
        content.append(_label(LEFT - 5, up(value) + 4, tick(value), class_="tick", anchor="end"))
    for value in across.ticks(6):
        content.append(_label(across(value), bottom + 15, tick(value), class_="tick", anchor="middle"))
    content.append(element("line", x1=LEFT, x2=right, y1=bottom, y2=bottom, class_="axis"))
    content.append(_label((LEFT + right) / 2, HEIGHT - 4, x.title, class_="tick", anchor="middle"))
    content.append(_label(2, 11, y.title, class_="tick"))
    return content


def _line(one: Series, across: _Scale, up: _Scale, dash: str | None) -> list[Html]:
    points = [point for point in one.points if all(map(math.isfinite, point))]
    if one.level:
        points = [(across.low, points[0][1]), (across.high, points[0][1])]
    path = " ".join(f"{_number(x)},{_number(y)}" for x, y in _apart([(across(x), up(y)) for x, y in points]))
    kind = f"line{one.colour % COLOURS}"
    title = element("title", f"{one.name}: {tick(points[-1][1])}" if points else one.name)
    drawn = [element("polyline", title, points=path, class_=f"line {kind}", stroke_dasharray=dash)]
    if len(points) == 1 and not one.level:
        drawn = []
    marked = [*one.marks, *(points if len(points) <= _MOST_DOTS and not one.level else ())]
    for x, y in marked:
        large = (x, y) in one.marks
        said = element("title", f"{one.name}: {tick(y)} at {tick(x)}")
        radius = 5 if large else 2.5
        kind = f"fill{one.colour % COLOURS}{' mark' if large else ''}"
        drawn.append(element("circle", said, cx=_number(across(x)), cy=_number(up(y)), r=radius, class_=kind))
    return drawn


def _apart(points: Sequence[Point]) -> list[Point]:
    """The points but for those that lie within a pixel of the last one that is kept."""
    kept = list(points[:1])
    for x, y in points[1:-1]:
        if abs(x - kept[-1][0]) + abs(y - kept[-1][1]) >= _APART:
            kept.append((x, y))
    return kept + list(points[1:][-1:])


def _end_labels(series: Sequence[Series], up: _Scale) -> list[Html]:
    """The last value of each line beside its end, moved where two would cover each other."""
    ends = dict.fromkeys((round(one.points[-1][1], 3), one.colour % COLOURS) for one in series)
    placed: list[Html] = []
    last = -math.inf
    for value, colour in sorted(ends, reverse=True):
        last = min(max(up(value) + 4, last + 14), HEIGHT - BOTTOM + 6)
        placed.append(_label(WIDTH - RIGHT + 4, last, f"{value:.3f}", class_=f"tick text{colour}"))
    return placed


def thinned(points: Sequence[Item], most: int) -> list[Item]:
    """At most so many of the points, evenly, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    step = (len(points) - 1) / (most - 1)
    return [points[round(place * step)] for place in range(most)]


def tick(value: float) -> str:
    """A number as an axis has it: `0.25`, `2000`, `1e-05`."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.3g}"
    return f"{value:.4f}".rstrip("0").rstrip(".")


def _legend(series: Sequence[Series], bars: bool = False) -> Html | None:
    """A line or a square and the name of each series; of one line nothing, the caption has it."""
    if len(series) < 2:
        return None
    entries = []
    for place, one in enumerate(series):
        colour = one.colour % COLOURS
        if bars:
            sign = element("rect", x=2, y=1, width=12, height=10, class_=f"fill{colour}")
        else:
            dash = _DASHES[place % len(_DASHES)]
            sign = element("line", x1=0, x2=26, y1=6, y2=6, class_=f"line line{colour}", stroke_dasharray=dash)
        width = 16 if bars else 26
        key = element("svg", sign, width=width, height=12, viewBox=f"0 0 {width} 12", aria_hidden="true")
        entries.append(element("li", key, " ", one.name))
    return element("ul", entries, class_="legend")


def _svg(content: Sequence[Html], alt: str, height: float = HEIGHT) -> Html:
    box = f"0 0 {WIDTH} {_number(height)}"
    return element("svg", joined(content), viewBox=box, role="img", aria_label=alt, class_="chart")


def _label(x: float, y: float, text: str, anchor: str | None = None, title: str = "", **attributes: Any) -> Html:
    said = element("title", title) if title and title != text else None
    return element("text", said, text, x=_number(x), y=_number(y), text_anchor=anchor, **attributes)


def _short(name: str, most: int = 48) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
