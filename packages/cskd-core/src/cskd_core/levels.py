"""Which pyramid levels of two detectors are compared. A level is known by its place: strides may repeat."""

from __future__ import annotations

from collections.abc import Sequence

from cskd_core.errors import ShapeError
from cskd_core.family import PyramidSpec

Pair = tuple[int, int]
"""Places (student's, teacher's) of two levels that are compared, counted from 0."""


def pair_levels(student: PyramidSpec, teacher: PyramidSpec, compared: Sequence[str]) -> tuple[list[Pair], list[str]]:
    """The levels that are compared, and notes on those that are not.

    Equal strides are paired place by place, others by stride: the first of a stride with the first of it, and so on.

    Args:
        compared: the plan's parts that compare heads, which need all levels.

    Raises:
        ShapeError: the strides differ and have none in common, or differ and heads are compared.
    """
    if student.strides == teacher.strides:
        return [(place, place) for place in range(len(student.strides))], []
    differ = f"the strides of the pyramids differ: {student.strides} in the student, {teacher.strides} in the teacher"
    places = {level: place for place, level in enumerate(_numbered(teacher.strides))}
    pairs = [(place, places[level]) for place, level in enumerate(_numbered(student.strides)) if level in places]
    if not pairs:
        raise ShapeError(f"{differ}: no level can be compared. Take a teacher with one of the student's strides")
    if compared:
        shared = tuple(student.strides[place] for place, _ in pairs)
        raise ShapeError(
            f"{differ}. The pyramids can be compared where they meet, at {shared}: leave the heads out with "
            + ", ".join(f"{name}=None" for name in compared)
        )
    own, other = ([pair[side] for pair in pairs] for side in (0, 1))
    return pairs, [
        *_left_out("student", student.strides, own, "teacher", teacher.strides),
        *_left_out("teacher", teacher.strides, other, "student", student.strides),
    ]


def _numbered(strides: Sequence[int]) -> list[tuple[int, int]]:
    """Each stride with how many of it came before: (8, 16, 16) gives (8, 0), (16, 0), (16, 1)."""
    return [(stride, strides[:place].count(stride)) for place, stride in enumerate(strides)]


def _left_out(
    side: str, strides: Sequence[int], compared: Sequence[int], other: str, of_other: Sequence[int]
) -> list[str]:
    left_out = [stride for place, stride in enumerate(strides) if place not in compared]
    notes = []
    for why, found in (
        ("has none", [str(stride) for stride in left_out if stride not in of_other]),
        ("has fewer of them", [str(stride) for stride in left_out if stride in of_other]),
    ):
        if found:
            notes.append(
                f"the {side}'s pyramid levels of stride {', '.join(found)} are not compared: the {other} {why}"
            )
    return notes
