"""What distilling gains: a matrix of runs, data x detector x method x epochs x seed, as one job that can be resumed.

    python benchmarks/gain.py PLAN.toml --work-dir DIR --records docs/results/gain.jsonl [--study NAME] [--budget 2h]
    python benchmarks/gain_table.py docs/results/gain.jsonl --write docs/results/gain.md

Each run is a process of its own, `cskd-train run`, in a folder of DIR that its study, method, epochs and seed name. A
run that has a line among the records is not repeated, and one that another study had is taken over from its line; one
that was stopped in the middle goes on from its last.pth. A study's teacher is trained once. Its students are taken
seed by seed, the methods of a seed one after another, so that a pair (alone, distilled) is there as early as can be and
comes from one machine.

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
                         best mean mAP on val, by the records

Commands, and values that are text, are as on a command line, with $VARIABLES of the environment, {root} (the
repository), {folder} (of the study's runs) and {teacher} (its best checkpoint). A command is one of cskd-train, or a
script of the repository.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import tomllib
import torch

sys.path.insert(0, str(Path(__file__).parent))
import machine

from cskd_train import mm  # noqa: F401  (before any mmcv import)
from cskd_train.files.config import load_config
from cskd_train.project.budget import duration, parse_duration, schedule

ROOT = Path(__file__).parents[1]
TEACHER = "teacher"


@dataclass(frozen=True)
class Run:
    """One run of a study.

    Attributes:
        config: of the recipe, from the repository's root.
        settings: for `--set`, beside those that follow from epochs and teacher.
        split: on which the best checkpoint is evaluated at the end, beside `val`.
        test: for `--set` there.
        teacher_of: the study whose teacher its students have.
        chosen: the method of another study that it is, as `STUDY/METHOD`, where it is the best of several.
    """

    study: str
    data: str
    detector: str
    method: str
    config: str
    epochs: int
    seed: int
    split: str = "test"
    settings: Mapping[str, Any] = field(default_factory=dict)
    test: Mapping[str, Any] = field(default_factory=dict)
    teacher_of: str = ""
    chosen: str = ""

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.study}/{self.method}_{self.epochs}_seed{self.seed}"

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from all other runs."""
        return self.study, self.method, self.epochs, self.seed


def runs_of(plan: Mapping[str, Any], study: str | None = None) -> Iterator[Run]:
    """The runs of a plan in the order in which they are taken, each study's teacher first; see `decided` for `best_of`.

    Raises:
        click.UsageError: there is no study of that name.
    """
    studies = plan["studies"]
    if study is not None and study not in studies:
        raise click.UsageError(f"there is no study {study!r}; the plan has {', '.join(studies)}")
    for name, one in studies.items():
        if study not in (None, name):
            continue
        common = {"study": name, "data": one["data"], "split": one.get("split", "test"), "test": one.get("test", {})}
        teacher, settings = one["teacher"], one.get("set", {})
        common["teacher_of"] = teacher if isinstance(teacher, str) else name
        if not isinstance(teacher, str):
            yield Run(
                method=TEACHER,
                detector=f"{one['detector']}'s teacher",
                config=teacher["config"],
                epochs=teacher["epochs"],
                seed=teacher.get("seed", 0),
                settings={**settings, **teacher.get("set", {})},
                **common,
            )
        of_methods = {method: how.get("epochs", one["epochs"]) for method, how in one["methods"].items()}
        lengths = dict.fromkeys(epochs for own in of_methods.values() for epochs in own)
        for epochs, seed, (method, how) in itertools.product(lengths, one["seeds"], one["methods"].items()):
            if epochs in of_methods[method]:
                config, own = ("", {}) if "best_of" in how else method_of(one["methods"], method)
                yield Run(
                    method=method,
                    detector=one["detector"],
                    config=config,
                    epochs=epochs,
                    seed=seed,
                    settings={**settings, **own},
                    **common,
                )


def method_of(methods: Mapping[str, Any], name: str) -> tuple[str, dict[str, Any]]:
    """Config and settings of a method."""
    one = methods[name]
    config, settings = method_of(methods, one["like"]) if "like" in one else (one["config"], {})
    return config, {**settings, **one.get("set", {})}


def decided(run: Run, plan: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> Run:
    """A run with config and settings of the method that is the best of several, where its plan says so.

    Raises:
        click.UsageError: a method of its study, this one or another, cannot be decided by the records.
    """
    methods = plan["studies"][run.study]["methods"]
    best = {name: best_of(how["best_of"], plan, records, run) for name, how in methods.items() if "best_of" in how}
    if run.method not in best:
        return run
    study, method = best[run.method]
    config, settings = method_of(plan["studies"][study]["methods"], method)
    settings = {**run.settings, **settings, **methods[run.method].get("set", {})}
    return replace(run, config=config, settings=settings, chosen=f"{study}/{method}")


def best_of(wanted: str, plan: Mapping[str, Any], records: Sequence[Mapping[str, Any]], run: Run) -> tuple[str, str]:
    """Study and name of the method with the best mean mAP on val; of equals the first in the plan.

    Args:
        wanted: `STUDY:PREFIX`, what the names of the methods begin with.
        run: whose study asks, for the message.

    Raises:
        click.UsageError: the plan has no such method, or a run of one has no record.
    """
    study, _, prefix = wanted.partition(":")
    if study not in plan["studies"] or not any(name.startswith(prefix) for name in plan["studies"][study]["methods"]):
        raise click.UsageError(f"{run.study} takes the best of {wanted!r}, and the plan has no such method")
    values: dict[str, list[float]] = {}
    recorded = {key_of(one): one for one in records}
    for one in runs_of(plan, study):
        if one.method != TEACHER and one.method.startswith(prefix):
            if one.key not in recorded:
                raise click.UsageError(
                    f"{run.study} takes the best of {wanted!r}, and {one.name} has no record yet: begin with "
                    f"--study {study}"
                )
            values.setdefault(one.method, []).append(recorded[one.key]["val"]["bbox_mAP"])
    return study, max(values, key=lambda name: statistics.fmean(values[name]))


def recorded_elsewhere(
    run: Run, plan: Mapping[str, Any], records: Sequence[Mapping[str, Any]], work_dir: Path
) -> Mapping[str, Any] | None:
    """The record of another study's run that is the same: config, settings, epochs, seed, data, teacher, test split.

    One of another processor is not: a pair comes from one.

    Args:
        work_dir: of all studies.
    """

    def what_is_run(one: Run) -> tuple[Any, ...]:
        words = [assignments(settings, work_dir / one.study) for settings in (one.settings, one.test)]
        data = plan["studies"][one.study].get("prepare")
        return one.config, one.epochs, one.seed, one.teacher_of, one.split, data, words

    here = machine.processor()["processor"]
    recorded = {key_of(one): one for one in records if one.get("processor") == here}
    for other in runs_of(plan):
        if other.study != run.study and TEACHER not in (other.method, run.method) and other.key in recorded:
            other = decided(other, plan, records)
            if what_is_run(other) == what_is_run(run):
                return recorded[other.key]
    return None


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


def assignments(settings: Mapping[str, Any], folder: Path) -> list[str]:
    """The words of `--set`; text is taken as it would be typed.

    Args:
        folder: of the study's runs.
    """
    texts = {key: filled(value, folder) if isinstance(value, str) else repr(value) for key, value in settings.items()}
    return [word for key, text in texts.items() for word in ("--set", f"{key}={text}")]


def filled(text: str, folder: Path) -> str:
    """A text of the plan with its variables; those of the environment as the shell writes them.

    Raises:
        click.UsageError: the environment lacks one.
    """
    text = os.path.expandvars(text)
    if "$" in text:
        raise click.UsageError(f"the plan has {text!r}, and the environment no such variable")
    for name, value in (("root", ROOT), ("folder", folder), ("teacher", folder / TEACHER / "best.pth")):
        text = text.replace(f"{{{name}}}", str(value))
    return text


def execute(words: Sequence[str]) -> str:
    """Run one command of cskd-train, or a script, with this interpreter; gives its standard output.

    Raises:
        subprocess.CalledProcessError: it failed; what it said is on the terminal.
    """
    program = [str(ROOT / words[0])] if words[0].endswith(".py") else ["-m", words[0].replace("-", "_")]
    return subprocess.run([sys.executable, *program, *words[1:]], stdout=subprocess.PIPE, text=True, check=True).stdout


def processor_seconds() -> float:
    """Of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def epochs_done(work_dir: Path) -> int:
    """How many epochs the log of a run says were evaluated."""
    log = work_dir / "log.jsonl"
    return len(curve_of(log)) if log.exists() else 0


def record_of(
    run: Run, work_dir: Path, words: Sequence[str], test: Mapping[str, Any], processor_minutes: float
) -> dict[str, Any]:
    """The line of a run that is through.

    Args:
        test: what `cskd-train test --json` printed of its best checkpoint on the study's split.
        processor_minutes: of an epoch.
    """
    result = json.loads((work_dir / "result.json").read_text(encoding="utf-8"))
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
        "curve": curve_of(work_dir / "log.jsonl", processor_minutes if on_processor(result["device"]) else None),
        "improving": result["improving"],
        "processor_minutes": round(processor_minutes * run.epochs, 3),
        "seconds": result["seconds"],
        "device": result["device"],
        "threads": torch.get_num_threads(),
        "command": shlex.join(word.replace(str(ROOT) + "/", "") for word in words if word != "--resume"),
        "commit": machine.commit(ROOT),
        **machine.processor(),
        "versions": machine.versions(),
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


def on_processor(device: str) -> bool:
    """Whether a run's device, as its result.json names it, is a processor."""
    return device.startswith("CPU")


def read(records: Path) -> list[dict[str, Any]]:
    """The lines of a file of records; none where there is no file."""
    if not records.exists():
        return []
    return [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]


def write(records: Path, record: Mapping[str, Any]) -> None:
    """Add a line."""
    records.parent.mkdir(parents=True, exist_ok=True)
    with records.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def key_of(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """As `Run.key`."""
    return tuple(record[name] for name in ("study", "method", "epochs", "seed"))


def expected_seconds(run: Run, records: Sequence[Mapping[str, Any]]) -> float | None:
    """What a run will take, by the seconds an epoch of its method took in the latest run of its study."""
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
    prepared: set[tuple[str, str]] = set()
    for run in runs_of(content, study):
        done = read(records)
        if run.key in map(key_of, done):
            continue
        run = run if dry_run else decided(run, content, done)
        if same := recorded_elsewhere(run, content, done, work_dir):
            named = f"{same['study']}/{same['method']}"
            click.echo(f"{run.name}: that of {named}")
            if not dry_run:
                own = {"study": run.study, "method": run.method, "data": run.data, "detector": run.detector}
                write(records, {**same, **own, "run_of": same.get("run_of", named), **chosen_of(run)})
            continue
        expected = expected_seconds(run, done)
        lasts = "" if expected is None else f", about {duration(expected)}"
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
            raise click.UsageError(f"{run.name}: {run.teacher_of} has no teacher yet: begin with that study")
        for when in ("prepare",) if run.method == TEACHER else ("prepare", "after_teacher"):
            if (run.study, when) not in prepared:
                prepared.add((run.study, when))
                for command in studies[run.study].get(when, []):
                    execute(shlex.split(filled(command, work_dir / run.study)))
        folder = teacher.parent if run.method == TEACHER else work_dir / run.name
        words = command_of(run, folder, teacher)
        used, before = processor_seconds(), epochs_done(folder)
        execute(words)
        minutes = (processor_seconds() - used) / 60 / max(run.epochs - before, 1)
        best = folder / "best.pth"
        settings = assignments(run.test, work_dir / run.study)
        test = json.loads(
            execute(["cskd-train", "test", str(best), "--split", run.split, "--errors", "--json", *settings])
        )
        write(records, record_of(run, folder, words, test, minutes))


if __name__ == "__main__":
    main()
