"""What a distilled step costs: one record and one line a family."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What one family costs; times in seconds, memory in MB (10^6 bytes)."""

    family: str
    plain_s: float
    teacher_s: float
    added_s: float
    forced_s: float  # part of added_s
    distilled_s: float
    ratio: float
    bound: float
    over_bound: float
    peak_mb: float
    tapped_mb: float
    images: int
    height: int
    width: int
    boxes: int
    device: str
    amp: str | None
    narrow: bool
    pyramid: str | None = None  # kind of the pyramid's loss where that is the only term


def named(family: str, pyramid: str | None) -> str:
    """The name of a row."""
    return f"{family:<22}" if pyramid is None else f"{f'{family}, {pyramid} alone':<22}"


def table(costs: list[Cost]) -> str:
    names = "  plain  teacher    added  (forced)  distilled   ratio   bound  over_bound  peak MB  tapped MB"
    rows = [
        named(c.family, c.pyramid)
        + f"{c.plain_s:7.3f}{c.teacher_s:9.3f}{c.added_s:9.3f}{c.forced_s:10.3f}{c.distilled_s:11.3f}"
        + f"{c.ratio:8.2f}{c.bound:8.2f}{c.over_bound:12.3f}{c.peak_mb:9.0f}{c.tapped_mb:11.0f}"
        for c in costs
    ]
    return "\n".join([f"{'family':<22}{names}", *rows])
