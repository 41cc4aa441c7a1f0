"""Processes that start others, and end with all of them: nothing runs on beside the next measurement."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

GRACE = 10.0  # seconds between SIGTERM and SIGKILL
_PR_SET_PDEATHSIG = 1


def run(
    command: Sequence[str | Path],
    *,
    timeout: float | None = None,
    grace: float = GRACE,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stderr: int | IO[bytes] | None = subprocess.PIPE,
) -> subprocess.CompletedProcess[str]:
    """Run a command in a session of its own and wait for it; its output is taken as text.

    Whatever ends the waiting (its end, `timeout`, Ctrl-C, SIGTERM, SIGHUP) ends all processes of the session.

    Args:
        timeout: seconds; None waits for ever.
        grace: seconds that the session has to end after SIGTERM before it is killed; with processes below it that have
            sessions of their own, more than theirs.

    Raises:
        subprocess.TimeoutExpired: it took longer.
        SystemExit: SIGTERM or SIGHUP, with 128 and the number of the signal.
    """
    with (
        signals_raised(),
        subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
            preexec_fn=_end_with_parent(os.getpid()),
        ) as child,
    ):
        try:
            out, error = child.communicate(timeout=timeout)
        except BaseException:
            _signal(child.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.communicate(timeout=grace)
            raise
        finally:
            _signal(child.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, child.returncode, out, error or "")


@contextlib.contextmanager
def signals_raised() -> Iterator[None]:
    """SIGTERM and SIGHUP end this process by an exception, so that those it has started end too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    taken = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is signal.SIG_DFL]
    for one in taken:
        signal.signal(one, end)
    try:
        yield
    finally:
        for one in taken:
            signal.signal(one, signal.SIG_DFL)


def end(leader: int, grace: float = GRACE) -> None:
    """End a child that leads a session, and its session with it, and wait for it.

    Args:
        grace: as of `run`.
    """
    _signal(leader, signal.SIGTERM)
    until = time.monotonic() + grace
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(leader, os.WNOHANG) == (0, 0) and time.monotonic() < until:
            time.sleep(0.05)
    _signal(leader, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(leader, 0)


def _signal(session: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(session, number)


def _end_with_parent(parent: int) -> object:
    """For the child before its program begins: it gets SIGTERM where this process is killed."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return prepare
