"""Runs as their folders tell them, finished or under way, and which of them belong together."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cskd_train.engine.distributed import World
from cskd_train.engine.preflight import find_student_alone
from cskd_train.engine.records import Record, read_log
from cskd_train.engine.workdir import WorkDir
from cskd_train.errors import TrainError
from cskd_train.files.overrides import move_root
from cskd_train.stored import current_config, current_terms
from cskd_train.tables.measured import UnreadableError, mapping, read_json
from cskd_train.tables.paths import RESULT, content, located, may_have_taught, started_in

TEACHER, ALONE, DISTILLED, PLAIN = "teacher", "student alone", "student distilled", "student"
ROLES = {"teacher": TEACHER, "student": ALONE, "distilled": DISTILLED}
"""The folders of a project's work dirs -> what is trained there."""
COLOURS = {DISTILLED: 0, PLAIN: 0, TEACHER: 1, ALONE: 2}


@dataclass(frozen=True)
class ReadRun:
    """One run.

    Attributes:
        config: as its config.json has it.
        log: its records, in their order; names of loss terms are today's.
        result: its result.json; empty while it is under way.
        test: what was measured of its best epoch on the test split, as a project keeps it; empty where nothing was.
    """

    folder: Path
    config: Mapping[str, Any]
    log: Sequence[Record]
    result: Mapping[str, Any]
    test: Mapping[str, Any]

    @property
    def files(self) -> WorkDir:
        return WorkDir(self.folder)

    @property
    def steps(self) -> list[Record]:
        """Averages of some steps each."""
        return [one for one in self.log if one["mode"] == "train"]

    @property
    def evaluations(self) -> list[Record]:
        """Of the validation split."""
        return [one for one in self.log if one["mode"] == "val"]

    @property
    def best(self) -> Mapping[str, Any]:
        """The metrics of the best epoch, and the `epoch`; empty before the first evaluation."""
        if self.result.get("best"):
            return {**self.result["best"], "epoch": self.result.get("best_epoch")}
        return max(self.evaluations, key=lambda one: one["bbox_mAP"], default={})

    @property
    def epochs(self) -> int | None:
        """How many the run has, or will have."""
        planned = (self.config.get("runner") or {}).get("max_epochs")
        found = self.result.get("epochs", planned)
        return found if isinstance(found, int) else None

    @property
    def teacher(self) -> Mapping[str, Any]:
        """What was found out about its teacher before the first step; empty for a run without one."""
        said = [one for one in self.log if one["mode"] == "teacher"]
        return self.result.get("teacher") or (said[-1] if said else {})

    @property
    def teacher_checkpoint(self) -> str:
        """As its config names it; empty for a run without a teacher."""
        teacher = (self.config.get("distill") or {}).get("teacher") or {}
        return str(teacher.get("checkpoint") or "") if isinstance(teacher, Mapping) else ""

    @property
    def distilled(self) -> bool:
        return bool(self.config.get("distill"))

    @property
    def stated_folder(self) -> str:
        """Where it said that it was; empty while it is under way."""
        return str(self.result.get("work_dir") or "")

    def located(self, path: str, fits: Callable[[Path], bool] = lambda way: True) -> Path | None:
        """A file or folder that it names, where that is now (see `tables.paths`)."""
        return located(path, self.folder, self.stated_folder, fits)

    def data_root(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The setting by which a config's relative `data_root` is found from any folder; none where none is needed."""
        root, start = config.get("data_root"), started_in(self.folder, self.stated_folder)
        if start is None or start == Path.cwd() or not isinstance(root, str):
            return {}
        return {"data_root": str(start / root)} if not Path(root).is_absolute() and (start / root).exists() else {}


@dataclass(frozen=True)
class Detector:
    """One detector of a report.

    Attributes:
        name: in legends and tables, no other has it.
        run: that trained it; None where only its checkpoint is known.
        checkpoint: its best epoch; None where the file is not there.
        config: of a checkpoint that holds none: the file that its teacher's block names.
        colour: place in the palette.
    """

    name: str
    role: str
    run: ReadRun | None
    checkpoint: Path | None
    config: str | None
    colour: int


@dataclass(frozen=True)
class Subject:
    """A run that is reported, with its teacher and the same student alone, where these are known.

    Attributes:
        title: of the project, or of the work dir.
        main: the detector that it is about.
    """

    title: str
    folder: Path
    main: Detector
    teacher: Detector | None
    alone: Detector | None

    @property
    def run(self) -> ReadRun:
        assert self.main.run is not None
        return self.main.run

    @property
    def detectors(self) -> list[Detector]:
        return [one for one in (self.teacher, self.alone, self.main) if one is not None]


def read_subject(folder: Path) -> Subject:
    """What a folder holds: a work dir of `cskd-train run`, or a project of `cskd-train new`.

    Raises:
        TrainError: it is neither, or nothing was trained in it yet; a file of it is broken.
    """
    if not folder.is_dir():
        raise TrainError(f"{folder}: no such folder (looked in {Path.cwd()})")
    if (folder / "distilled.py").is_file():
        return _project(folder)
    run = _read(folder)
    if run is None:
        raise TrainError(
            f"{folder} holds no run: there is neither log.jsonl nor result.json in it. Give the work dir of "
            "cskd-train run, or a project of cskd-train new"
        )
    teacher = _teacher_of(run)
    alone = _alone_of(run)
    role = DISTILLED if run.distilled else PLAIN
    return Subject(folder.resolve().name, folder, _of_run(run, role), teacher, alone)


def read_subjects(folders: Sequence[Path]) -> list[Subject]:
    """Several of them, with a name and a colour for each detector that no other has.

    Raises:
        TrainError: as `read_subject`; a folder twice.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise TrainError(f"{', '.join(map(str, folders))}: a folder is named twice; give each run once")
    subjects = [read_subject(folder) for folder in folders]
    if len(subjects) == 1:
        return subjects
    names: dict[Any, tuple[str, int]] = {}
    for subject in subjects:
        for one in subject.detectors:
            if (key := _identity(one)) not in names:
                taken = {name for name, _ in names.values()}
                names[key] = _free(f"{_folder_name(one)} ({one.role})", taken), len(names)
    return [
        replace(
            subject,
            main=_renamed(subject.main, names),
            teacher=subject.teacher and _renamed(subject.teacher, names),
            alone=subject.alone and _renamed(subject.alone, names),
        )
        for subject in subjects
    ]


def unique(subjects: Iterable[Subject]) -> list[Detector]:
    """Every detector of the subjects once."""
    return list({_identity(one): one for subject in subjects for one in subject.detectors}.values())


def _project(folder: Path) -> Subject:
    work_dirs = folder / "work_dirs"
    runs = {role: run for role in ROLES if (run := _read(work_dirs / role)) is not None}
    if not runs:
        raise TrainError(f"{folder}: nothing was trained in this project yet: cskd-train distill {folder}")
    root = stated_root(work_dirs / "distill.json")
    here = str(folder.resolve())
    runs = {role: replace(run, config=move_root(dict(run.config), root, here)) for role, run in runs.items()}
    found = {role: _of_run(run, ROLES[role]) for role, run in runs.items()}
    main = next(role for role in ("distilled", "student", "teacher") if role in found)
    own = found.get("teacher") if main != "teacher" else None
    return Subject(
        folder.resolve().name,
        folder,
        found[main],
        _teacher_of(runs[main], own) if main == "distilled" else own,
        found.get("student") if main != "student" else None,
    )


def stated_root(file: Path) -> str:
    """Where the project was when it was trained."""
    try:
        return str(mapping(read_json(file), str(file)).get("root") or "") if file.exists() else ""
    except UnreadableError as error:
        raise TrainError(str(error)) from error


def _read(folder: Path) -> ReadRun | None:
    """The run in a work dir; None where there is none, or no step of it is logged.

    Raises:
        TrainError: a file of it is broken.
    """
    files = WorkDir(folder)
    if not files.log.is_file() and not files.result.is_file():
        return None
    try:
        config, result, test = (
            mapping(read_json(file), str(file)) if file.is_file() else {}
            for file in (files.config, files.result, folder / "test.json")
        )
        log = [current_terms(mapping(record, str(files.log))) for record in read_log(files.log)]
    except (UnreadableError, UnicodeDecodeError) as error:
        raise TrainError(f"{error}: this is no run of cskd-train, or its file is damaged") from error
    log = [one for one in log if isinstance(one.get("mode"), str) and isinstance(one.get("iter"), int)]
    if not log and not result.get("best"):
        raise TrainError(f"{folder}: no step of this run is logged yet, there is nothing to report")
    return ReadRun(folder, current_config(config), log, result, test)


def _of_run(run: ReadRun, role: str) -> Detector:
    best = run.files.best
    return Detector(role, role, run, best if best.is_file() else None, None, COLOURS[role])


def _teacher_of(run: ReadRun, own: Detector | None = None) -> Detector | None:
    """The teacher of a distilled run: the run that wrote its checkpoint, where that is known, or the file alone.

    Args:
        own: the teacher that the run's project has trained, which is taken where its file is the one that taught.
    """
    if not run.teacher_checkpoint:
        return None
    file = run.located(run.teacher_checkpoint, may_have_taught(run.folder))
    if own is not None and own.run is not None:
        named = file or Path(run.teacher_checkpoint).expanduser()
        if os.path.realpath(named) == os.path.realpath(own.run.files.best):
            return own
    config = (run.config.get("distill") or {})["teacher"].get("config")
    config = config and str(run.located(config) or config)
    if file is None:
        return Detector(TEACHER, TEACHER, None, None, config, COLOURS[TEACHER])
    return Detector(TEACHER, TEACHER, _beside(file.parent), file, config, COLOURS[TEACHER])


def _alone_of(run: ReadRun) -> Detector | None:
    """The same student without its teacher, from a run beside this one."""
    if not run.distilled:
        return None
    recorded = run.result.get("baseline") or {}
    named = recorded.get("work_dir")
    folder = run.located(named, lambda way: _is_recorded(way, recorded)) if named else None
    if folder is None and isinstance(run.config.get("data"), Mapping):
        images = (run.result.get("images") or {}).get("val") or run.teacher.get("of") or 0
        seed = run.result.get("seed", run.config.get("seed") or 0)
        alone = find_student_alone(run.folder, run.config, seed, images, World())
        folder = None if alone is None else alone.folder
    found = _beside(folder) if folder is not None else None
    return None if found is None else _of_run(found, ALONE)


def _is_recorded(folder: Path, recorded: Mapping[str, Any]) -> bool:
    """Whether the run in a folder has the seed and the mAP that another run has recorded of it."""
    result = content(folder / RESULT)
    of = (result.get("best") or {}).get("bbox_mAP")
    same = isinstance(of, (int, float)) and math.isclose(of, recorded.get("bbox_mAP") or 0.0)
    return same and result.get("seed") == recorded.get("seed")


def _beside(folder: Path) -> ReadRun | None:
    """The run in a folder that another run names; None where there is none that can be read."""
    try:
        return _read(folder)
    except TrainError:
        return None


def _identity(one: Detector) -> Any:
    return one.run.folder.resolve() if one.run is not None else (one.checkpoint and one.checkpoint.resolve(), one.role)


def _folder_name(one: Detector) -> str:
    """`demo/distilled` for a run of a project, the name of the work dir for any other."""
    if one.run is None:
        return one.checkpoint.name if one.checkpoint else one.role
    folder = one.run.folder.resolve()
    if folder.parent.name == "work_dirs" and (folder.parent.parent / "distilled.py").is_file():
        return f"{folder.parent.parent.name}/{folder.name}"
    return folder.name


def _free(name: str, taken: set[str]) -> str:
    numbered = (name if number == 1 else f"{name} {number}" for number in range(1, len(taken) + 2))
    return next(one for one in numbered if one not in taken)


def _renamed(one: Detector, names: Mapping[Any, tuple[str, int]]) -> Detector:
    name, colour = names[_identity(one)]
    return replace(one, name=name, colour=colour)
