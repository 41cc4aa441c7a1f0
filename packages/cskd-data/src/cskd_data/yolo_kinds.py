"""Rows of YOLO with more than six numbers that are no polygons: a tracker's, and boxes with keypoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

_OVER = 0.01  # how far a box may reach over the edge of its image
_SLACK = 0.05  # of a box, by which a point of its object may leave it
_ALIKE, _LIKELY = 0.9, 0.1  # of the rows of a set: so many may be of a kind, and so many are likely to be

TRACK = "reads as a tracker's row, class x y width height score track, and not as a polygon: take the track out"
POSE = "reads as a box with keypoints, and not as a polygon: give a data.yaml with their `kpt_shape`"


def kind_of(values: Sequence[float]) -> tuple[str, bool]:
    """What a row may be beside a polygon: `TRACK`, `POSE` or nothing; and whether that is more likely.

    Args:
        values: class, x, y, width and height of a box in fractions of the image, and what follows; or class and points.
    """
    if len(values) < 7:
        return "", False
    x, y, width, height = values[1:5]
    box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    if width <= 0 or height <= 0 or not all(-_OVER <= value <= 1 + _OVER for value in box):
        return "", False
    rest = values[5:]
    if len(rest) == 2 and 0 <= rest[0] <= 1 and rest[1] == int(rest[1]):
        return TRACK, True

    def held(points: Sequence[tuple[float, float]]) -> bool:
        across, down = _SLACK * width, _SLACK * height
        left, top, right, bottom = box
        return all(left - across <= a <= right + across and top - down <= b <= bottom + down for a, b in points)

    if len(rest) % 3 == 0 and {*rest[2::3]} <= {0, 1, 2}:
        seen = [(a, b) for a, b, visible in zip(rest[0::3], rest[1::3], rest[2::3], strict=True) if visible]
        if seen and (held(seen) or len(values) % 2 == 0):  # points of a polygon are an odd number with the class
            return POSE, True
    if len(rest) % 2 == 0 and held([point for point in zip(rest[0::2], rest[1::2], strict=True) if any(point)]):
        return POSE, not held([(width, height)])  # the second point of a small polygon lies near the others
    return "", False


@dataclass
class LongRows:
    """The rows of a set that hold points, or seem to.

    Single polygons may look like a track or a pose; rows of one length, nearly all of which do, are such.
    """

    _lengths: set[int] = field(default_factory=set)
    _rows: int = 0
    _alike: int = 0
    _likely: list[str] = field(default_factory=list)

    def add(self, values: Sequence[float], where: str) -> None:
        """A row with more than six numbers, and its file and line."""
        kind, likely = kind_of(values)
        self._lengths.add(len(values))
        self._rows += 1
        self._alike += bool(kind)
        self._likely += [f"{where}: {' '.join(f'{value:g}' for value in values)[:60]!r} {kind}"] if likely else []

    def faults(self) -> list[str]:
        """The rows that are no polygons."""
        enough = self._alike >= _ALIKE * self._rows and len(self._likely) >= _LIKELY * self._rows
        return self._likely if enough and len(self._lengths) == 1 else []
