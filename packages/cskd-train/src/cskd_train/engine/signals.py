"""Ctrl-C and SIGTERM: stop after the iteration at hand instead of in the middle of anything."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cskd_train.errors import TrainError


class Interrupted(TrainError):
    """The run was asked to stop; the exit code is the shell's own for that signal."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


class StopRequest:
    """Remembers the signal that asked the run to stop."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def note(self, signal_number: int, frame: FrameType | None) -> None:
        """The signal handler: the first request waits for the iteration to end, a second Ctrl-C does not."""
        if self.signal_number is not None and signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = signal_number

    def check(self) -> None:
        """Raise Interrupted when a signal has come in."""
        if self.signal_number is not None:
            name = signal.Signals(self.signal_number).name
            raise Interrupted(f"stopped by {name}", self.signal_number)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """While this context lasts, SIGINT and SIGTERM are noted in the StopRequest that it yields.

    Outside of the main thread, where Python takes no signal handlers, nothing is noted.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.signal(number, request.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
