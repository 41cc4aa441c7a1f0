"""The tables and plots of what distilling gains, from the lines that benchmarks/gain.py wrote.

    python benchmarks/gain_table.py docs/results/gain.jsonl --write docs/results/gain.md

Of each study and number of epochs: mean and standard deviation over the seeds of each method, and the difference of
each to the student alone, seed by seed: its mean and, from two seeds on, the 95 % interval of that mean by Student's t.
The student alone is that of as many epochs, or the only one where a study gives it epochs of its own; a seed that one
side lacks is left out of the difference. Then what each kind of error costs the teacher and the students on the split
they are tested on. A study with runs of several machines (processors, their instructions, GPUs) has all of that, and a
plot, of each by itself: nothing is a mean or a difference over two. What is written stands between two marks in the
page, with the plots beside it: mAP by epochs and by minutes, a line a method, the band one standard deviation.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent))
import machine
from gain import read
from gain_plan import TEACHER, key_of

ALONE = "alone"
LINES = ("-", "--", ":", "-.")  # of a plot, from the longest training on
BEGIN, END = "<!-- benchmarks/gain_table.py: begin -->", "<!-- benchmarks/gain_table.py: end -->"
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """Values in points of mAP, their mean and their standard deviation (over n - 1; None of one alone)."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def half_width(self) -> float | None:
        """Half of the interval of the mean by Student's t with n - 1 degrees of freedom."""
        if self.deviation is None:
            return None
        n = len(self.values)
        return float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * self.deviation / math.sqrt(n)

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + ("" if self.deviation is None else f" ± {self.deviation:.1f}")


@dataclass(frozen=True)
class Part:
    """What a study has of one machine.

    Attributes:
        number: of the machine in the study, from 1 on.
        several: whether the study has other machines too.
        records: one a run, the latest.
    """

    study: str
    machine: str
    number: int
    several: bool
    records: tuple[Mapping[str, Any], ...]

    @property
    def plot(self) -> str:
        """The file of its plot."""
        return f"gain_{self.study}.svg" if self.number == 1 else f"gain_{self.study}_{self.number}.svg"


def parts_of(records: Sequence[Mapping[str, Any]]) -> list[Part]:
    """Studies, and within them machines, in the order in which they were recorded first."""
    found: dict[str, dict[str, dict[tuple[Any, ...], Mapping[str, Any]]]] = {}
    for one in records:
        found.setdefault(one["study"], {}).setdefault(machine.key_of(one), {})[key_of(one)] = one
    return [
        Part(study, name, number, len(machines) > 1, tuple(runs.values()))
        for study, machines in found.items()
        for number, (name, runs) in enumerate(machines.items(), start=1)
    ]


@dataclass(frozen=True)
class Row:
    """A method in one study, after one number of epochs, on one machine.

    Attributes:
        gain: its difference to the student alone in the seeds that both have; None of that student itself, and where
            no seed is in both.
    """

    epochs: int
    method: str
    val: Spread
    test: Spread
    gain: Spread | None
    minutes: float


def rows_of(part: Part, split: str = "test") -> Iterator[Row]:
    """The rows of a study's table, in the order in which their runs were recorded.

    Args:
        split: on which gains are taken.
    """
    groups: dict[int, dict[str, dict[int, Mapping[str, Any]]]] = {}
    for one in part.records:
        if one["method"] != TEACHER:
            groups.setdefault(one["epochs"], {}).setdefault(one["method"], {})[one["seed"]] = one
    apart = [methods for methods in groups.values() if methods.keys() == {ALONE}]
    for epochs, methods in groups.items():
        alone = methods.get(ALONE) or (apart[0][ALONE] if len(apart) == 1 else {})
        for method, runs in methods.items():
            shared = [] if method == ALONE else sorted(runs.keys() & alone.keys())
            gain = [_points(runs[seed], split) - _points(alone[seed], split) for seed in shared]
            yield Row(
                epochs,
                method,
                Spread(tuple(_points(one, "val") for one in runs.values())),
                Spread(tuple(_points(one, "test") for one in runs.values())),
                Spread(tuple(gain)) if gain else None,
                statistics.fmean(_minutes(one) for one in runs.values()),
            )


def _minutes(record: Mapping[str, Any]) -> float:
    """Of processor time for a run on a processor, else those that passed."""
    return float(record["processor_minutes"] if machine.on_processor(record["device"]) else record["seconds"] / 60)


def _points(record: Mapping[str, Any], split: str) -> float:
    return 100 * float(record[split]["bbox_mAP"])


def tables(records: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a table a study, its teacher above it; one a machine where a study has several."""
    lines = []
    for part in parts_of(records):
        own = part.records
        if part.number == 1:
            lines += [f"## {part.study}: {own[0]['data']}, {_detector(own)}", ""]
        if part.several:
            lines += [f"### {part.study} on {part.machine}", ""]
        for teacher in (one for one in own if one["method"] == TEACHER):
            lines.append(
                f"Teacher: {teacher['epochs']} epochs, {_points(teacher, 'val'):.1f} on val, "
                f"{_points(teacher, 'test'):.1f} on {teacher['split']}"
                + (", still rising at the end." if teacher["improving"] else ".")
            )
        lines += ["", "| epochs | method | n | val mAP | test mAP | against alone | 95 % interval | minutes |"]
        lines.append("|---|---|---|---|---|---|---|---|")
        lines += [_line(row) for row in rows_of(part)]
        chosen = dict.fromkeys((one["method"], one["chosen"]) for one in own if "chosen" in one)
        if chosen:
            best = ", ".join(f"{method} is {found}" for method, found in chosen)
            lines += ["", f"Found best on val before: {best}."]
        taken = dict.fromkeys((one["method"], one["run_of"]) for one in own if "run_of" in one)
        if taken:
            runs = ", ".join(f"{method} is {found}" for method, found in taken)
            lines += ["", f"Run once for two studies: {runs}."]
        lines += ["", *errors_of(part), ""]
        facts = {
            f"{machine.key_of({**one, 'device': None})}, {one['device']}, commit {commit[:10]}."
            for one in own
            for commit in one.get("commits", [one["commit"]])
        }
        lines += [*sorted(facts), ""]
    return "\n".join(lines)


def errors_of(part: Part) -> list[str]:
    """Markdown: what each kind of error costs the teacher, and each method by its epochs, a mean over the seeds."""
    records = part.records
    kinds = list(records[0]["errors"]["dap"])
    lines = [f"| points of AP50 | {' | '.join(['AP50', *kinds])} |", f"|{'---|' * (len(kinds) + 2)}"]
    for method, epochs in sorted(
        dict.fromkeys((one["method"], one["epochs"]) for one in records),
        key=lambda one: 0 if one[0] == TEACHER else one[1],
    ):
        runs = [one for one in records if (one["method"], one["epochs"]) == (method, epochs)]
        means = [statistics.fmean(one["errors"]["ap"] for one in runs)]
        means += [statistics.fmean(one["errors"]["dap"][kind] for one in runs) for kind in kinds]
        lines.append(f"| {method}, {epochs} epochs | {' | '.join(f'{mean:.1f}' for mean in means)} |")
    return lines


def _line(row: Row) -> str:
    gain, interval = "", ""
    if row.gain is not None:
        gain, half = f"{row.gain.mean:+.1f}", row.gain.half_width
        interval = "" if half is None else f"{row.gain.mean - half:+.1f} to {row.gain.mean + half:+.1f}"
    return (
        f"| {row.epochs} | {row.method} | {len(row.val.values)} | {row.val} | {row.test} | {gain} | {interval} "
        f"| {row.minutes:.1f} |"
    )


def _detector(records: Sequence[Mapping[str, Any]]) -> str:
    return next((str(one["detector"]) for one in records if one["method"] != TEACHER), "teacher alone")


def bands(part: Part, across: str) -> dict[tuple[str, int], list[tuple[float, Spread]]]:
    """(method, epochs) -> mAP over `epoch` or `minutes` of the seeds together, each at their mean.

    Every epoch that a seed was evaluated after has a point, of those seeds that were.
    """
    curves: dict[tuple[str, int], dict[int, list[Mapping[str, float]]]] = {}
    for one in part.records:
        if one["method"] != TEACHER:
            of_epochs = curves.setdefault((one["method"], one["epochs"]), {})
            for point in one["curve"]:
                of_epochs.setdefault(point["epoch"], []).append(point)
    return {
        name: [
            (statistics.fmean(point[across] for point in points), Spread(tuple(100 * point["mAP"] for point in points)))
            for _, points in sorted(of_epochs.items())
        ]
        for name, of_epochs in curves.items()
    }


def draw(part: Part, file: Path) -> None:
    """mAP on val by epochs, and by minutes of training."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasSVG(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    records = part.records
    lengths = sorted({one["epochs"] for one in records if one["method"] != TEACHER}, reverse=True)
    for axes, across, label in ((left, "epoch", "epochs"), (right, "minutes", "minutes of training")):
        colours = {name: f"C{index}" for index, name in enumerate(dict.fromkeys(one["method"] for one in records))}
        strokes = {epochs: LINES[index % len(LINES)] for index, epochs in enumerate(lengths)}
        for (method, epochs), points in bands(part, across).items():
            x, spreads = [point[0] for point in points], [point[1] for point in points]
            mean, around = [one.mean for one in spreads], [one.deviation or 0 for one in spreads]
            axes.plot(
                x,
                mean,
                color=colours[method],
                linewidth=1,
                label=f"{method}, {epochs} epochs",
                linestyle=strokes[epochs],
            )
            low, high = ([m + sign * s for m, s in zip(mean, around, strict=True)] for sign in (-1, 1))
            axes.fill_between(x, low, high, color=colours[method], alpha=0.2, linewidth=0)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    left.set_ylabel("val mAP, points")
    left.legend(fontsize="small")
    with matplotlib.rc_context({"svg.hashsalt": file.stem}):  # the same records, the same file
        figure.savefig(file, metadata={"Date": None})


def section(records: Sequence[Mapping[str, Any]]) -> str:
    """What stands in the page, with its marks."""
    pictures = [
        f"![{part.study}{f' on {part.machine}' if part.several else ''}: mAP by epochs and by minutes]({part.plot})"
        for part in parts_of(records)
    ]
    return "\n\n".join([BEGIN, tables(records).rstrip("\n"), *pictures, END])


@click.command(help=__doc__, context_settings={"max_content_width": 120})
@click.argument("records", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--write", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The page.  [default: print]"
)
def main(records: Path, write: Path | None) -> None:
    found = read(records)
    if write is None:
        click.echo(tables(found))
        return
    for part in parts_of(found):
        draw(part, write.with_name(part.plot))
    page = write.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    if END not in rest:
        raise click.UsageError(f"{write} has no {BEGIN} with {END} after it")
    after = rest.partition(END)[2]
    write.write_text(f"{before}{section(found)}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
