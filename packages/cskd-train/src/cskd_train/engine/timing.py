"""What the epochs of a run will cost on this machine, measured on its first steps; nothing is written."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console

from cskd_train.engine.distributed import joined
from cskd_train.engine.failures import explained_failures
from cskd_train.engine.loader import evaluation_loader, to_device
from cskd_train.engine.prepare import RunOptions, stopped_at_start
from cskd_train.engine.run import Run
from cskd_train.engine.signals import stop_on_signals
from cskd_train.files import checkpoints

WARM_UP, STEPS, IMAGES = 2, 12, 8
"""Steps that are not counted, steps and validation images that are."""

SECONDS = 20.0
"""Steps are counted for no longer than this, once there are two."""


@dataclass(frozen=True)
class Cost:
    """Seconds that the parts of a run take."""

    step: float  # one training step, with the wait for its images
    steps: int  # of an epoch
    evaluation: float  # of the validation split; 0 without one
    interval: int = 1  # epochs from one evaluation to the next

    def seconds(self, epochs: int) -> float:
        """Of so many epochs, with their evaluations."""
        return epochs * self.steps * self.step + -(-epochs // self.interval) * self.evaluation

    def times(self, steps: float, evaluations: float) -> Cost:
        """The same run, its steps and its evaluations so many times slower."""
        return replace(self, step=steps * self.step, evaluation=evaluations * self.evaluation)

    def shared(self, processes: int) -> Cost:
        """The same run in so many processes, each as fast as one alone."""
        return replace(self, steps=-(-self.steps // processes), evaluation=self.evaluation / processes)


def measure(options: RunOptions, untrained: Path | None = None) -> Cost:
    """Take the first steps of a run, and detect on some of its validation images.

    Args:
        options: of the run, which may not have begun; nothing is written in its work dir.
        untrained: also write the detector here, as it was before its first step, as a checkpoint: a stand-in for a
            teacher whose weights are not there yet, at the same cost.

    Raises:
        TrainError: as `run`.
    """
    options = replace(options, dry_run=True)
    with (
        joined(options.device) as world,
        stop_on_signals() as stop,
        stopped_at_start(stop, options),
        explained_failures(stop),
    ):
        run = Run(options, world, stop, Console(quiet=True))
        run.begin()
        parts, loader = run.parts, run.parts.loader
        if untrained is not None:
            weights = {key: value.cpu() for key, value in parts.student.state_dict().items()}
            checkpoints.save(untrained, {"state_dict": weights, "meta": {**run._meta(), "metrics": {}}})
        parts.runner.drop_loggers()
        parts.trained.train()
        parts.runner.begin(loader, run.position)
        parts.runner.begin_epoch(run.position)
        try:
            step = _step_seconds(run)
        finally:
            loader.close()
        interval = int((run.cfg.get("evaluation") or {}).get("interval", 1))
        return Cost(step, len(loader), _evaluation_seconds(run), interval)


def _step_seconds(run: Run) -> float:
    """The median of the steps after the first two."""
    seconds: list[float] = []
    began = time.perf_counter()
    for number, (batches, _) in enumerate(islice(run.parts.loader.steps(run.position), WARM_UP + STEPS)):
        run.parts.runner.before_step(batches[0].data)
        report = run.parts.step(batches)
        run.parts.runner.after_step(report.terms, run.parts.loader.images_per_step)
        if run.world.device.type == "cuda":
            torch.cuda.synchronize()
        ended = time.perf_counter()
        if number >= WARM_UP or len(run.parts.loader) <= WARM_UP:
            seconds.append(ended - began)
        if len(seconds) >= 2 and sum(seconds) > SECONDS:
            break
        began = ended
    return statistics.median(seconds)


def _evaluation_seconds(run: Run) -> float:
    """Of the whole validation split, from the mean of its first images but one."""
    split = run.parts.validation
    if split is None:
        return 0.0
    model, device = run.parts.student.eval(), run.world.device
    images = range(min(len(split), 1 + IMAGES))
    with torch.no_grad():
        for number, batch in enumerate(evaluation_loader(split, images, 0)):
            if number == min(1, len(images) - 1):  # the first is slower
                began, first = time.perf_counter(), number
            model(return_loss=False, rescale=True, **to_device(batch, device))
    return (time.perf_counter() - began) / (len(images) - first) * len(split)
