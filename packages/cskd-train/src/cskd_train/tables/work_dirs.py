"""Measurements in work dirs: `result.json` and `config.json` of finished runs, paired by what their configs say.

Runs belong to one row when they train the same student on the same data by the same schedule. Those with the same
`distill` block are its distilled runs, those with none are the student alone, and the teacher is the run that wrote the
checkpoint which the block names.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cskd_train.stored import current_config
from cskd_train.tables import measured
from cskd_train.tables.measured import Measurement, Spread, UnreadableError
from cskd_train.tables.paths import RESULT, likeliest, may_have_taught, ways

CONFIG = "config.json"
# What makes the student that a run trains: where one of these differs, two runs are not compared.
_RECIPE_KEYS = (
    "model", "data", "optimizer", "optimizer_config", "auto_scale_lr", "lr_config", "momentum_config", "runner",
    "amp", "fp16", "ema", "custom_hooks", "load_from",
)  # fmt: skip
_FREE_DATA_KEYS = ("workers_per_gpu", "test")  # change nothing of the student nor of its mAP on `val`
_UNLABELED = "unlabeled"
_SPLIT_KEYS = ("type", "data_root", "ann_file", "img_prefix", "classes", "dataset", "datasets")


@dataclass(frozen=True)
class FinishedRun:
    """A finished run as its work dir tells it; mAP in points."""

    folder: Path
    stated_folder: str  # where the run said that it was; the folder may have been moved since
    recipe: str
    seed: int
    started: str
    config: Mapping[str, Any]
    best: float
    last: float
    images: int | None = None  # of the validation split; None where the run does not say
    processes: int = 1

    @property
    def student(self) -> str:
        """Equal for runs that train the same student on the same data by the same schedule.

        As many images make a step: batches of one size, in processes or one after the other. What a distilled run has
        beside it, without labels, belongs to the distillation.
        """
        parts = {key: self.config[key] for key in _RECIPE_KEYS if self.config.get(key) is not None}
        data, free = self.config["data"], (*_FREE_DATA_KEYS, *([_UNLABELED] if self.config.get("distill") else []))
        parts["data"] = {key: value for key, value in data.items() if key not in free and value is not None}
        parts["batches_per_step"] = self.processes * (self.config.get("accumulate") or 1)
        return json.dumps(parts, sort_keys=True)

    @property
    def distill(self) -> str | None:
        """Equal for runs that are distilled alike, None for a plain run."""
        block, unlabeled = self.config.get("distill"), self.config["data"].get(_UNLABELED)
        return json.dumps([block, *([unlabeled] if unlabeled else [])], sort_keys=True) if block else None

    @property
    def teacher_checkpoint(self) -> str:
        """The file or URL that the `distill` block names, or nothing."""
        teacher = (self.config.get("distill") or {}).get("teacher")
        checkpoint = teacher.get("checkpoint") if isinstance(teacher, Mapping) else None
        return checkpoint if isinstance(checkpoint, str) else ""

    @property
    def validation(self) -> str:
        """Equal for runs that were evaluated on the same images."""
        return validation_of(self.config)

    @property
    def annotations(self) -> str:
        """The annotation file of the validation split, or nothing where the split is made of several."""
        split = self.config["data"]["val"]
        file = split.get("ann_file")
        return str(Path(split.get("data_root") or "", file)) if isinstance(file, str) else ""

    @property
    def data_name(self) -> str:
        """The folder of the data set."""
        root = self.config["data"]["val"].get("data_root") or self.config.get("data_root")
        if not root and self.annotations:
            folder = Path(self.annotations).parent
            root = folder.parent if folder.name == "annotations" else folder
        return Path(root).name if root else "unnamed"


def validation_of(config: Mapping[str, Any]) -> str:
    """Equal for configs of runs that are evaluated on the same images; empty for one without a validation split."""
    split = (config.get("data") or {}).get("val")
    if not isinstance(split, Mapping):
        return ""
    return json.dumps({key: split[key] for key in _SPLIT_KEYS if key in split}, sort_keys=True)


def find_in_work_dirs(folders: Iterable[Path], warn: Callable[[str], None]) -> list[Measurement]:
    """The measurements of the finished runs in folders of work dirs, or in a folder that is itself a work dir.

    Args:
        warn: takes a line for each file that is broken or none of ours, and for each run left out.
    """
    warn = functools.cache(warn)  # each line once
    runs = _load_all(folders, warn)
    teachers = {run.folder: _teacher(run, runs, warn) for run in runs if run.distill}

    def distillation(run: FinishedRun) -> Any:
        """Equal for runs of one student under one teacher, or a copy of its run."""
        if not run.distill:
            return None
        teacher, _ = teachers[run.folder] or (None, 0)
        return run.student, run.distill, teacher and (teacher.student, teacher.seed, teacher.started, teacher.best)

    distilled = _grouped(runs, distillation, warn)
    plain = _grouped(runs, lambda run: None if run.distill else run.student, warn)
    found, used = [], set()
    for group in distilled.values():
        first = group[0]
        teacher = teachers[first.folder]
        alone = plain.get(first.student, [])
        used |= {run.folder for run in alone}
        used |= {found_teacher[0].folder for run in group if (found_teacher := teachers[run.folder])}
        found.append(
            _measurement(
                group,
                distilled=_spread(group),
                alone=_spread(alone) if alone else None,
                teacher=Spread({teacher[0].seed: teacher[1]}) if teacher else None,
                sources=[*group, *alone, *([teacher[0]] if teacher else [])],
            )
        )
    for group in plain.values():
        if not used & {run.folder for run in group}:
            found.append(_measurement(group, alone=_spread(group), sources=group))
    return sorted(found, key=lambda measurement: (measurement.recipe, measurement.sources))


def _load_all(folders: Iterable[Path], warn: Callable[[str], None]) -> list[FinishedRun]:
    files = [path for folder in folders for path in (folder / RESULT, *sorted(folder.glob(f"*/{RESULT}")))]
    runs = []
    for path in {path.resolve(): path for path in files if path.exists()}.values():
        try:
            runs.append(load_run(path.parent))
        except UnreadableError as error:
            warn(str(error))
    return runs


def load_run(folder: Path) -> FinishedRun:
    """The finished run in a work dir.

    Raises:
        UnreadableError: one of the two files is broken or not ours, or the run was never evaluated.
    """
    file = folder / RESULT
    result = measured.mapping(measured.read_json(file), str(file))
    if "config" not in result or "best" not in result:
        raise UnreadableError(f"{file}: not the result of a run: no 'config' and 'best'")
    if not result["best"]:
        raise UnreadableError(f"{file}: the run was never evaluated, so it has no mAP")
    images, processes = result.get("images"), result.get("processes")
    config_file = folder / CONFIG
    config = current_config(measured.mapping(measured.read_json(config_file), str(config_file)))
    data = measured.mapping(config.get("data"), f"{config_file}, data")
    measured.mapping(data.get("val"), f"{config_file}, data.val")
    if config.get("distill"):
        measured.mapping(config["distill"], f"{config_file}, distill")
    return FinishedRun(
        folder=folder,
        stated_folder=str(result.get("work_dir") or ""),
        recipe=measured.text(result, "config", str(file)),
        seed=measured.seed(result, str(file)),
        started=str(result.get("started") or ""),
        config=config,
        best=measured.points(result["best"], f"{file}, best"),
        last=measured.points(result.get("last"), f"{file}, last"),
        images=images.get("val") if isinstance(images, Mapping) else None,
        processes=processes if isinstance(processes, int) and processes > 0 else 1,
    )


def _grouped(
    runs: Sequence[FinishedRun], key: Callable[[FinishedRun], Any], warn: Callable[[str], None]
) -> dict[Any, list[FinishedRun]]:
    """The runs by `key` (those with the key None left out), in the order of their seeds.

    Two runs of one seed are no spread: the one that was started last stands for both.
    """
    groups: dict[Any, dict[int, FinishedRun]] = {}
    for run in sorted(runs, key=lambda run: run.started):
        if (name := key(run)) is None:
            continue
        by_seed = groups.setdefault(name, {})
        if (older := by_seed.get(run.seed)) is not None:
            warn(f"{older.folder / RESULT}: left out, {run.folder} is a later run of the same recipe and seed")
        by_seed[run.seed] = run
    return {name: [by_seed[seed] for seed in sorted(by_seed)] for name, by_seed in groups.items()}


def _teacher(
    student: FinishedRun, runs: Sequence[FinishedRun], warn: Callable[[str], None]
) -> tuple[FinishedRun, float] | None:
    """The run whose checkpoint taught a student, and that checkpoint's mAP on the student's validation images."""
    checkpoint = student.teacher_checkpoint
    try:
        teacher = _teacher_run(student, runs) if checkpoint and "://" not in checkpoint else None
    except UnreadableError as error:
        warn(str(error))
        return None
    if teacher is None or teacher.validation != student.validation:
        return None
    figure = {"best.pth": teacher.best, "last.pth": teacher.last}.get(Path(checkpoint).name)
    return None if figure is None else (teacher, figure)


def _teacher_run(student: FinishedRun, runs: Sequence[FinishedRun]) -> FinishedRun | None:
    """The run in whose folder a student's teacher was.

    Raises:
        UnreadableError: its files are broken; several of the runs say that this was their folder, and none of them is
            beside the student's.
    """
    given = {run.folder.resolve(): run for run in runs}
    folder = Path(student.teacher_checkpoint).parent
    *beside, named = [*ways(student.teacher_checkpoint, student.folder, student.stated_folder)] or [folder / "best.pth"]
    there = [way for way in beside if (way.parent / RESULT).exists()]
    if (way := likeliest(there, may_have_taught(student.folder))) is not None:
        return given.get(way.parent.resolve()) or load_run(way.parent)
    stating = [run for run in runs if run.stated_folder and Path(run.stated_folder) == folder]
    if len(stating) > 1:
        raise UnreadableError(
            f"{student.folder}: its teacher was trained in {folder}, which is where each of "
            f"{', '.join(str(run.folder) for run in stating)} says that it was: no teacher is named"
        )
    if stating:
        return stating[0]
    return given.get(named.parent.resolve()) or (load_run(named.parent) if (named.parent / RESULT).exists() else None)


def _spread(runs: Iterable[FinishedRun]) -> Spread:
    return Spread({run.seed: run.best for run in runs})


def _measurement(
    group: Sequence[FinishedRun],
    *,
    sources: Sequence[FinishedRun],
    teacher: Spread | None = None,
    alone: Spread | None = None,
    distilled: Spread | None = None,
) -> Measurement:
    first = group[0]
    return Measurement(
        recipe=first.recipe,
        data=first.data_name,
        details=first.annotations or first.data_name,
        split="val",
        sources=tuple(str(run.folder) for run in sources),
        teacher=teacher,
        alone=alone,
        distilled=distilled,
    )
