"""A measurement: teacher, student alone and student distilled on one data set, over seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class UnreadableError(Exception):
    """A file that holds no measurement; the message names it and says why. It is shown as a warning, never raised."""


@dataclass(frozen=True)
class Spread:
    """One figure of each seed, in points of mAP. `text()` gives `15.2±1.8`, or `15.2` where there is one seed."""

    by_seed: Mapping[int, float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.by_seed.values())

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation; None for a single seed."""
        return statistics.stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted(self.by_seed))

    def minus(self, other: Spread) -> Spread | None:
        """The differences over the seeds that both have; None where they share none."""
        shared = {seed: self.by_seed[seed] - other.by_seed[seed] for seed in self.seeds if seed in other.by_seed}
        return Spread(shared) if shared else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "mean": self.mean,
            "standard_deviation": self.deviation,
            "n": len(self.by_seed),
            "seeds": list(self.seeds),
            "values": [self.by_seed[seed] for seed in self.seeds],
        }

    def text(self, sign: str = "") -> str:
        """The mean to one decimal, always signed where `sign` is "+", and the deviation where there is one."""
        deviation = "" if self.deviation is None else f"±{self.deviation:.1f}"
        return f"{self.mean:{sign}.1f}{deviation}"


@dataclass(frozen=True)
class Measurement:
    """What runs of one recipe gave on one split of one data set; None for what was not run."""

    recipe: str  # the config of the distilled runs; of the plain runs where none was distilled
    data: str  # short name of the data set
    details: str  # of the data set, whatever the source says
    split: str
    sources: tuple[str, ...]  # files or work dirs
    teacher: Spread | None = None
    alone: Spread | None = None
    distilled: Spread | None = None

    @property
    def gain(self) -> Spread | None:
        """Distilled less alone, seed by seed, over the seeds that both have."""
        return self.distilled.minus(self.alone) if self.distilled and self.alone else None

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the students, alone and distilled together."""
        spreads = [spread for spread in (self.alone, self.distilled) if spread]
        return tuple(sorted({seed for spread in spreads for seed in spread.by_seed}))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        figures = {
            "teacher": self.teacher,
            "student_alone": self.alone,
            "student_distilled": self.distilled,
            "gain": self.gain,
        }
        return {
            "recipe": self.recipe,
            "data": self.data,
            "details": self.details,
            "split": self.split,
            "sources": list(self.sources),
            **{name: spread.to_dict() if spread else None for name, spread in figures.items()},
        }


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        UnreadableError: the file cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"{path}: not JSON: {error}") from error


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    """`value` if it is a JSON object.

    Raises:
        UnreadableError: it is something else.
    """
    if not isinstance(value, Mapping):
        raise UnreadableError(f"{where}: expected an object, found {type(value).__name__}")
    return value


def text(holder: Mapping[str, Any], key: str, where: str) -> str:
    """The text under `key`.

    Raises:
        UnreadableError: there is none.
    """
    value = holder.get(key)
    if not isinstance(value, str) or not value:
        raise UnreadableError(f"{where}: expected text under {key!r}, found {value!r}")
    return value


def seed(holder: Mapping[str, Any], where: str) -> int:
    """The whole number under `seed`.

    Raises:
        UnreadableError: there is none.
    """
    value = holder.get("seed")
    if not isinstance(value, int) or isinstance(value, bool):
        raise UnreadableError(f"{where}: expected a whole number under 'seed', found {value!r}")
    return value


def points(metrics: Any, where: str) -> float:
    """`bbox_mAP` of COCO metrics, in points.

    Raises:
        UnreadableError: there is none in [0, 1]; pycocotools gives -1 where the split has no box.
    """
    value = mapping(metrics, where).get("bbox_mAP")
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or not 0 <= value <= 1
    ):
        raise UnreadableError(f"{where}: expected bbox_mAP in [0, 1], found {value!r}")
    return 100 * float(value)
