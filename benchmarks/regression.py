"""Whether training has become faster or slower since a commit: this tree and that one in turns, on one machine.

    python benchmarks/regression.py --baseline COMMIT [--rounds 5] [--out FILE]

The baseline is checked out by `git worktree add` into a temporary folder. Every measurement is a fresh process, A B A B
... in each round, all on the same config, teacher and images, with this interpreter's packages:

    run    images a second of `cskd-train run`, data loading included, without the first steps: a distilled epoch of
           the demo's RetinaNet and Faster R-CNN on generated shapes
    step   steps a second of the distilled step of benchmarks/step.py, each tree's own copy, on the recipe's own models

    ratio = this tree / baseline, over 1 where this tree is faster; a ratio a round, their median, the least and largest

One JSON line a measurement. Nothing else may run on the machine meanwhile.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parent))
import machine
import processes
import stored
from run import of_log

ROOT = Path(__file__).parents[1]
FAMILIES = ("RetinaNet", "FasterRCNN")
PACKAGES = ("cskd-core", "cskd-data", "cskd-train", "cskd-deploy")
BATCH_SIZE = 4
Measure = Callable[[Path, Path], float]  # a tree, an empty folder -> so much a second


@click.command(help=__doc__, context_settings={"show_default": True, "max_content_width": 120})
@click.option("--baseline", required=True, metavar="COMMIT")
@click.option("--rounds", type=click.IntRange(min=1), default=5)
@click.option("--images", type=click.IntRange(min=BATCH_SIZE), default=160, help="Of a run.")
@click.option("--threads", type=click.IntRange(min=1), default=2, help="Of the processor.")
@click.option("--out", type=click.Path(path_type=Path), help="The JSON lines.")
def main(baseline: str, rounds: int, images: int, threads: int, out: Path | None) -> None:
    stored.ready(out)
    with processes.signals_raised(), checked_out(baseline) as tree, tempfile.TemporaryDirectory() as scratch:
        head = {
            "command": shlex.join(["python", "benchmarks/regression.py", *sys.argv[1:]]),
            "commit": machine.commit(ROOT),
            "baseline": machine.commit(tree),
            **machine.processor(),
            "threads": threads,
            "versions": machine.versions(),
        }
        rows = []
        for name, measure in measurements(Path(scratch), images, threads).items():
            found = compared(measure, tree, rounds, Path(scratch))
            click.echo(
                f"{name:<16} this tree / {baseline}: {found['ratio']:.3f} "
                f"({found['least']:.3f} to {found['largest']:.3f} in {rounds} rounds)"
            )
            rows.append({"measured": name, **found, **head})
            stored.write_lines(out, rows)
    click.echo("".join(json.dumps(row) + "\n" for row in rows), nl=False)


def measurements(scratch: Path, images: int, threads: int) -> dict[str, Measure]:
    """What is compared; configs and data are written once, from this tree."""
    from shapes_recipe import write_recipe

    found: dict[str, Measure] = {}
    for family in FAMILIES:
        config = write_recipe(scratch, family, images=images, size=(128, 128), batch_size=BATCH_SIZE, workers=1)
        found[f"run {family}"] = run_of(config, threads)
    for family in FAMILIES:
        found[f"step {family}"] = step_of(family, threads)
    return found


def run_of(config: Path, threads: int) -> Measure:
    """Images a second of `cskd-train run`."""

    def measure(tree: Path, folder: Path) -> float:
        in_tree(tree, threads, "-m", "cskd_train.cli", "run", str(config), "--work-dir", str(folder), "--device", "cpu")
        return of_log(folder / "log.jsonl", BATCH_SIZE)["images_per_second"]

    return measure


def step_of(family: str, threads: int) -> Measure:
    """Distilled steps a second."""

    def measure(tree: Path, folder: Path) -> float:
        options = [
            "--families",
            family,
            "--rounds",
            "3",
            "--threads",
            str(threads),
            "--json",
            str(folder / "step.json"),
        ]
        in_tree(tree, threads, str(tree / "benchmarks" / "step.py"), *options)
        return float(1 / json.loads((folder / "step.json").read_text(encoding="utf-8"))["distilled_s"])

    return measure


def compared(measure: Measure, baseline: Path, rounds: int, scratch: Path) -> dict[str, Any]:
    """Both trees in turns; which of them comes first changes from round to round."""
    found: dict[Path, list[float]] = {baseline: [], ROOT: []}
    for number in range(rounds):
        for tree in [baseline, ROOT][:: -1 if number % 2 else 1]:
            folder = scratch / "one"
            folder.mkdir()
            found[tree].append(measure(tree, folder))
            shutil.rmtree(folder)
    ratios = [mine / theirs for theirs, mine in zip(found[baseline], found[ROOT], strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "largest": max(ratios),
        "ratios": ratios,
        "per_second": found[ROOT],
        "baseline_per_second": found[baseline],
    }


def in_tree(tree: Path, threads: int, *arguments: str) -> None:
    """Run the interpreter on a tree's own packages."""
    paths = [str(tree / "packages" / package / "src") for package in PACKAGES]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads)}
    done = processes.run([sys.executable, *arguments], cwd=tree, env=environment, grace=2 * processes.GRACE)
    if done.returncode:
        raise click.ClickException(f"{tree}: {shlex.join(arguments)} failed:\n{done.stderr[-2000:]}")


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A work tree of a commit, for as long as the context lasts."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "baseline"
        added = subprocess.run(
            ["git", "-C", ROOT, "worktree", "add", "--detach", tree, commit],
            capture_output=True,
            text=True,
            check=False,
        )
        if added.returncode:
            raise click.ClickException(f"--baseline {commit}: {added.stderr.strip()}")
        try:
            yield tree
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", tree], capture_output=True, check=False)


if __name__ == "__main__":
    main()
