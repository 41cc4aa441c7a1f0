"""What a project's whole way came to, as a typed object that prints itself."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cskd_data.names import counted
from cskd_train.project.budget import REPORT_IMAGES, duration


@dataclass(frozen=True)
class Row:
    """One detector."""

    role: str  # teacher, student or distilled
    title: str
    epochs: int
    seconds: float  # of its training and evaluations
    improving: bool | None  # whether its mAP was still rising at the end; None where it cannot be told
    val: Mapping[str, float]  # COCO metrics of its best epoch
    test: Mapping[str, float]  # of that checkpoint on the test split


@dataclass(frozen=True)
class Distilled:
    """Teacher, student alone and distilled student beside each other, and the file that ships."""

    folder: str
    seed: int
    test: str  # annotation file
    test_images: int
    test_is_val: bool  # there are no test images: the epoch was chosen on these
    rows: tuple[Row, ...]
    file: Mapping[str, Any] | None  # path, sha256, mAP, latency; None without cskd-deploy
    budget: float | None  # seconds
    files: tuple[str, ...]
    report: str | None = None  # None where the page could not be written
    unlabeled: int = 0  # pictures without labels, which the distilled student alone has seen

    @property
    def gain(self) -> float | None:
        """Points of mAP on the test split that distilling changed; None without the student alone."""
        return self._points("distilled", "student")

    @property
    def seconds(self) -> float:
        """Of all trainings."""
        return sum(row.seconds for row in self.rows)

    def _points(self, one: str, other: str) -> float | None:
        by_role = {row.role: row.test["bbox_mAP"] for row in self.rows}
        return 100 * (by_role[one] - by_role[other]) if {one, other} <= {*by_role} else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {**asdict(self), "gain_points": self.gain}

    def __str__(self) -> str:
        which = "validation images, on which the epochs were chosen too" if self.test_is_val else "test images"
        head = ("", "mAP", "AP50", "val mAP", "epochs", "time")
        table = [
            (
                row.title,
                f"{row.test['bbox_mAP']:.3f}",
                f"{row.test['bbox_mAP_50']:.3f}",
                f"{row.val['bbox_mAP']:.3f}" if row.val else "",
                str(row.epochs),
                duration(row.seconds),
            )
            for row in self.rows
        ]
        if self.file is not None:
            metrics = self.file["metrics"]
            row = (
                "the exported file (ONNX)",
                f"{metrics['bbox_mAP']:.3f}",
                f"{metrics['bbox_mAP_50']:.3f}",
                "",
                "",
                "",
            )
            table.append(row)
        lines = [f"On {self.test_images} {which} ({self.test}):", "", *_aligned([head, *table]), "", *self._sentences()]
        if self.file is not None:
            times = [("", "p50 ms", "p90 ms", "images/s", "MB"), *map(_latency, self.file["latency"])]
            lines += ["", "Latency, one image at a time:", "", *_aligned(times), f"on {self.file['where']}"]
        lines += ["", "What was made:", *(f"  {file}" for file in self.files), "", *self._next()]
        return "\n".join(lines)

    def _next(self) -> list[str]:
        command = shlex.join(["cskd-train", "report", self.folder])
        if self.report is None:
            return ["Next, curves, errors by kind, and what each detects, in one page:", f"  {command}"]
        return [
            f"Next, open {self.report}: curves, errors by kind, and what each detects on at most {REPORT_IMAGES} "
            "validation images. On more of them:",
            f"  {command}",
        ]

    def _sentences(self) -> list[str]:
        lines = []
        if self.gain is not None:
            seen = f"; it saw {counted(self.unlabeled, 'picture')} without labels too" if self.unlabeled else ""
            epochs = {row.role: row.epochs for row in self.rows}
            alone, under = epochs["student"], epochs["distilled"]
            recipe = "same recipe" if alone == under else f"but {under} epochs against {alone} alone"
            lines.append(
                f"Distilling changed the student by {self.gain:+.1f} points of mAP: {recipe}, same seed "
                f"({self.seed}){seen}. One seed shows no spread."
            )
        if rising := [row.role for row in self.rows if row.improving]:
            files = " and ".join(
                file
                for file, roles in {"teacher.py": {"teacher"}, "student.py": {"student", "distilled"}}.items()
                if roles & {*rising}
            )
            lines.append(
                f"Still rising at the end: {', '.join(rising)}. More epochs would change these figures, and what "
                f"distilling adds to them: with a larger max_epochs in {files} the same command goes on with the runs."
            )
            if "teacher" in rising:
                distilled = Path(self.folder, "work_dirs", "distilled")
                lines[-1] += (
                    f" A student is trained anew under a teacher that has changed: remove {distilled} for that."
                )
        ahead = self._points("teacher", "student")
        if ahead is not None and ahead <= 0:
            lines.append(
                f"warning: the teacher is {-ahead:.1f} points below the student alone, and teaches it little that is "
                "right: train the teacher longer, or take a larger one, before any of this counts."
            )
        if self.file is not None:
            lines.append(f"Exporting lost {round(self.file['drop_points'], 2) + 0.0:.2f} points.")
        return lines


def _latency(one: Mapping[str, Any]) -> tuple[str, ...]:
    total = one["milliseconds"]
    speed, size = f"{one['images_per_second']:.1f}", f"{one['size_bytes'] / 1e6:.1f}"
    return one["backend"], f"{total['p50']:.1f}", f"{total['p90']:.1f}", speed, size


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:<{width}}" if place == 0 else f"{cell:>{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
