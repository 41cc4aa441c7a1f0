"""What a family reads of a detector, held once against what it says of it: levels, names, channels, images."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from cskd_core.errors import ShapeError
from cskd_core.family import Observation, PyramidSpec, TowerSpec
from cskd_core.taps import Recording

T = TypeVar("T")


@dataclass(frozen=True)
class Expected:
    """What there must be in each `Observation` of a detector.

    Attributes:
        side: `student` or `teacher`.
        pyramid: its levels.
        towers: those that are compared.
        predictions: names of those that are compared.
    """

    side: str
    pyramid: PyramidSpec
    towers: Mapping[str, TowerSpec]
    predictions: Collection[str]

    def check(self, seen: Observation, images: int) -> None:
        """Refuse what does not fit.

        Args:
            images: of the batch.

        Raises:
            ShapeError: another number of levels, stages, channels or images, or a name that is not there.
        """
        levels = len(self.pyramid.strides)
        if len(seen.pyramid) != levels:
            raise ShapeError(
                f"the family reads {len(seen.pyramid)} pyramid levels of the {self.side}, its PyramidSpec has "
                f"{levels} strides {self.pyramid.strides}: `read` and `pyramid` must agree"
            )
        for place, level in enumerate(seen.pyramid):
            if level.dim() != 4 or level.shape[1] != self.pyramid.channels_of(place):
                raise ShapeError(
                    f"level {place} of the {self.side}'s pyramid is {tuple(level.shape)}, its PyramidSpec says "
                    f"(B, {self.pyramid.channels_of(place)}, H, W)"
                )
            if len(level) != images:
                raise ShapeError(
                    f"the {self.side} ran on {len(level)} images and the batch has {images}: give the distiller the "
                    "batch of the forward that was watched"
                )
        for name, spec in self.towers.items():
            stages = self._named("tower", name, seen.towers)
            if len(stages) != spec.stages:
                raise ShapeError(
                    f"the family reads {len(stages)} stages of the {self.side}'s {name} tower, its TowerSpec has "
                    f"{spec.stages}: `read` and `towers` must agree"
                )
            for stage in stages:
                self._check_levels(f"tower '{name}'", stage)
        for name in self.predictions:
            self._check_levels(f"prediction '{name}'", self._named("prediction", name, seen.predictions))

    def _named(self, kind: str, name: str, found: Mapping[str, Sequence[T]]) -> Sequence[T]:
        if name not in found:
            raise ShapeError(
                f"the family compares the {kind} '{name}', but reads none of the {self.side}; it reads: "
                + (", ".join(found) or "nothing")
            )
        return found[name]

    def _check_levels(self, what: str, maps: Sequence[Tensor]) -> None:
        levels = len(self.pyramid.strides)
        if len(maps) == levels:
            return
        if len(maps) > levels and len(maps) % levels == 0:
            raise ShapeError(
                f"the {what} was recorded {len(maps)} times for {levels} pyramid levels: the {self.side} ran "
                f"{len(maps) // levels} times within one watch(). Give each forward a watch() of its own"
            )
        raise ShapeError(
            f"the family reads {len(maps)} maps of the {self.side}'s {what}, expected {levels}, one a level"
        )


def refuse_repeated(recording: Recording, of_teacher: Mapping[str, int]) -> None:
    """Refuse several forwards in one recording: all but the last would be dropped.

    Args:
        recording: the student's, already read.
        of_teacher: how often each tap ran in one forward of the teacher. What it does not run is not compared.

    Raises:
        ShapeError: a tap of which the last call alone was read ran more often than in the teacher.
    """
    for name in recording.read_once:
        own, other = recording.runs(name), of_teacher.get(name, 0)
        if 0 < other < own:
            raise ShapeError(
                f"tap '{name}' ran {own} times within one watch(), and {other} times in the teacher's forward: the "
                "last call alone would be compared. Give each forward a watch() of its own; a family whose detector "
                f"runs it so often in one forward reads recording.calls('{name}')"
            )
