"""What stands before a run: its options, the check of its input, and what to say about where it stopped."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmcv import Config
from rich.console import Console

from cskd_core.plan import DistillPlan
from cskd_train.engine.build import check_data
from cskd_train.engine.distributed import is_launched, is_restart, is_worker
from cskd_train.engine.loader import Position
from cskd_train.engine.resume import Resumption
from cskd_train.engine.signals import Interrupted, StopRequest
from cskd_train.engine.workdir import WorkDir
from cskd_train.errors import TrainError
from cskd_train.files.config import load_config, refuse_lost_tuples
from cskd_train.files.downloads import fetch, local_file
from cskd_train.files.overrides import assignments
from cskd_train.files.settings import check_settings

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunOptions:
    """What the command line says about a run, beside its config."""

    config: str
    work_dir: Path
    resume: bool = False
    overwrite: bool = False
    seed: int | None = None  # None: the config's `seed`, or 0
    overrides: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    checkpoint_every: int | None = None  # steps; None saves at the end of an epoch only
    dry_run: bool = False  # nothing is written
    command: str = ""  # as typed; empty for a call from Python: see `words`
    way_on: str = ""  # the command that goes on with the run, where it is not `command` with --resume
    said: Collection[str] = ()  # warnings of its data that the user has read

    @property
    def words(self) -> list[str]:
        """The whole command of the run, as typed or as these options make it; without --resume and --overwrite."""
        if self.command:
            return [word for word in shlex.split(self.command) if word not in ("--resume", "--overwrite")]
        words = ["cskd-train", "run", self.config, "--work-dir", str(self.work_dir)]
        given: dict[str, Any] = {"--seed": self.seed, "--checkpoint-every": self.checkpoint_every}
        given["--device"] = None if self.device == "auto" else self.device
        words += [word for name, value in given.items() if value is not None for word in (name, str(value))]
        return [*words, *(["--dry-run"] if self.dry_run else []), *assignments(self.overrides)]


def say(console: Console, line: str) -> None:
    """Print a line as it is."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def warn(console: Console, line: str) -> None:
    """Print a line as a warning that must not be missed: in red, where there are colours."""
    console.print(f"warning: {line}", style="bold red", markup=False, highlight=False, soft_wrap=True)


def prepare(options: RunOptions, say: Say, look: bool = True) -> tuple[Config, WorkDir]:
    """Read the config, and check it, the work dir, the data and the files of weights, before anything is built.

    Args:
        look: False leaves out data and weights, which another process of this machine looks at.

    Raises:
        TrainError: what is wrong, and what to do.
        PlanError: the same of the `distill` block.
    """
    cfg = load_config(options.config, options.overrides)
    notes = check_settings(cfg)
    refuse_lost_tuples(cfg)
    work_dir = WorkDir(options.work_dir)
    if options.checkpoint_every is not None and options.checkpoint_every < 1:
        raise TrainError(f"--checkpoint-every {options.checkpoint_every}: expected a number of steps, at least 1")
    if options.resume and work_dir.finished(cfg.runner.max_epochs):
        return cfg, work_dir  # its result is there: no data, teacher or last.pth is needed
    work_dir.check(resume=options.resume, overwrite=options.overwrite)
    if look:
        for warning in (*notes, *(one for one in check_data(cfg) if one not in options.said)):
            say(f"warning: {warning}")
        weights = []
        if cfg.get("load_from") and not (options.resume and work_dir.last.exists()):
            weights.append(local_file(cfg.load_from, "load_from"))
        if cfg.get("distill"):
            teacher = DistillPlan.parse(cfg.distill).teacher
            weights.append(fetch(teacher.checkpoint, teacher.config))
        work_dir.refuse_to_replace(weights)
    if not options.dry_run:
        work_dir.make()  # last: what is refused leaves no folder behind
        if not is_restart():
            work_dir.begun.unlink(missing_ok=True)
    return cfg, work_dir


def seed_of(options: RunOptions, cfg: Config, resumption: Resumption | None) -> int:
    """The seed of the run: of the one that is resumed, of the command line, of the config, or 0.

    Raises:
        TrainError: the run that is resumed has another one than the command line, or the config, asks for by now.
    """
    if resumption is None:
        return int(cfg.get("seed") or 0) if options.seed is None else options.seed
    where, asked = f"--seed {options.seed}", options.seed
    if asked is None and ("seed" in options.overrides or cfg.get("seed") != resumption.config.get("seed")):
        where, asked = f"seed = {cfg.get('seed')}", cfg.get("seed")
    if asked not in (None, resumption.seed):
        raise TrainError(f"{where}: the run that is resumed has seed {resumption.seed}; leave it out, or set that")
    return resumption.seed


def check_epochs(cfg: Config, resumption: Resumption) -> None:
    """Refuse to end a run before where it is.

    Raises:
        TrainError: says how far it is.
    """
    position, epochs = resumption.position, cfg.runner.max_epochs
    if (position.epoch, position.batches) > (epochs, 0):
        raise TrainError(
            f"runner.max_epochs = {epochs} (--epochs): {resumption.path} is trained further, to {described(position)}. "
            f"Go on with {position.epoch + (position.batches > 0)} epochs or more, or begin a run of {epochs} "
            "in another --work-dir"
        )


def described(position: Position) -> str:
    """A position for a person."""
    within = f", step {position.step}" if position.batches else ""
    return f"epoch {position.epoch}{within}" if position.epoch or not within else f"step {position.step}"


def way_on(options: RunOptions, saved: Position | None) -> str:
    """What is saved, and the command that goes on.

    Args:
        saved: None where no step was taken since the command was given.
    """
    resume = f"Go on with: {options.way_on or shlex.join([*options.words, '--resume'])}"
    last = WorkDir(options.work_dir).last
    if is_worker() and not is_launched():
        resume = "Go on by starting all processes again, with --resume"
    if saved is not None:
        return f"{described(saved)} is saved in {last}. {resume}"
    if not last.exists():
        return f"nothing is saved in {options.work_dir} yet. {resume}"
    if options.resume:
        return f"{last} is as it was. {resume}"
    return (
        f"the older run in {options.work_dir} is as it was. Begin with: {shlex.join([*options.words, '--overwrite'])}"
    )


@contextmanager
def stopped_at_start(stop: StopRequest, options: RunOptions) -> Iterator[None]:
    """Say how to begin again after a signal that came before the first step.

    It ends whatever is under way by an exception, which mmcv and torch may have turned into another by then.
    """
    try:
        yield
    except Exception as error:
        if stop.deferred or stop.signal_number is None:
            raise
        name = signal.Signals(stop.signal_number).name
        message = f"stopped by {name} before the first step; {way_on(options, None)}"
        raise Interrupted(message, stop.signal_number) from error
