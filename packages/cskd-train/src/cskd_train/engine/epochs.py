"""The epochs of a run, with our hooks beside those of the config."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from mmcv import Config
from mmcv.runner import Hook
from rich.console import Console

from cskd_train.engine.build import Parts
from cskd_train.engine.epoch_end import EpochEnd
from cskd_train.engine.evaluate import evaluate
from cskd_train.engine.guards import FiniteLossGuard
from cskd_train.engine.progress import ProgressDisplay
from cskd_train.engine.records import JsonLines, Recorder, Sink, TensorBoard
from cskd_train.engine.signals import StopRequest
from cskd_train.engine.state import RunState
from cskd_train.engine.workdir import WorkDir
from cskd_train.errors import TrainError


def train_epochs(
    cfg: Config,
    parts: Parts,
    *,
    state: RunState,
    first_epoch: int,
    work_dir: WorkDir,
    meta: dict[str, Any],
    console: Console,
    stop: StopRequest,
) -> None:
    """Train from `first_epoch` (counted from 0) to the config's `max_epochs`; `state` takes in the results.

    Args:
        meta: what every checkpoint says beside epoch and metrics.
        stop: looked at after every iteration and every evaluated image.

    Raises:
        TrainError: a loss or weights that are not finite, no memory, a checkpoint that cannot be written.
        Interrupted: `stop` was asked for.
    """
    epochs, iterations = cfg.runner.max_epochs, len(parts.loader)
    done = first_epoch * iterations
    runner = parts.runner
    runner.resume_at(first_epoch, done)
    display = ProgressDisplay(console, epochs, iterations, done, state.best.get("bbox_mAP"))
    sinks: list[Sink] = [state, JsonLines(work_dir.log), TensorBoard(work_dir.tensorboard, done), display]
    interval = cfg.get("log_config", {}).get("interval", 50)
    recorder = Recorder(min(interval, max(iterations // 10, 1)), sinks)

    def show_evaluated(image: int, images: int) -> None:
        stop.check()
        display.evaluating(image, images)

    measure = partial(evaluate, parts.student, cfg, "val", show_evaluated, parts.validation)
    epoch_end = EpochEnd(
        student=parts.student,
        distiller=parts.distiller,
        evaluate=measure if parts.validation is not None else None,
        interval=cfg.get("evaluation", {}).get("interval", 1),
        state=state,
        recorder=recorder,
        work_dir=work_dir,
        meta=meta,
    )
    runner.register_hook(FiniteLossGuard(), priority="HIGH")  # before the optimizer's hook takes the gradient
    runner.register_hook(display, priority="LOW")
    runner.register_hook(recorder, priority="VERY_LOW")
    runner.register_hook(epoch_end, priority="VERY_LOW")
    runner.register_hook(StopHook(stop), priority="LOWEST")
    try:
        with _explained_failures(stop):
            runner.run_epochs(parts.loader)
    finally:
        for sink in sinks:
            sink.close()


class StopHook(Hook):
    """Ends the run after the iteration in which a signal came in."""

    def __init__(self, stop: StopRequest) -> None:
        self.stop = stop

    def after_train_iter(self, runner: Any) -> None:
        self.stop.check()


@contextmanager
def _explained_failures(stop: StopRequest) -> Iterator[None]:
    """Turn torch's errors that a user can mend into messages."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainError(
            f"the GPU has too little memory: {error}. Lower the batch size (--set data.samples_per_gpu=...) and the "
            "learning rate with it"
        ) from error
    except RuntimeError as error:
        stop.check()  # a signal to the whole process group ends the loader's workers too
        if "DataLoader worker" not in str(error):
            raise
        raise TrainError(
            f"a process that loads images died: {error}. Memory or shared memory (/dev/shm) may be too small: "
            "--set data.workers_per_gpu=0 loads images in the training process"
        ) from error
