"""The plan of benchmarks/gain.py: its studies as runs, and which of them are the same or the best of several."""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click

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

    Args:
        records: of this machine.

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
        records: of this machine, for one computes other sums than another.
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
                    f"{run.study} takes the best of {wanted!r}, and {one.name} has no record of this machine yet: "
                    f"begin with --study {study}"
                )
            values.setdefault(one.method, []).append(recorded[one.key]["val"]["bbox_mAP"])
    return study, max(values, key=lambda name: statistics.fmean(values[name]))


def recorded_elsewhere(
    run: Run, plan: Mapping[str, Any], records: Sequence[Mapping[str, Any]], work_dir: Path
) -> Mapping[str, Any] | None:
    """The record of another study's run that is the same: config, settings, epochs, seed, data, teacher, test split.

    Args:
        records: of this machine: a pair comes from one.
        work_dir: of all studies.
    """

    def what_is_run(one: Run) -> tuple[Any, ...]:
        words = [assignments(settings, work_dir / one.study) for settings in (one.settings, one.test)]
        data = plan["studies"][one.study].get("prepare")
        return one.config, one.epochs, one.seed, one.teacher_of, one.split, data, words

    recorded = {key_of(one): one for one in records}
    for other in runs_of(plan):
        if other.study != run.study and TEACHER not in (other.method, run.method) and other.key in recorded:
            other = decided(other, plan, records)
            if what_is_run(other) == what_is_run(run):
                return recorded[other.key]
    return None


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


def key_of(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """As `Run.key`."""
    return tuple(record[name] for name in ("study", "method", "epochs", "seed"))
