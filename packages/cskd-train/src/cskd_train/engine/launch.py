"""Starts the processes of a command on this machine through torch's launcher, and makes one message of their errors."""

from __future__ import annotations

import inspect
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from cskd_train.engine.device import check_gpus, cores
from cskd_train.engine.distributed import LAUNCHED, ConnectionLost, is_launched, is_worker
from cskd_train.engine.signals import STOP_SIGNALS, Interrupted
from cskd_train.errors import TrainError


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
    # A worker's error is in the file that torch gives it, and becomes one message here.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ[LAUNCHED] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores() // processes, 1)))  # the launcher would say 1
    names = ",".join(signal.Signals(number).name for number in (*STOP_SIGNALS, signal.SIGQUIT))
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = names
    settings: dict[str, Any] = {
        "min_nodes": 1,
        "max_nodes": 1,
        "nproc_per_node": processes,
        "run_id": f"cskd-{os.getpid()}",
        "rdzv_backend": "c10d",
        "rdzv_endpoint": "localhost:0",
        "max_restarts": max_restarts,
        "local_addr": "localhost",
        "signals_to_handle": names,
    }
    known = inspect.signature(LaunchConfig).parameters
    config = LaunchConfig(**{key: value for key, value in settings.items() if key in known})
    try:
        elastic_launch(config, sys.executable)("-m", "cskd_train", *arguments)
    except ChildFailedError as error:
        raise _explained(error.failures, way_on) from None
    except SignalException as error:
        name = signal.Signals(error.sigval).name
        raise Interrupted(f"stopped by {name}; {way_on()}", int(error.sigval)) from None


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
    first = {
        rank: failure for rank, failure in failures.items() if _details(failure).get("kind") != ConnectionLost.__name__
    }
    rank, failure = min((first or failures).items(), key=lambda item: (item[1].timestamp, item[0]))
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


def _details(failure: ProcessFailure) -> dict[str, Any]:
    message = (failure.error_file_data or {}).get("message")
    return message if isinstance(message, dict) else {}
