"""`run --dry-run`: everything is built and two steps are taken, to say what the run will be; nothing is written."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from rich.console import Console
from torch import nn

from cskd_train.engine.device import device_name
from cskd_train.engine.distributed import joined
from cskd_train.engine.failures import explained_failures
from cskd_train.engine.prepare import RunOptions, stopped_at_start
from cskd_train.engine.run import Run
from cskd_train.engine.signals import stop_on_signals
from cskd_train.engine.step import DECAY, WARMUP, StepReport
from cskd_train.results import skipped_images

STEPS = 2
IMAGES, SECONDS = 8, 10.0
"""The most validation images that the teacher is evaluated on, and about how long that may take."""


def dry_run(options: RunOptions, console: Console) -> str:
    """The plan of a run, a line a fact.

    Raises:
        TrainError: as `run`.
    """
    with (
        joined(options.device) as world,
        stop_on_signals() as stop,
        stopped_at_start(stop, options),
        explained_failures(stop),
    ):
        run = Run(options, world, stop, console if world.is_main else Console(quiet=True))
        if not run.begin():
            return f"{options.work_dir}: this run is finished already; there is nothing to do"
        run.check_teacher(IMAGES, SECONDS)
        runner = run.parts.runner
        runner.drop_loggers()
        run.parts.trained.train()
        runner.begin(run.parts.loader, run.position)
        runner.begin_epoch(run.position)
        try:
            reports, seconds = _steps(run)
        finally:
            run.parts.loader.close()
        return "\n".join(f"{name:<14}{value}" for name, value in _plan(run, reports, seconds))


def _steps(run: Run) -> tuple[list[StepReport], float]:
    """Two steps (fewer where an epoch has one), and the seconds that the last of them took."""
    reports, seconds = [], 0.0
    for batches, _ in islice(run.parts.loader.steps(run.position), STEPS):
        began = time.perf_counter()
        run.parts.runner.before_step(batches[0].data)
        reports.append(run.parts.step(batches))
        run.parts.runner.after_step(reports[-1].terms, run.parts.loader.images_per_step)
        if run.world.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    return reports, seconds


def _plan(run: Run, reports: list[StepReport], seconds: float) -> Iterable[tuple[str, str]]:
    cfg, parts, world, loader = run.cfg, run.parts, run.world, run.parts.loader
    steps = cfg.runner.max_epochs * len(loader)
    after = cfg.runner.max_epochs - run.position.epoch - 1
    left = after * len(loader) + loader.steps_left(run.position) if after >= 0 else 0
    yield "processes", f"{world.size}, each on {device_name(world.device)}"
    yield (
        "a step",
        (
            f"{loader.images_per_step} images: {loader.batch_size} a batch x {world.size} process(es) x "
            f"{loader.accumulate} accumulated, {cfg.get('amp') or 'float32'}"
        ),
    )
    yield "steps", f"{steps}: {cfg.runner.max_epochs} epochs of {len(loader)}, {left} of them to come"
    yield "learning rate", f"{parts.learning_rate:g} ({_schedule(cfg.get('lr_config') or {})})"
    trained, frozen = _count(parts.student, True), _count(parts.student, False)
    if parts.start is not None:
        yield "starts from", str(parts.start).removeprefix("starts from ")
    elif run.start:
        yield "starts from", f"last.pth; {run.options.config} began from {run.start['source']}"
    yield "student", f"{trained:.2f} M parameters trained, {frozen:.2f} M frozen"
    if cfg.get("ema") is not None:
        decay, warmup = ({"decay": DECAY, "warmup": WARMUP, **cfg.ema}[key] for key in ("decay", "warmup"))
        yield "EMA", f"decay {decay:g}, warmup {warmup}; the average of the weights is evaluated and kept"
    if parts.distiller is not None:
        teacher: Any = parts.distiller.teacher
        yield "distillation", f"{_count(parts.distiller, True):.2f} M parameters trained beside it"
        yield "teacher", f"{_count(teacher.detector, False):.2f} M parameters, frozen"
    yield "peak memory", _memory(world.device)
    speed = loader.images_per_step / seconds
    yield "a step takes", f"{seconds:.3g} s, {speed:.3g} images/s; {_hours(left * seconds)} to come"
    if parts.validation is not None:
        interval = (cfg.get("evaluation") or {}).get("interval", 1)
        yield "evaluation", f"every {interval} epoch(s) on {len(parts.validation)} images; its time is not in the above"
    every = f" and every {run.options.checkpoint_every} steps" if run.options.checkpoint_every else ""
    images = {split: used for split, (used, _) in parts.images.items()}
    skipped = {split: lost for split, (_, lost) in parts.images.items()}
    if any(skipped.values()):
        yield "skipped", skipped_images(images, skipped)
    yield "saved", f"{run.work_dir.last} after every epoch{every}, best.pth beside it"
    first = reports[0].terms
    for name in ("loss", *(name for name in first if "loss" in name and name != "loss")):
        value = first[name]
        share = f"{value / first['loss']:6.1%}" if first["loss"] else ""
        yield ("first loss" if name == "loss" else ""), f"{name:<30} {value:10.4g}  {share}"


def _schedule(settings: Mapping[str, Any]) -> str:
    facts = [f"{key} {value}" for key, value in settings.items() if key not in ("by_epoch",)]
    return ", ".join(facts) or "constant"


def _count(module: nn.Module, trained: bool) -> float:
    return sum(one.numel() for one in module.parameters() if one.requires_grad == trained) / 1e6


def _memory(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB of the GPU's {_total(device):.0f}"
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return f"{peak / 2**30:.2f} GiB, without the processes that load images"


def _total(device: torch.device) -> float:
    return torch.cuda.get_device_properties(device).total_memory / 2**30


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"
