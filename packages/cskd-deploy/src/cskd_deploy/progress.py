"""Progress of long work on stderr, so that stdout holds the result alone: a bar on a terminal, gone when done; a line
every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

# Begins to count a piece of work: `with begin("eval", "images") as count: count(done, total)`.
Begin = Callable[[str, str], AbstractContextManager[Callable[[int, int], None]]]
SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_DRAWINGS = 0.1


def silent(title: str, unit: str) -> AbstractContextManager[Callable[[int, int], None]]:
    """Shows nothing, in place of `Progress`."""
    return nullcontext(lambda done, total: None)


class Progress:
    """Counts `unit`s of a piece of work: `with Progress("eval", "images") as progress: progress(done, total)`."""

    def __init__(self, title: str, unit: str, *, show_rate: bool = True) -> None:
        self._title = title
        self._unit = unit
        self._show_rate = show_rate
        self._begin = self._shown = time.perf_counter()
        console = Console(stderr=True)
        # Not console.is_terminal: FORCE_COLOR, which CI sets, would put bars into its log.
        self._terminal = sys.stderr.isatty() and not console.is_dumb_terminal
        self._pause = SECONDS_BETWEEN_DRAWINGS if self._terminal else SECONDS_BETWEEN_LINES
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            auto_refresh=False,  # it would draw in a thread of its own, in the midst of what `bench` times
            # What is printed meanwhile stands above the bar; into a pipe or a file it goes as it is.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self._bar.add_task(title, total=None)
        self._said = (0, 0)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._terminal:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """Say that `done` of `total` are done; shows it when it is time to."""
        now = time.perf_counter()
        if (done, total) == self._said or (done < total and now - self._shown < self._pause):
            return
        self._shown, self._said = now, (done, total)
        if not self._terminal:
            self._print(done, total, now)
        elif done < total:
            self._bar.start()
            self._bar.update(self._task, completed=done, total=total, refresh=True)
        else:
            self._bar.stop()

    def _print(self, done: int, total: int, now: float) -> None:
        seconds = max(now - self._begin, 1e-9)
        rate = done / seconds
        left = f"{(total - done) / rate:.0f} s left" if done < total and rate else f"{seconds:.1f} s"
        speed = f"{rate:.1f}/s, " if self._show_rate else ""
        sys.stderr.write(f"{self._title} {done}/{total} {self._unit}, {speed}{left}\n")
        sys.stderr.flush()
