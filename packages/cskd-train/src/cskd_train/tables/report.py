"""The table as a terminal shows it, as Markdown and as plain data."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cskd_train.tables import published
from cskd_train.tables.measured import Measurement
from cskd_train.tables.published import RECIPES, ROWS

WIDTH = 100
_PUBLISHED_TITLE = f"Published, {published.DATA}: box mAP in points, as printed"
_PUBLISHED_COLUMNS = (
    "row", "detector", "backbones", "teacher", "student", "CSKD", "gain", "matched", "like for like",
)  # fmt: skip
_MEASURED_UNIT = "box mAP in points, on the data set named"
_MEASURED_COLUMNS = ("recipe", "data", "split", "teacher", "alone", "distilled", "gain", "seeds")
_LEFT = ("detector", "backbones", "recipe", "data", "split", "seeds", "source")
MEASURED_NOTES = (
    "Measured: the mAP of the checkpoint that was best on the validation split. alone: the student's recipe without "
    "its distill block. ± is the standard deviation over seeds; a figure without it is one run. gain is distilled less "
    "alone, seed by seed. A gain on one data set says nothing about another.",
)


@dataclass(frozen=True)
class Found:
    """The measurements of one kind and the folders that were searched for them."""

    kind: str
    folders: Sequence[str]
    measurements: Sequence[Measurement]

    @property
    def title(self) -> str:
        place = f"Measured, {self.kind} under {', '.join(self.folders)}"
        return f"{place}: {_MEASURED_UNIT}" if self.measurements else f"{place}: none found"

    def by_data(self) -> dict[str, list[str]]:
        """The sources, each once, by the description of the data set."""
        sources: dict[str, list[str]] = {}
        for measurement in self.measurements:
            listed = sources.setdefault(measurement.details, [])
            listed += [source for source in measurement.sources if source not in listed]
        return sources

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {"searched": list(self.folders), "rows": [measurement.to_dict() for measurement in self.measurements]}


@dataclass(frozen=True)
class TableReport:
    """The published rows and what was found; a run in a work dir may be one of those that are recorded."""

    recorded: Found
    work_dirs: Found
    warnings: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON. All mAP in points."""
        return {
            "unit": "points of COCO box mAP (0-100)",
            "published": {
                "source": published.PRINTED_IN,
                "data": published.DATA,
                "rows": [row.to_dict() for row in ROWS],
                "notes": published.notes(),
            },
            "measured": {
                "recorded": self.recorded.to_dict(),
                "work_dirs": self.work_dirs.to_dict(),
                "notes": list(MEASURED_NOTES),
            },
            "warnings": list(self.warnings),
        }

    def print(self, console: Console) -> None:
        """The tables with their notes, at most 100 columns wide."""
        console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
        console.print(_table(_PUBLISHED_TITLE, _PUBLISHED_COLUMNS, _published_cells()))
        console.print(f"\nrecipes, under {RECIPES}/")
        for number, row in enumerate(ROWS, start=1):
            console.print(f"{number:>3}  {row.recipe}", soft_wrap=True)
        _print_notes(console, published.notes())
        for found in (self.recorded, self.work_dirs):
            console.print()
            if not found.measurements:
                console.print(found.title, soft_wrap=True)
                continue
            console.print(_table(found.title, _MEASURED_COLUMNS, map(_measured_cells, found.measurements)))
            console.print()
            for details, sources in found.by_data().items():
                for line in (details, *(f"  {source}" for source in sources)):
                    console.print(line, soft_wrap=True)
        _print_notes(console, MEASURED_NOTES)

    def markdown(self) -> str:
        """The tables with their notes, as GitHub shows Markdown."""
        rows = [[*cells, f"`{row.recipe}`"] for cells, row in zip(_published_cells(), ROWS, strict=True)]
        lines = [f"**{_PUBLISHED_TITLE}**", ""]
        lines += _markdown_table((*_PUBLISHED_COLUMNS, f"recipe, under {RECIPES}/"), rows)
        lines += ["", *(f"- {note}" for note in published.notes()), ""]
        for found in (self.recorded, self.work_dirs):
            lines += [f"**{found.title}**", ""]
            if found.measurements:
                rows = [[*_measured_cells(one), ", ".join(one.sources)] for one in found.measurements]
                lines += [*_markdown_table((*_MEASURED_COLUMNS, "source"), rows), ""]
                lines += [*(f"- {details}" for details in found.by_data()), ""]
        return "\n".join([*lines, *(f"- {note}" for note in MEASURED_NOTES)])


def _published_cells() -> Iterable[list[str]]:
    for number, row in enumerate(ROWS, start=1):
        matched = row.matched_student
        yield [
            str(number),
            row.detector,
            f"R{row.teacher_depth} -> R{row.student_depth}",
            *(_figure(value) for value in (row.teacher, row.student, row.distilled)),
            _figure(row.gain, "+"),
            _figure(matched.mean_average_precision if matched else None),
            _figure(row.like_for_like_gain, "+"),
        ]


def _measured_cells(measurement: Measurement) -> list[str]:
    return [
        measurement.recipe.rpartition("/")[2].removesuffix(".py"),
        measurement.data,
        measurement.split,
        *(
            spread.text() if spread else "-"
            for spread in (measurement.teacher, measurement.alone, measurement.distilled)
        ),
        measurement.gain.text("+") if measurement.gain else "-",
        " ".join(map(str, measurement.seeds)),
    ]


def _figure(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.1f}"


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(
            column, justify="left" if column in _LEFT else "right", no_wrap=column not in ("recipe", "data", "seeds"),
            overflow="fold",
        )  # fmt: skip
    for cells in rows:
        table.add_row(*cells)
    return table


def _print_notes(console: Console, notes: Iterable[str]) -> None:
    console.print()
    for note in notes:
        console.print(textwrap.fill(note, console.width, initial_indent="- ", subsequent_indent="  "))


def _markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    rules = ["---" if column.partition(",")[0] in _LEFT else "---:" for column in columns]
    escaped = ([cell.replace("|", "\\|") for cell in cells] for cells in rows)
    return [f"| {' | '.join(cells)} |" for cells in (columns, rules, *escaped)]
