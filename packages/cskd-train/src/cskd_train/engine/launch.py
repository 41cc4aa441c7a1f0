"""Starts the processes of a command on this machine through torch's launcher, and makes one message of their errors."""

from __future__ import annotations

import ctypes
import inspect
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from cskd_data.cores import usable_cores
from cskd_train.engine.device import check_gpus
from cskd_train.engine.distributed import LAUNCHED, ConnectionLost, is_launched, is_worker
from cskd_train.engine.signals import Interrupted, taken_signals
from cskd_train.errors import TrainError

_PR_SET_PDEATHSIG = 1  # the name of <linux/prctl.h>


class WorkerFailed(TrainError):
    """A process of the run ended with an error, which is the message."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def check_processes(processes: int, device: str) -> None:
    """Refuse processes that cannot be started from here.

    Raises:
        TrainError: more than there are GPUs; torchrun has started this process itself.
    """
    if is_worker() and not is_launched():
        raise TrainError("--gpus starts processes, and torchrun has started this one: leave --gpus out")
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        check_gpus(processes)


def launch(processes: int, arguments: Sequence[str], way_on: Callable[[], str], max_restarts: int = 0) -> None:
    """Run `python -m cskd_train ARGUMENTS` in so many processes, until all are through.

    Args:
        way_on: what is saved and how to go on from there, asked when the processes are gone.
        max_restarts: how often all of them are started anew when one fails.

    Raises:
        WorkerFailed: one of the processes failed; the others are ended.
        Interrupted: a signal; it was passed on, and every process had torch's 30 s for what it had to save.
    """
    os.environ[LAUNCHED] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(usable_cores() // processes, 1)))  # the launcher would say 1
    # A worker's error is in the file that torch gives it, and becomes one message here.
    with tempfile.TemporaryDirectory(prefix="cskd-train-") as folder, _first_signal_raised(), _silent_logging():
        settings: dict[str, Any] = {
            "min_nodes": 1,
            "max_nodes": 1,
            "nproc_per_node": processes,
            "run_id": f"cskd-{os.getpid()}",
            "rdzv_backend": "c10d",
            "rdzv_endpoint": "localhost:0",
            "max_restarts": max_restarts,
            "local_addr": "localhost",
            "logs_specs": DefaultLogsSpecs(log_dir=folder),  # torch's own folder would stay behind
            "signals_to_handle": "SIGQUIT",  # the others are taken here
        }
        known = inspect.signature(LaunchConfig).parameters
        config = LaunchConfig(**{key: value for key, value in settings.items() if key in known})
        try:
            elastic_launch(config, sys.executable)("-m", "cskd_train", *arguments)
        except ChildFailedError as error:
            raise _explained(error.failures, way_on) from None
        except SignalException as error:
            reason = "".join(f"; {message}" for message in _not_saved(Path(folder)))
            name = signal.Signals(error.sigval).name
            raise Interrupted(f"stopped by {name}{reason}; {way_on()}", int(error.sigval)) from None


@contextmanager
def _silent_logging() -> Iterator[None]:
    """Each module of torch's launcher sets its own level; this process does nothing but launch."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def end_with_launcher() -> None:
    """Have Linux send SIGTERM to this process when the one that launched it is gone: nobody else would end it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(os.environ[LAUNCHED]):
            os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _first_signal_raised() -> Iterator[None]:
    """The first of `STOP_SIGNALS` becomes the exception on which torch's launcher passes it on to the processes.

    Later ones are dropped. torch's own handler raises for each of them, and a second one ends the launcher while the
    processes are saving.
    """
    taken = taken_signals()

    def handler(number: int, frame: FrameType | None) -> NoReturn:
        for one in taken:
            signal.signal(one, signal.SIG_IGN)
        raise SignalException(f"stopped by {signal.Signals(number).name}", signal.Signals(number))

    previous = {number: signal.signal(number, handler) for number in taken}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def report_failure(error: BaseException, exit_code: int) -> None:
    """Leave a worker's error where the process that launched it finds it."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        details = {"py_callstack": "", "timestamp": str(int(time.time()))}
        kind = type(error).__name__
        message = {"message": str(error), "extraInfo": details, "errorCode": exit_code, "kind": kind}
        with open(file, "w", encoding="utf-8") as opened:
            json.dump({"message": message}, opened)


def _explained(failures: dict[int, ProcessFailure], way_on: Callable[[], str]) -> WorkerFailed:
    """The error of the process that failed first, and not because another had."""
    rank, failure = min(failures.items(), key=lambda item: (_consequence(item[1]), item[1].timestamp, item[0]))
    details = _details(failure)
    if "kind" in details:
        return WorkerFailed(str(details["message"]), int(details["errorCode"]))
    if failure.exitcode < 0:
        reason = f"was ended by {signal.Signals(-failure.exitcode).name}"
        if failure.exitcode == -signal.SIGKILL:
            reason += " (by the kernel, perhaps, for want of memory)"
        message = f"process {rank} of the run {reason}, and the others with it; {way_on()}"
        return WorkerFailed(message, 128 - failure.exitcode)
    return WorkerFailed(
        f"process {rank} of the run ended with exit code {failure.exitcode}; its traceback is above; {way_on()}", 1
    )


def _consequence(failure: ProcessFailure) -> int:
    """How likely the failure of a process follows from that of another: 0, 1 or 2.

    When one has failed, the launcher sends SIGTERM to the others.
    """
    kind = _details(failure).get("kind")
    if kind == ConnectionLost.__name__:
        return 2
    return int(kind == Interrupted.__name__ or failure.exitcode == -signal.SIGTERM)


def _not_saved(folder: Path) -> list[str]:
    """Why a process could not save what it had done when it was stopped; empty where nothing went wrong."""
    reports = [json.loads(path.read_text(encoding="utf-8"))["message"] for path in sorted(folder.rglob("error.json"))]
    expected = (ConnectionLost.__name__, Interrupted.__name__)
    return [report["message"] for report in reports if report["kind"] not in expected][:1]


def _details(failure: ProcessFailure) -> dict[str, Any]:
    message = (failure.error_file_data or {}).get("message")
    return message if isinstance(message, dict) else {}
