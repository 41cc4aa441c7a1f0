"""What distilling gains: a matrix of runs, data x detector x method x epochs x seed, as one job that can be resumed.

    python benchmarks/gain.py PLAN.toml --work-dir DIR --records DIR/gain.jsonl [--study NAME] [--budget 2h]
    python benchmarks/gain_table.py DIR/gain.jsonl

Each run is a process of its own, `cskd-train run`, in a folder of DIR that its study, method, epochs and seed name. A
run that has a line of this machine among the records is not repeated, and one that another study had is taken over from
its line; one that was stopped in the middle goes on from its last.pth. Its folder keeps, in gain.json, by what commit
and machine it was trained and what that cost. A study's teacher is trained once. Its students are taken seed by seed,
the methods of a seed one after another, so that a pair (alone, distilled) is there as early as can be and comes from
one machine. docs/results/gain.jsonl has the records of this repository's page.

With --budget no run is begun that would not end in time, going by the seconds an epoch of that method took before.

One JSON line a run: study, data, detector, method, epochs, seed, the metrics of the best checkpoint on `val` and on the
study's other split, what each kind of error costs there, mAP by epoch with the minutes until then, seconds, command,
commit, processor and its instruction sets, versions. Where the detector is trained on a processor, minutes are those of
processor time, of all threads and of the evaluations too, so that other work on the machine does not change them; on a
GPU those that passed.

A study of the plan:

    data, detector       for the tables
    prepare              commands of cskd-train that make its data, such as `data shapes ...`; repeated at every call
    teacher              config, epochs, and what --set gives it beside; or the study whose teacher it has
    after_teacher        commands once the teacher is there
    epochs, seeds        of the students; a method may have `epochs` of its own
    set, test            for --set: of all its runs; of `cskd-train test` alone (another data set, say), with `split`
    methods              name -> config, and `set` of its own; or `like`, another method, and what `set` changes in it;
                         or `best_of`, "STUDY:PREFIX": of that study's methods whose names begin so the one with the
                         best mean mAP on val, by the records of this machine

Commands, and values that are text, are as on a command line, with $VARIABLES of the environment, {root} (the
repository), {folder} (of the study's runs) and {teacher} (its best checkpoint). A command is one of cskd-train, or a
script of the repository.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import tomllib

sys.path.insert(0, str(Path(__file__).parent))
import machine
import processes
import stored
from gain_origin import here, is_through, machine_of, minutes_of, origin_of, trained
from gain_plan import (
    ROOT,
    TEACHER,
    Run,
    assignments,
    decided,
    filled,
    key_of,
    recorded_elsewhere,
    runs_of,
)

from cskd_train import mm  # noqa: F401  (before any mmcv import)
from cskd_train.files.config import load_config
from cskd_train.project.budget import duration, parse_duration, schedule

GRACE = 120.0  # seconds in which a run that is stopped may save


def command_of(run: Run, work_dir: Path, teacher: Path | None) -> list[str]:
    """The `cskd-train` command of a run; it resumes what its folder has.

    Args:
        teacher: the study's, of which a distilled run learns.
    """
    cfg = load_config(str(ROOT / run.config))
    settings = {**schedule(cfg, run.epochs), **run.settings}
    if cfg.get("distill") and teacher is not None:
        settings["distill.teacher.checkpoint"] = str(teacher)
    words = ["cskd-train", "run", str(ROOT / run.config), "--work-dir", str(work_dir), "--seed", str(run.seed)]
    if (work_dir / "last.pth").exists():
        words.append("--resume")
    return [*words, *assignments(settings, work_dir.parent)]


def execute(words: Sequence[str]) -> str:
    """Run one command of cskd-train, or a script, with this interpreter; gives its standard output.

    Raises:
        click.ClickException: it failed; what it said is on the terminal.
    """
    program = [str(ROOT / words[0])] if words[0].endswith(".py") else ["-m", words[0].replace("-", "_")]
    done = processes.run([sys.executable, *program, *words[1:]], stderr=None, grace=GRACE)
    if done.returncode:
        raise click.ClickException(f"{shlex.join(words)} failed with exit code {done.returncode}")
    return done.stdout


def record_of(run: Run, work_dir: Path, test: Mapping[str, Any]) -> dict[str, Any]:
    """The line of a run that is through, by what its folder has.

    Args:
        test: what `cskd-train test --json` printed of its best checkpoint on the study's split.
    """
    result = json.loads((work_dir / "result.json").read_text(encoding="utf-8"))
    origin = origin_of(work_dir)
    minutes = minutes_of(origin, result)
    of_an_epoch = minutes / run.epochs if machine.on_processor(result["device"]) else None
    names = ("threads", "command", "commit", "commits", "processor", "instructions", "versions")
    return {
        "study": run.study,
        "data": run.data,
        "detector": run.detector,
        "method": run.method,
        **chosen_of(run),
        "epochs": run.epochs,
        "seed": run.seed,
        "val": dict(result["best"]),
        "best_epoch": result["best_epoch"],
        "last_val": dict(result["last"]),
        "split": run.split,
        "test": dict(test["metrics"]),
        "errors": dict(test["errors"]),
        "curve": curve_of(work_dir / "log.jsonl", of_an_epoch),
        "improving": result["improving"],
        "processor_minutes": round(minutes, 3),
        "seconds": result["seconds"],
        "device": result["device"],
        **{name: origin[name] for name in names if name in origin},
    }


def chosen_of(run: Run) -> dict[str, str]:
    """What a record says of a method that is the best of several."""
    return {"chosen": run.chosen} if run.chosen else {}


def curve_of(log: Path, minutes: float | None = None) -> list[dict[str, float]]:
    """mAP after each epoch that was evaluated, and the minutes until then.

    Args:
        minutes: of an epoch; None takes those of the training steps from the log.
    """
    curve, seconds, before = [], 0.0, 0
    for line in log.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["mode"] == "train":
            seconds += record["time"] * (record["iter"] - before)
            before = record["iter"]
        elif record["mode"] == "val":  # a distilled run's first record is its teacher's
            until = seconds / 60 if minutes is None else minutes * record["epoch"]
            curve.append({"epoch": record["epoch"], "minutes": round(until, 3), "mAP": record["bbox_mAP"]})
    return curve


def read(records: Path) -> list[dict[str, Any]]:
    """The lines of a file of records; none where there is no file."""
    if not records.exists():
        return []
    return [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]


def write(records: Path, record: Mapping[str, Any]) -> None:
    """Add a line."""
    with records.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def expected_seconds(run: Run, records: Sequence[Mapping[str, Any]]) -> float | None:
    """What a run will take, by the seconds an epoch of its method took in the latest run of its study.

    Args:
        records: of this machine.
    """
    alike = [one for one in records if (one["study"], one["method"]) == (run.study, run.method)]
    return alike[-1]["seconds"] / alike[-1]["epochs"] * run.epochs if alike else None


@click.command(help=__doc__, context_settings={"max_content_width": 120})
@click.argument("plan", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--work-dir", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the runs.")
@click.option("--records", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The JSON lines.")
@click.option("--study", help="This one alone.")
@click.option("--budget", help="Time for this call, such as 2h.  [default: all of the plan]")
@click.option("--dry-run", is_flag=True, help="Print what is left to be run.")
def main(plan: Path, work_dir: Path, records: Path, study: str | None, budget: str | None, dry_run: bool) -> None:
    work_dir = work_dir.resolve()  # a run may be given it as a path of data
    began, limit = time.monotonic(), parse_duration(budget) if budget else float("inf")
    content = tomllib.loads(plan.read_text(encoding="utf-8"))
    studies = content["studies"]
    planned, this = list(runs_of(content, study)), machine.key_of(here())
    tell_of_others(planned, read(records), this)
    if not dry_run:
        stored.ready(records)
    prepared: set[tuple[str, str]] = set()
    left_over = 0
    for run in planned:
        found = read(records)
        done = [one for one in found if machine.key_of(one) == this]
        folder = folder_of(run, work_dir)
        if run.key in map(key_of, done):
            continue
        try:
            trained_on = machine_of(run, folder)
        except click.UsageError as error:
            if not dry_run:
                raise
            click.echo(error.message)
            left_over += 1
            continue
        if (run.key, trained_on) in ((key_of(one), machine.key_of(one)) for one in found):
            continue
        left_over += 1
        run = run if dry_run else decided(run, content, done)
        if same := recorded_elsewhere(run, content, done, work_dir):
            named = f"{same['study']}/{same['method']}"
            click.echo(f"{run.name}: that of {named}")
            if not dry_run:
                own = {"study": run.study, "method": run.method, "data": run.data, "detector": run.detector}
                write(records, {**same, **own, "run_of": same.get("run_of", named), **chosen_of(run)})
            continue
        expected = 0.0 if is_through(run, folder) else expected_seconds(run, done)
        lasts = "" if not expected else f", about {duration(expected)}"
        if dry_run:
            click.echo(f"{run.name}{lasts}")
            continue
        left = limit - (time.monotonic() - began)
        if left <= 0 or (expected or 0) > left:
            click.echo(f"{run.name}{lasts}: {duration(max(left, 0))} are left; the same command goes on")
            return
        click.echo(f"{run.name}{lasts}" + (f", {run.chosen}" if run.chosen else ""))
        teacher = work_dir / run.teacher_of / TEACHER / "best.pth"
        if run.method != TEACHER and not teacher.exists():
            if any(key_of(one)[:2] == (run.teacher_of, TEACHER) for one in found):
                raise click.UsageError(
                    f"{run.name}: {records} has the teacher of {run.teacher_of}, and {teacher} is not there: give the "
                    "--work-dir that has it, or another file of --records"
                )
            raise click.UsageError(f"{run.name}: {run.teacher_of} has no teacher yet: begin with that study")
        for when in ("prepare",) if run.method == TEACHER else ("prepare", "after_teacher"):
            if (run.study, when) not in prepared:
                prepared.add((run.study, when))
                for command in studies[run.study].get(when, []):
                    execute(shlex.split(filled(command, work_dir / run.study)))
        if not is_through(run, folder):
            words = command_of(run, folder, teacher)
            with trained(folder, words):
                execute(words)
        settings = assignments(run.test, work_dir / run.study)
        best = str(folder / "best.pth")
        test = json.loads(execute(["cskd-train", "test", best, "--split", run.split, "--errors", "--json", *settings]))
        write(records, record_of(run, folder, test))
    if not left_over:
        click.echo(
            f"all {len(planned)} runs are recorded in {records}: to repeat them, give a --work-dir and a file of "
            "--records of your own"
        )


def folder_of(run: Run, work_dir: Path) -> Path:
    """Where a run is trained."""
    return work_dir / run.study / TEACHER if run.method == TEACHER else work_dir / run.name


def tell_of_others(planned: Sequence[Run], records: Sequence[Mapping[str, Any]], this: str) -> None:
    """Say which runs of a plan the records have of other machines."""
    keys = {run.key for run in planned}
    others = Counter(machine.key_of(one) for one in records if key_of(one) in keys)
    for name, count in others.items():
        if name != this:
            click.echo(f"{count} of the runs are recorded of another machine, {name}, and are not compared with others")


if __name__ == "__main__":
    main()
