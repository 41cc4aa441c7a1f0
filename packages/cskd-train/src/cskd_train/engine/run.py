"""One training run, from a config to `result.json`."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, NoReturn

from rich.console import Console

from cskd_core.distiller import Distiller
from cskd_data.files import write_json
from cskd_data.json_file import load_json
from cskd_train.engine.attributes import Attributes
from cskd_train.engine.build import SPLITS, Parts, agree_on_broken, build_parts, class_names, download
from cskd_train.engine.device import keep_freed_memory
from cskd_train.engine.distributed import SharedError, World, is_launched, is_restart, is_worker, joined
from cskd_train.engine.evaluate import EvaluationStopped, evaluate
from cskd_train.engine.failures import explained_failures
from cskd_train.engine.loader import Position
from cskd_train.engine.origin import origin_of
from cskd_train.engine.outcome import outcome
from cskd_train.engine.preflight import IMAGES, SECONDS, TeacherCheck, check_teacher, find_student_alone
from cskd_train.engine.prepare import (
    RunOptions,
    check_epochs,
    described,
    prepare,
    say,
    seed_of,
    stopped_at_start,
    warn,
    way_on,
)
from cskd_train.engine.progress import ProgressDisplay
from cskd_train.engine.records import JsonLines, Recorder, RunState, TensorBoard, forget_after, versions
from cskd_train.engine.resume import Resumption, Saver, Trained, flat, saved_position
from cskd_train.engine.signals import Interrupted, StopRequest, stop_on_signals
from cskd_train.engine.step import NotFinite
from cskd_train.engine.terms import DistilledTerms
from cskd_train.engine.workdir import WorkDir
from cskd_train.files import checkpoints
from cskd_train.files.config import config_to_data, config_to_json
from cskd_train.mm.detector import DistilledDetector
from cskd_train.results import RunResult
from cskd_train.tables.work_dirs import FinishedRun

_ADVICE = (
    "Lower the learning rate (--set optimizer.lr=...), clip gradients "
    "(--set \"optimizer_config.grad_clip={'max_norm': 35, 'norm_type': 2}\") or check the annotations "
    "(cskd-train data check); then go on with --resume"
)


def run(options: RunOptions, console: Console) -> RunResult:
    """Train as a config says, saving and evaluating after every epoch.

    Everything that can be wrong with the input is found before a file of an older run is touched. Where torchrun has
    started several processes, this is one of them.

    Args:
        console: takes warnings and progress.

    Raises:
        TrainError: bad input; a loss that is not finite; a checkpoint that cannot be written.
        Interrupted: one of `signals.STOP_SIGNALS`; what was done is saved and `--resume` goes on from there.
    """
    # A process that waits for the others to join is ended by a signal as it is: it looks at none until then.
    with joined(options.device) as world, stop_on_signals() as stop:
        if not world.is_main:
            console = Console(quiet=True, force_terminal=False)
        if is_restart():
            options = _restarted(options, world)
        with stopped_at_start(stop, options), explained_failures(stop):
            return Run(options, world, stop, console).train()


def _restarted(options: RunOptions, world: World) -> RunOptions:
    """The options of a restart: it goes on, unless an older run is still to be replaced."""
    if options.overwrite and not world.from_main(WorkDir(options.work_dir).begun.exists()):
        return options
    return replace(options, resume=True, overwrite=False)


class Run:
    """A run in one of its processes: `prepare` -> for each step: step -> save when due -> evaluate when due."""

    def __init__(self, options: RunOptions, world: World, stop: StopRequest, console: Console) -> None:
        self.started = datetime.now().astimezone().isoformat(timespec="seconds")
        self.options, self.world, self.stop, self.console = options, world, stop, console
        # The process that launches others has looked and reported already; under torchrun one of each machine does.
        look = not is_launched() and world.local_rank == 0
        self.cfg, self.work_dir = world.together(lambda: prepare(options, partial(say, console), look))
        self.finished = options.resume and self.work_dir.finished(self.cfg.runner.max_epochs)
        world.check_equal(f"work dirs (all machines have to see {self.work_dir.result})", {"finished": self.finished})
        if not self.finished:
            agree_on_broken(self.cfg, SPLITS, world)
        self.config_data = config_to_data(self.cfg)
        asked = {"--seed": options.seed, "--checkpoint-every": options.checkpoint_every}
        world.check_equal("settings", {**dict(flat(self.config_data)), **asked})
        if world.device.type == "cpu":
            keep_freed_memory()

    def begin(self) -> bool:
        """Build everything and go to the point where the run begins; False for a run that is finished."""
        world, work_dir = self.world, self.work_dir
        if self.finished:
            say(self.console, f"{work_dir.root}: this run is finished already ({self._result().epochs} epochs)")
            return False
        going_on = self.options.resume and work_dir.last.exists()
        world.check_equal(f"work dirs (all machines have to see {work_dir.last})", {"last.pth exists": going_on})
        resumption = world.together(lambda: Resumption(work_dir.last) if going_on else None)
        if resumption:
            world.together(lambda: check_epochs(self.cfg, resumption))
        self.origin = world.together(lambda: self._origin(resumption) if world.is_main else {})
        self.position = resumption.position if resumption else Position()
        if is_restart():
            done = f"step {self.position.step}"
            say(self.console, f"warning: a process of the run failed: all are started again, from {done}")
        if world.size > 1:  # one process of each machine downloads, the others find what it has brought
            world.together(lambda: download(self.cfg) if world.local_rank == 0 and not resumption else None)
        self.parts = world.together(lambda: self._build(resumption))
        sizes = {"training batches": self.parts.loader.batches}
        sizes |= {f"{split} images": used for split, (used, _) in self.parts.images.items()}
        world.check_equal("data", sizes)
        # The wrapper talks to the other processes: not inside of `together`, which a process that fails leaves early.
        self.parts.step.model = world.wrap(self.parts.trained, self.cfg.get("find_unused_parameters", False))
        return True

    def _result(self) -> RunResult:
        """Of a run that was finished before."""
        return RunResult(**load_json(self.work_dir.result, "result"))

    def _origin(self, resumption: Resumption | None) -> dict[str, Any]:
        """What the run learns from, which a run that goes on has to have learnt from before."""
        classes = class_names(self.cfg, "train")
        origin = origin_of(self.cfg, classes)
        if resumption:
            resumption.check_origin(classes, origin)
        return origin

    def train(self) -> RunResult:
        """Train to the end, or from where an earlier session stopped."""
        world, work_dir = self.world, self.work_dir
        if not self.begin():
            return self._result()
        try:
            with explained_failures(self.stop):
                self._look_at_teacher()
                self.saver = Saver(self.trained, work_dir, self._meta(), self.origin, self._warning, self.stop)
                self.saver.saved = self.position if self.position.step else None
                self.stop.deferred = True  # until here a signal ends the run at once
                self.display.start()
                self._train_epochs()
        except NotFinite as error:
            raise SharedError(f"{error}. {self._kept()}. {_ADVICE}") from error
        except Interrupted as error:
            if not self.stop.deferred:
                raise
            way = way_on(self.options, self.saver.saved)
            raise Interrupted(f"{error}; {way}", error.signal_number) from None
        finally:
            self.parts.loader.close()
            self.trained.recorder.close()
        result = outcome(self)
        if world.is_main:
            write_json(work_dir.result, result.to_dict())
            work_dir.begun.unlink(missing_ok=True)
        return result

    def check_teacher(self, images: int = IMAGES, seconds: float = SECONDS) -> TeacherCheck | None:
        """Evaluate the teacher on some validation images before the first step of a run, and say what was found.

        Returns:
            None for a run that is plain, goes on, or has no validation split; where the teacher cannot be evaluated.
        """
        trained, validation = self.parts.trained, self.parts.validation
        if not isinstance(trained, DistilledDetector) or validation is None or self.position.step:
            return None
        check = check_teacher(
            trained, validation, self.world, self.student_alone(), self.config_data, images=images, seconds=seconds
        )
        if isinstance(check, str):
            self._warning(check)
            return None
        say(self.console, str(check))
        for warning in check.warnings:
            warn(self.console, warning)
        return check

    def _look_at_teacher(self) -> None:
        if check := self.check_teacher():
            self.teacher = check.to_dict()
            if self.world.is_main:
                self.log.before_training({"mode": "teacher", **self.teacher})

    def student_alone(self) -> FinishedRun | None:
        """The finished run of the same student without a teacher, beside this one; every process has to ask."""
        images = len(self.parts.validation or ())
        return find_student_alone(self.work_dir.root, self.config_data, self.seed, images, self.world)

    def _warning(self, line: str) -> None:
        say(self.console, f"warning: {line}")

    def _train_epochs(self) -> None:
        """Every epoch is saved before it is evaluated, and again with what the evaluation found."""
        runner, epochs = self.parts.runner, self.cfg.runner.max_epochs
        runner.begin(self.parts.loader, self.position)
        if self._evaluation_due():  # of an epoch that was saved when an earlier session stopped
            runner.after_epoch(self.position.epoch, self._evaluate())
        while self.position.epoch < epochs:
            self._train_epoch()
            due = self._evaluation_due()
            self.saver.last(self.position, required=self.position.epoch == epochs and not due)
            runner.after_epoch(self.position.epoch, self._evaluate() if due else {})
        runner.end()

    def _train_epoch(self) -> None:
        parts, runner, every = self.parts, self.parts.runner, self.options.checkpoint_every
        left = parts.loader.steps_left(self.position)
        self.display.begin_epoch(self.position.epoch, self.position.inner, self.position.inner + left)
        parts.trained.train()
        runner.begin_epoch(self.position)
        began = time.perf_counter()
        for batches, position in parts.loader.steps(self.position):
            loaded = time.perf_counter()
            runner.before_step(batches[0].data)
            lr = runner.learning_rate
            report = parts.step(batches, self.stop.requested())
            ended = time.perf_counter()
            values = {**report.terms, "time": ended - began, "data_time": loaded - began}
            began = ended
            end_of_epoch = position.batches == parts.loader.batches
            self.position = Position(position.epoch + 1, step=position.step) if end_of_epoch else position
            self.display.step()
            self.trained.state.skipped += report.skipped
            self.trained.recorder.step(position, values, lr, end_of_epoch)
            if self.trained.terms is not None:
                for warning in self.trained.terms.step(values, position.step):
                    warn(self.console, warning)
            runner.after_step(values, parts.loader.images_per_step)
            if report.stop:
                self.saver.last(self.position, required=True)
                self._interrupt()
            if every and position.step % every == 0 and not end_of_epoch:
                self.saver.last(self.position)

    @property
    def _interval(self) -> int:
        return int((self.cfg.get("evaluation") or {}).get("interval", 1))

    def _evaluation_due(self) -> bool:
        epoch = self.position.epoch
        due = epoch % self._interval == 0 or epoch == self.cfg.runner.max_epochs
        at_the_end_of_one = epoch > 0 and not self.position.batches
        not_done = self.trained.state.evaluated_epoch != epoch
        return due and at_the_end_of_one and not_done and self.parts.validation is not None

    def _evaluate(self) -> Mapping[str, float]:
        stop, trained, position = self.stop, self.trained, self.position
        split, progress = self.parts.validation, self.display.evaluating
        self.display.begin_evaluation()
        try:
            result = evaluate(trained.model, self.cfg, "val", progress, split, self.world, stop.requested)
        except EvaluationStopped:
            self._interrupt()
        if trained.state.evaluated(result, position.epoch) and self.saver.best(position):
            trained.state.best_saved()
        skipped = {"skipped_images": result.skipped_images} if result.skipped_images else {}
        trained.recorder.validation(position.epoch, position.step, {**result.metrics, **skipped})
        self.saver.last(position, required=position.epoch == self.cfg.runner.max_epochs)
        return result.metrics

    def _interrupt(self) -> NoReturn:
        """End every process of the run by the signal that one of them was sent; what is saved is on disk by then."""
        number = max(number or 0 for number in self.world.gather(self.stop.signal_number))
        raise Interrupted(f"stopped by {signal.Signals(number).name}", number)

    def _build(self, resumption: Resumption | None) -> Parts:
        """The parts of the run, at the point where it begins; an older run's files are cleared once all fit."""
        cfg, world, work_dir, step = self.cfg, self.world, self.work_dir, self.position.step
        self.seed = seed_of(self.options, cfg, resumption)
        tell = partial(say, self.console)
        parts = build_parts(cfg, self.seed, world, str(work_dir.root), tell, resumption is not None)
        self.start = parts.start.to_dict() if parts.start else resumption.start if resumption else {}
        self.teacher = resumption.teacher if resumption else {}
        loader, images = parts.loader, parts.loader.images_per_step
        if resumption:
            resumption.check_epoch(loader)
            state = resumption.state(images)
        else:
            state = RunState(images)
        interval = (cfg.get("log_config") or {}).get("interval", 50)
        recorder = Recorder(min(interval, max(len(loader) // 10, 1)), [state] if world.is_main else [])
        terms = DistilledTerms(parts.distiller.plan, len(loader)) if isinstance(parts.distiller, Distiller) else None
        if terms is not None:
            recorder.derived = terms.shares
        attributes = Attributes(parts.student)
        self.trained = Trained(parts.student, parts.distiller, parts.step, loader, state, recorder, attributes, terms)
        epochs, best = cfg.runner.max_epochs, state.best.get("bbox_mAP")
        _, done = loader.steps_done(self.position)
        self.display = ProgressDisplay(self.console, epochs, len(loader), done, best, self._interval, step)
        if resumption:
            resumption.restore(self.trained)
            for change in resumption.changed_settings(self.config_data):
                tell(f"warning: a setting has changed since the run began: {change}")
            if resumption.images_per_step != images:
                tell(f"warning: {resumption.images_per_step} images a step until now, {images} from here on")
        if world.is_main and not self.options.dry_run:
            self._open_files(resumed=resumption is not None)
        return parts

    def _open_files(self, resumed: bool) -> None:
        work_dir, recorder, step = self.work_dir, self.trained.recorder, self.position.step
        if resumed:
            evaluated = self.trained.state.evaluated_epoch == self.position.epoch
            forget_after(work_dir.log, step, evaluated=evaluated)
            work_dir.result.unlink(missing_ok=True)  # of a shorter run that is now prolonged
            work_dir.sweep()
        else:
            work_dir.clear()
            if is_worker():
                work_dir.begun.touch()
        write_json(work_dir.config, config_to_json(self.config_data))
        tell = partial(say, self.console)
        self.log = JsonLines(work_dir.log, tell)
        recorder.sinks += (self.log, TensorBoard(work_dir.tensorboard, step, tell), self.display)

    def _meta(self) -> dict[str, Any]:
        """What every checkpoint of the run says."""
        return {
            "format": checkpoints.FORMAT,
            "version": checkpoints.FORMAT_VERSION,
            "config": self.config_data,
            "CLASSES": list(self.parts.classes),
            "seed": self.seed,
            "versions": versions(),
            "distilled": self.parts.distiller is not None,
            "start": self.start,
            "teacher": self.teacher,
        }

    def _kept(self) -> str:
        # The main process alone knows what it wrote; another one may be the first to speak.
        saved = self.saver.saved if self.world.is_main else saved_position(self.work_dir.last)
        return f"last.pth still holds {described(saved)}" if saved else "Nothing had been saved yet"
