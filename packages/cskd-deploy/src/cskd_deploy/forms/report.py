"""What was found of every form: a row each, as plain data and as the table that a person reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

TITLES = ("form", "runs in", "MB", "mAP", "drop", "p50 ms", "p90 ms", "images/s", "agrees")
LEFT = 2  # columns of text


@dataclass(frozen=True)
class Row:
    """A form in a backend. What is None could not be had, and `fault` says why."""

    form: str  # the manifest's precision
    file: str
    backend: str
    device: str | None = None
    size_bytes: int | None = None
    file_sha256: str | None = None
    mean_average_precision: float | None = None  # points
    drop: float | None = None  # points below PyTorch's
    agreement: float | None = None  # share of the detections with a partner in PyTorch's
    p50_ms: float | None = None  # of an image, the whole
    p90_ms: float | None = None
    images_per_second: float | None = None  # one stream
    speedup: float | None = None  # over PyTorch's on the same device, in the same run, by medians of the whole
    requires: tuple[str, ...] = ()  # instruction sets without which a processor computes other numbers
    fault: str | None = None

    def cells(self) -> list[str]:
        """As `TITLES`."""

        def written(value: float | None, form: str, factor: float = 1) -> str:
            return "-" if value is None else format(factor * value, form)

        return [
            self.form,
            f"{self.backend} {self.device or ''}".rstrip(),
            written(self.size_bytes, ".1f", 1e-6),
            written(self.mean_average_precision, ".2f"),
            written(self.drop, "+.2f"),
            written(self.p50_ms, ".1f"),
            written(self.p90_ms, ".1f"),
            written(self.images_per_second, ".1f"),
            "-" if self.agreement is None else f"{100 * self.agreement:.1f} %",
        ]


@dataclass(frozen=True)
class FormsReport:
    """All rows, PyTorch first, and what they were taken on."""

    checkpoint: str
    sha256: str  # of the checkpoint
    evaluated_on: str
    images: int
    timed_on: str
    environment: Mapping[str, Any]
    rows: Sequence[Row]
    notes: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "checkpoint": self.checkpoint,
            "sha256": self.sha256,
            "evaluated_on": self.evaluated_on,
            "images": self.images,
            "timed_on": self.timed_on,
            "environment": dict(self.environment),
            "rows": [asdict(row) for row in self.rows],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        facts = self.environment
        sets = ", ".join(facts["instruction_sets"]) or "unknown"
        versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        lines = [
            f"{self.checkpoint}, mAP in points on {self.images} images of {self.evaluated_on}",
            f"{', '.join([facts['processor'], *facts['gpus']])}, {facts['threads']} threads; instruction sets: {sets}",
            f"{versions}; timed on {self.timed_on}, one at a time, forms in turns",
            "",
            *_table([TITLES, *(row.cells() for row in self.rows)]),
            "",
        ]
        lines += [f"- {row.form} in {row.backend}: {row.fault}" for row in self.rows if row.fault]
        return "\n".join([*lines, *(f"- {note}" for note in self.notes)]).rstrip("\n")


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown, its columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if place < LEFT else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if place < LEFT else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    return [line(rows[0]), line(rule), *map(line, rows[1:])]
