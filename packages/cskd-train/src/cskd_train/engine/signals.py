"""Signals that end a run between two steps, with what was done saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cskd_train.engine.distributed import SharedError, is_worker

# What a terminal, a batch system or a person sends; Slurm gives notice of a time limit by the signal that it is asked
# for, by convention SIGUSR1.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)
GRACE_SECONDS = 40  # torchrun kills what is left 30 s after it has passed a signal on


class Interrupted(SharedError):
    """The run was stopped by a signal (exit code 128 + its number); it can be resumed."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message, exit_code=128 + signal_number)
        self.signal_number = signal_number


class StopRequest:
    """Remembers the first signal that asked the run to stop.

    Attributes:
        deferred: whether the run looks at the request between its steps; until then a signal ends it at once.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.deferred = False
        self._held = self._at_once = False

    def note(self, signal_number: int, frame: FrameType | None) -> None:
        """The signal handler. A second signal waits for no more than a file that is being written (see `held`); one
        that torchrun passes on after the terminal's waits like the first."""
        again, self.signal_number = self.signal_number is not None, signal_number
        self._at_once = not self.deferred or (again and not is_worker())
        if self._at_once and not self._held:
            self.check()

    @contextmanager
    def held(self) -> Iterator[None]:
        """While this context lasts, in which a file is written, a signal that would end the run at once waits.

        Raises:
            Interrupted: at the end of it, by such a signal.
        """
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._at_once:
            self.check()

    def requested(self) -> bool:
        """Whether a signal has come in."""
        return self.signal_number is not None

    def check(self) -> None:
        """Raise Interrupted when a signal has come in."""
        if self.signal_number is not None:
            raise Interrupted(f"stopped by {signal.Signals(self.signal_number).name}", self.signal_number)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """While this context lasts, `STOP_SIGNALS` go to the StopRequest that it yields.

    Outside of the main thread, where Python takes no signal handlers, none does.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.signal(number, request.note) for number in taken_signals()}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def taken_signals() -> list[signal.Signals]:
    """`STOP_SIGNALS`, without a SIGHUP that `nohup` has turned off: a run that was started so outlives its terminal."""
    hangup = getattr(signal, "SIGHUP", None)
    return [one for one in STOP_SIGNALS if one != hangup or signal.getsignal(one) is not signal.SIG_IGN]


def outlive_the_step() -> None:
    """For a process that loads images: a signal to the whole process group leaves it time for the step under way."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS))
