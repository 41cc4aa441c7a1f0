"""The run as a person sees it: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from cskd_train.engine.records import Record
from cskd_train.engine.terms import DISTILLATION, SHARE

LINES_APART = 10.0
"""Seconds from one line to the next where there is no live display: an epoch of few steps is one line, not ten."""

_NOT_LOSS_TERMS = ("mode", "epoch", "iter", "lr", "time", "data_time", "grad_norm", "skipped", "loss")


class TimeLeft:
    """Estimates the time that a run still takes, from the iterations and evaluations since it was started.

    Args:
        epochs: of the whole run.
        iterations: steps of an epoch.
        done: steps that an earlier session has done, in steps of this one (`TrainLoader.steps_done`).
        interval: epochs from one evaluation to the next; the last epoch is evaluated always.
    """

    def __init__(self, epochs: int, iterations: int, done: int, interval: int = 1) -> None:
        self._steps = epochs * iterations
        self._evaluations = -(-epochs // interval) - done // iterations // interval  # to come
        self._done = done
        self._trained = 0
        self._training_seconds = 0.0
        self._evaluation_seconds = 0.0

    def trained(self, done: int, seconds_each: float) -> None:
        """`done` steps of the whole run are through; the latest took `seconds_each` on average."""
        self._trained += done - self._done
        self._training_seconds += (done - self._done) * seconds_each
        self._done = done

    def evaluated(self, seconds: float) -> None:
        """An evaluation took so long."""
        self._evaluation_seconds = seconds
        self._evaluations -= 1

    def __str__(self) -> str:
        training = self._training_seconds / max(self._trained, 1) * (self._steps - self._done)
        minutes, seconds = divmod(round(training + self._evaluations * self._evaluation_seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


class ProgressDisplay:
    """Shows epoch, step, loss terms and the share of the distillation, mAP so far, learning rate, share of the time
    spent on data, and time left.

    A sink of records for the numbers; `step` moves the bar. On a terminal the display is live; elsewhere it is a line
    for each tenth of an epoch, but not more than one in ten seconds.

    Args:
        epochs: of the whole run.
        iterations: steps of an epoch.
        done: as of `TimeLeft`.
        best: highest mAP of an earlier session.
        interval: epochs from one evaluation to the next.
        recorded: the same steps as records number them: each session's own; `done` by default.
    """

    def __init__(
        self,
        console: Console,
        epochs: int,
        iterations: int,
        done: int,
        best: float | None,
        interval: int = 1,
        recorded: int | None = None,
    ) -> None:
        self._console = console
        self._epochs = epochs
        self._inner, self._steps = 0, iterations
        self._time_left = TimeLeft(epochs, iterations, done, interval)
        self._ahead = 0 if recorded is None else recorded - done  # of records
        self._best = best
        self._numbers = ""
        self._tenths_shown = 0
        self._last_line = -LINES_APART
        self._evaluation_began = time.perf_counter()
        self._bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._task = self._bar.add_task("", total=iterations)
        self._live = Live(get_renderable=self._draw, console=console, refresh_per_second=4, transient=True)

    def start(self) -> None:
        """Begin the live display; `close` has to follow, or a terminal stays without its cursor."""
        if self._console.is_terminal:
            self._live.start()

    def begin_epoch(self, epoch: int, done: int, steps: int) -> None:
        """Epoch `epoch` (from 0) of `steps` steps begins, or goes on after `done` of them."""
        self._tenths_shown = done * 10 // steps
        self._inner, self._steps = done, steps
        self._bar.reset(self._task, total=steps, completed=done, description=f"epoch {epoch + 1}/{self._epochs}")

    def step(self) -> None:
        """One more step of the epoch is done."""
        self._inner += 1
        self._bar.update(self._task, completed=self._inner)

    def begin_evaluation(self) -> None:
        """The validation split is evaluated from now on."""
        self._evaluation_began = time.perf_counter()
        self._bar.reset(self._task, description="evaluating")

    def evaluating(self, done: int, total: int) -> None:
        """So many images of the validation split are done."""
        self._bar.update(self._task, completed=done, total=total)

    def train(self, record: Record) -> None:
        self._time_left.trained(record["iter"] - self._ahead, record["time"])
        shown = (name for name in record if name not in _NOT_LOSS_TERMS and not name.startswith(SHARE))
        terms = " ".join(f"{name} {record[name]:.3g}" for name in shown)
        distilled = f", {record[DISTILLATION]:.0%} of it distillation" if DISTILLATION in record else ""
        best = f"best mAP {self._best:.4f}  " if self._best is not None else ""
        self._numbers = (
            f"{self._time_left} left  loss {record['loss']:.4f}{distilled}  {best}lr {record['lr']:.2e}  "
            f"{record['time']:.2f} s/step, data {record['data_time'] / max(record['time'], 1e-9):.0%}  ({terms})"
        )
        tenths, now = self._inner * 10 // self._steps, time.perf_counter()
        if not self._console.is_terminal and tenths > self._tenths_shown and now - self._last_line >= LINES_APART:
            self._tenths_shown, self._last_line = tenths, now
            self._say(f"epoch {record['epoch']}/{self._epochs}  step {self._inner}/{self._steps}  {self._numbers}")

    def validation(self, record: Record) -> None:
        self._time_left.evaluated(time.perf_counter() - self._evaluation_began)
        mean = record["bbox_mAP"]
        self._best = mean if self._best is None else max(self._best, mean)
        self._say(
            f"epoch {record['epoch']}/{self._epochs}  val mAP {mean:.4f}  AP50 {record['bbox_mAP_50']:.4f}  "
            f"AP75 {record['bbox_mAP_75']:.4f}  best mAP {self._best:.4f}  {self._time_left} left"
        )

    def close(self) -> None:
        self._live.stop()

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _draw(self) -> Group:
        return Group(self._bar, Text(self._numbers))


@contextmanager
def evaluation_progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A bar for one evaluation on a terminal, nothing elsewhere; yields what `evaluate` calls after each image."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("evaluating", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
