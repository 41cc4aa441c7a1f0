"""A project's whole way: data check, teacher, student alone, student under the teacher, test, the file that ships.

What is done is not done again: runs go on from their last.pth, and everything made from a checkpoint is made again when
that checkpoint has changed, by its hash.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cskd_data.files import write_json
from cskd_train.engine.build import check_data, class_names, loading, split_files
from cskd_train.engine.device import choose_device
from cskd_train.engine.evaluate import evaluate_checkpoint
from cskd_train.engine.launch import check_processes, launch
from cskd_train.engine.prepare import RunOptions, say, way_on
from cskd_train.engine.progress import evaluation_progress
from cskd_train.engine.resume import saved_position
from cskd_train.engine.run import run
from cskd_train.engine.signals import stop_on_signals
from cskd_train.engine.timing import Cost, measure
from cskd_train.engine.workdir import WorkDir
from cskd_train.errors import TrainError
from cskd_train.files.checkpoints import load_checkpoint, sha256
from cskd_train.files.config import config_to_data, load_config
from cskd_train.files.overrides import move_root
from cskd_train.files.settings import check_settings
from cskd_train.mm.data_sources import sources
from cskd_train.mm.families import export_note
from cskd_train.project import budget as budgets
from cskd_train.project import deployed, shown
from cskd_train.project.data import test_source, untaught_labels
from cskd_train.project.outcome import Distilled, Row
from cskd_train.project.state import State, content_of, data_hashes, mark, read_json, refuse_other_settings
from cskd_train.project.teacher import ProjectTeacher
from cskd_train.report.words import short
from cskd_train.results import RunResult
from cskd_train.stored import current_config

if TYPE_CHECKING:  # at run time cskd_train.mm has to come before mmcv, which it changes
    from mmcv import Config

ROLES = {"teacher": "teacher", "student": "student alone", "distilled": "student distilled"}
STUDENTS = ("student", "distilled")


def distill(
    folder: Path | str,
    *,
    budget: str | float | None = None,
    baseline: bool = True,
    gpus: int | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> Distilled:
    """Go a project's whole way, or what is left of it.

    Args:
        folder: as `new` has written it.
        budget: time for all trainings and what follows them, as `2h` or in seconds: epochs are chosen that fit, by what
            the first steps take. None takes the epochs of the configs.
        baseline: also train the student alone, without which nobody knows what distilling changed.
        gpus: train and evaluate in so many processes, each on a GPU of its own.
        device: auto, cpu or cuda.
        console: takes warnings and progress; None prints nothing.

    Returns:
        What was measured; it prints as a table.

    Raises:
        TrainError: no project; a step of it failed, with the way on; runs of other settings than the configs have now.
        DataError: the data cannot be used.
        Interrupted: a signal. What was done is saved, and the same call goes on.
    """
    seconds = budgets.parse_duration(budget) if isinstance(budget, str) else budget
    console = console or Console(quiet=True, force_terminal=False)
    if gpus:
        check_processes(gpus, device)
    with stop_on_signals():
        return _Way(Path(folder), seconds, baseline, gpus, device, console).go()


class _Way:
    """The steps of one call."""

    def __init__(
        self, root: Path, budget: float | None, baseline: bool, gpus: int | None, device: str, console: Console
    ) -> None:
        self.root, self.budget, self.baseline, self.console = root, budget, baseline, console
        self.gpus, self.device = gpus, device
        names = [f"{role}.py" for role in ROLES]
        if missing := [name for name in names if not (root / name).is_file()]:
            raise TrainError(
                f"{root} is no project: there is no {missing[0]}. Make one with cskd-train new {root} --data ..."
            )
        self.roles = [role for role in ROLES if baseline or role != "student"]
        self.work_dirs = root / "work_dirs"
        self.configs = {role: self._config(role) for role in self.roles}
        self.test = test_source(self.configs["distilled"])
        self.test_is_val = self.test in sources(self.configs["distilled"].data.get("val") or ())
        settings = self.configs["distilled"].data.get("unlabeled") or {}
        self.pictures = settings.get("images") or ""
        self.labels = Path(split_files(self.configs["distilled"], "unlabeled")[0][0]) if self.pictures else Path()
        cfg = self.configs["distilled"]
        self.teacher = ProjectTeacher(root, cfg, self.pictures, self.labels, device, console)
        if not self.teacher.own:
            self.roles.remove("teacher")  # there is another one already
            other = self.teacher.plan.checkpoint
            say(console, f"distilled.py names another teacher, {other}: teacher.py is not trained")
        self.state = State.read(self.work_dirs / "distill.json")
        self.no_export, self.number = export_note(self.configs["distilled"].model), 0
        self.said: list[str] = []  # of the data, which no run says again

    @property
    def words(self) -> list[str]:
        """The whole command of this call."""
        given = {"--gpus": self.gpus, "--device": None if self.device == "auto" else self.device}
        given["--budget"] = None if self.budget is None else budgets.written(self.budget)
        words = [word for name, value in given.items() if value is not None for word in (name, str(value))]
        return ["cskd-train", "distill", str(self.root), *([] if self.baseline else ["--no-baseline"]), *words]

    def go(self) -> Distilled:
        """All steps, in order."""
        self._step("the data")
        splits = ("train", "val") if self.test_is_val else ("train", "val", "test")
        self.said = check_data(self.configs["distilled"], splits)
        for warning in self.said:
            say(self.console, f"warning: {warning}")
        if self.no_export:
            say(self.console, f"warning: {self.no_export}")
        self._refuse_changes()
        self._check_budget()
        if not self.teacher.own:
            self.teacher.prepare(self.state, self._epochs("distilled"))
        self._plan()
        results = {role: self._train(role) for role in self.roles}
        test = {role: self._test(role) for role in self.roles}
        return self._outcome(results, test, self._file())

    def _step(self, what: str) -> None:
        self.number += 1
        say(self.console, f"\n== {self.number}/{len(self.roles) + 4} {what}")

    def _config(self, role: str) -> Config:
        cfg = load_config(self.root / f"{role}.py")
        check_settings(cfg)
        return cfg

    def _best(self, role: str) -> Path:
        return self._work_dir(role).best

    def _work_dir(self, role: str) -> WorkDir:
        return WorkDir(self.work_dirs / role)

    def _options(self, role: str, overrides: Mapping[str, Any], work_dir: Path | None = None) -> RunOptions:
        return RunOptions(
            config=str(self.root / f"{role}.py"),
            work_dir=work_dir or self._work_dir(role).root,
            resume=work_dir is None,
            overrides=overrides,
            device=self.device,
            way_on=shlex.join(self.words),
            said=self.said,
        )

    def _refuse_changes(self) -> None:
        """Refuse runs of other data or settings than the project has now: their results would not be its own.

        Raises:
            TrainError: names the first of them, and the folder to remove.
        """
        begun = [role for role in dict.fromkeys((*self.roles, *STUDENTS)) if self._work_dir(role).has_run]
        now = data_hashes(self.root, self.labels)
        here = os.path.abspath(self.root)
        changed = [name for name, was in self.state.data.items() if now.get(name, was) != was]
        if begun and changed:
            raise TrainError(
                f"{changed[0]} has changed since {self._work_dir(begun[0]).root} was trained on it. Remove "
                f"{self.work_dirs} to train on the new data, or put the file back"
            )
        if not begun:
            self.state.data, self.state.costs, self.state.epochs, self.state.root = now, {}, {}, here
        elif not self.state.root:  # begun by `cskd-train run`
            self.state.data, self.state.root = now, here
        for role in (role for role in begun if role in self.roles):
            stored = move_root(current_config(read_json(self._work_dir(role).config)), self.state.root, here)
            refuse_other_settings(self._work_dir(role).root, f"{role}.py", stored, config_to_data(self.configs[role]))

    def _check_budget(self) -> None:
        """Keep the budget for later calls.

        Raises:
            TrainError: another budget than that of students which have begun, or of a teacher that is under way.
        """
        fresh = not any(self._work_dir(role).has_run for role in STUDENTS)
        teacher = self._work_dir("teacher")
        if fresh and (teacher.result.exists() or not teacher.has_run):
            self.state.budget = self.budget or (self.state.budget if teacher.has_run else None)
        elif self.budget not in (None, self.state.budget):
            had = "no budget" if self.state.budget is None else f"a budget of {budgets.duration(self.state.budget)}"
            raise TrainError(
                f"the runs in {self.work_dirs} were begun with {had}: go on without --budget, or remove that folder "
                "to begin again. For more epochs of these runs raise max_epochs in teacher.py, student.py"
            )
        planned = {role: int(self._config(role).runner.max_epochs) for role in self.state.epochs}
        for role, chosen in self.state.forget_epochs(planned).items():
            if self._work_dir(role).has_run:
                say(self.console, f"{ROLES[role]}: max_epochs has changed, {chosen} epochs become {planned[role]}")

    def _plan(self) -> None:
        """Measure what the runs cost that have not begun, and choose their epochs where there is a budget."""
        if not (todo := self._not_begun()):
            return
        marks = {role: self._mark(role) for role in todo}
        if any(role not in self.state.costs or self.state.measured.get(role) != marks[role] for role in todo):
            say(self.console, "what a step takes ...")
            with tempfile.TemporaryDirectory(prefix="cskd-train-") as folder:
                self.state.costs |= {role: vars(cost) for role, cost in self._costs(todo, Path(folder)).items()}
            self.state.measured |= marks
        costs = {role: Cost(**self.state.costs[role]) for role in todo}
        self._fit(costs)
        self._say_plan(costs)

    def _say_plan(self, costs: Mapping[str, Cost]) -> None:
        planned = {role: int(self.configs[role].runner.max_epochs) for role in costs}
        for line in budgets.lines(planned, self.state.epochs, costs, ROLES):
            say(self.console, line)

    def _mark(self, role: str) -> str:
        """Of all that decides what a run costs on a machine."""
        taught = role == "distilled" and self.teacher.own
        configs = [config_to_data(self.configs[one]) for one in (role, *(["teacher"] if taught else []))]
        return mark(configs, self.gpus, self.device)

    def _not_begun(self) -> list[str]:
        return [role for role in self.roles if not self._work_dir(role).has_run]

    def _fit(self, costs: Mapping[str, Cost]) -> None:
        """Choose the epochs of runs that have not begun; a student has as many as the other one that has."""
        planned = {role: int(self.configs[role].runner.max_epochs) for role in costs}
        begun = next((role for role in STUDENTS if self._work_dir(role).has_run), None)
        if begun in self.state.epochs:
            of = (self.configs.get(begun) or self._config(begun)).runner.max_epochs
            share = self.state.epochs[begun] / of
            self.state.epochs |= {role: max(1, round(share * planned[role])) for role in costs if role in STUDENTS}
        elif begun:
            for role in (role for role in costs if role in STUDENTS):
                self.state.epochs.pop(role, None)
        elif self.state.budget is not None:
            self.state.epochs |= budgets.fitting_epochs(planned, costs, self._left(costs))
        self.state.planned |= {role: number for role, number in planned.items() if role in self.state.epochs}
        self.state.write()

    def _costs(self, roles: list[str], folder: Path) -> dict[str, Cost]:
        """What the runs will cost, in a teacher's place one that has not learnt anything where there is none yet."""
        stand_in = folder / "teacher.pth"
        untaught = self.teacher.own and "distilled" in roles and not self.teacher.best.exists()
        costs = {}
        for role in (role for role in self.roles if role in roles or (untaught and role == "teacher")):
            overrides: dict[str, Any] = {}
            if role == "distilled" and untaught:
                overrides["distill.teacher.checkpoint"] = str(stand_in)
            if role == "distilled" and self.pictures and not self.labels.exists():
                classes = class_names(self.configs["distilled"], "train")
                overrides["data.unlabeled.ann_file"] = str(untaught_labels(self.pictures, classes, folder))
            options = self._options(role, overrides, folder / role)
            costs[role] = measure(options, stand_in if role == "teacher" else None)
            if self.gpus:
                costs[role] = costs[role].shared(self.gpus)
        return costs

    def _left(self, costs: Mapping[str, Cost]) -> float:
        """Seconds of the budget for the runs that have not begun."""
        assert self.state.budget is not None
        spent = sum(self._spent(role) for role in self.roles if role not in costs)
        once = sum(cost.evaluation for cost in costs.values())
        images = sum(len(one.read().images) for one in sources(self.configs["distilled"].data.get("val") or ()))
        after = once + costs["distilled"].evaluation + once * shown.share(images)
        if self.pictures and self.labels.exists():
            spent += self.state.labelling
        elif self.pictures:
            known = [Cost(**cost) for cost in self.state.costs.values()]
            after += budgets.labelling(Path(self.pictures), images, known)
        return self.state.budget * (1 - budgets.RESERVE) - spent - after - deployed.SECONDS

    def _spent(self, role: str) -> float:
        """Seconds of a run: what it took, or will take in all where it is under way."""
        if (result := self._work_dir(role).result).exists():
            return float(read_json(result)["seconds"])
        cost = self.state.costs.get(role)
        return 0.0 if cost is None else Cost(**cost).seconds(self._epochs(role))

    def _epochs(self, role: str) -> int:
        """That were chosen, or all that its config has."""
        return int(self.state.epochs.get(role, self.configs[role].runner.max_epochs))

    def _train(self, role: str) -> RunResult:
        """Train, or go on, or find that it is done.

        Raises:
            TrainError: the best checkpoint, which all that follows begins with, is gone.
        """
        work_dir, began = self._work_dir(role), self._work_dir(role).has_run
        if role == "distilled" and self.teacher.own:
            self.teacher.taken(self.state, self.teacher.best)
        if role != "teacher" and not began:
            self._plan_again()
        cfg = self.configs[role]
        self._step(f"{ROLES[role]}, {short(cfg)}")
        overrides = budgets.schedule(cfg, self._epochs(role))
        options = self._options(role, overrides)
        if self.gpus:
            launch(
                self.gpus,
                [*options.words[1:], "--gpus", str(self.gpus), "--resume"],
                lambda: way_on(options, saved_position(work_dir.last)),
            )
            result = RunResult(**read_json(work_dir.result))
        else:
            result = run(options, self.console)
        if not work_dir.best.exists():
            raise TrainError(f"{work_dir.best} is gone: put it back, or remove {work_dir.root} to train it anew")
        return result

    def _plan_again(self) -> None:
        """Fit the students' epochs to what is left of the budget, now that it is known what the teacher took."""
        slower = 1.0, 1.0
        if "teacher" in self.state.costs and "teacher" in self.roles:
            result, cfg = read_json(self._work_dir("teacher").result), self.configs["teacher"]
            images = loading(cfg)[0] * cfg.get("accumulate", 1) * result.get("processes", 1)
            slower = budgets.slowdown(Cost(**self.state.costs["teacher"]), result, images)
        costs = {role: Cost(**self.state.costs[role]).times(*slower) for role in self._not_begun()}
        before = dict(self.state.epochs)
        self._fit(costs)
        if self.state.epochs != before:
            say(self.console, "\nby the time that the teacher took, the budget holds:")
            self._say_plan(costs)

    def _test(self, role: str) -> dict[str, Any]:
        """What the best checkpoint of a role does on the test split."""
        if role == self.roles[0]:
            self._step(f"the test split: {Path(self.test.ann_file).name}")
        best, file = self._best(role), self._work_dir(role).root / "test.json"

        def make() -> None:
            with evaluation_progress(self.console) as progress:
                checkpoint, config = load_checkpoint(best), self.root / f"{role}.py"
                device = choose_device(self.device)
                result = evaluate_checkpoint(checkpoint, None, "test", config=config, device=device, progress=progress)
            write_json(file, {"checkpoint": checkpoint.sha256, **result.to_dict()})

        inputs = [sha256(best), content_of(self.test.ann_file)]
        self.state.make(f"{role}/test", file, inputs, make, self.console)
        found: dict[str, Any] = read_json(file)
        say(self.console, f"  {role}: mAP {found['metrics']['bbox_mAP']:.3f}")
        return found

    def _file(self) -> deployed.Measured | None:
        """The exported file and what was measured on it; None where cskd-deploy is not installed."""
        self._step("the file that ships")
        if self.no_export:
            say(self.console, f"  none: {self.no_export}")
            return None
        if not deployed.installed():
            say(self.console, f"  {deployed.MISSING}")
            return None
        files = deployed.Files(self.root / "student.onnx", self._work_dir("distilled").root)
        return files.made(self.state, self._best("distilled"), self.test, self.console)

    def _outcome(
        self, results: Mapping[str, RunResult], test: Mapping[str, dict[str, Any]], file: deployed.Measured | None
    ) -> Distilled:
        self._step("picture and report")
        best = {ROLES[role]: self._best(role) for role in self.roles}
        test_data, drawn = config_to_data(self.configs["distilled"].data.test), [content_of(self.test.ann_file)]
        picture = shown.picture(self.root, self.state, best, test_data, drawn, self.console)
        measured = [self._work_dir(role).root / name for role in self.roles for name in ("result.json", "test.json")]
        if file is not None:
            best["the file"] = self._best("distilled")
            measured += [file.eval_file, file.bench_file]
        inputs = [[*map(sha256, measured)], self.state.data, self.state.made.get("distilled")]
        report = shown.report(self.root, self.state, best, inputs, self.device, self.console)
        rows = tuple(
            Row(
                role,
                f"{ROLES[role].removeprefix('the ')}, {short(self.configs[role])}",
                result.epochs,
                result.seconds,
                result.improving,
                result.best,
                test[role]["metrics"],
            )
            for role, result in results.items()
        )
        made = [*(self._best(role) for role in self.roles), picture]
        made += [] if file is None else [file.path, file.eval_file, file.bench_file]
        made += [] if report is None else [report]
        return Distilled(
            folder=str(self.root),
            seed=results["distilled"].seed,
            test=self.test.ann_file,
            test_images=test["distilled"]["images"],
            test_is_val=self.test_is_val,
            rows=rows,
            file=None if file is None else file.to_dict(),
            budget=self.state.budget,
            files=tuple(map(str, made)),
            report=None if report is None else str(report),
            unlabeled=results["distilled"].images.get("unlabeled", 0),
        )
