"""Training and evaluation from Python, as the commands `run` and `test` do them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from cskd_data.results import CocoResult
from cskd_train.engine.device import choose_device
from cskd_train.engine.evaluate import evaluate_checkpoint
from cskd_train.engine.prepare import RunOptions
from cskd_train.engine.run import run
from cskd_train.results import RunResult


def train(
    config: Path | str,
    work_dir: Path | str | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    seed: int | None = None,
    device: str = "auto",
    checkpoint_every: int | None = None,
    console: Console | None = None,
) -> RunResult:
    """Train the detector of a config, alone or distilled, in this process.

    Args:
        config: a file, or `mmdet::FOLDER/FILE.py`.
        work_dir: None is `work_dirs/` and the config's name.
        settings: dotted key -> value, as `--set` gives them: `{"runner.max_epochs": 20}`.
        resume: go on from last.pth, if there is one.
        overwrite: replace an older run.
        seed: of weights, order and augmentation; None is the config's, or 0.
        device: auto, cpu or cuda.
        checkpoint_every: steps; None saves at the end of an epoch only.
        console: takes warnings and progress, `rich.get_console()` for example; None prints nothing.

    Returns:
        What was measured; its `work_dir` holds best.pth.

    Raises:
        TrainError: bad input; a loss that is not finite.
        Interrupted: a signal; what was done is saved, and `resume=True` goes on from there.
    """
    options = RunOptions(
        config=str(config),
        work_dir=Path(work_dir or Path("work_dirs") / Path(str(config).rpartition("::")[2]).stem),
        resume=resume,
        overwrite=overwrite,
        seed=seed,
        overrides=settings or {},
        device=device,
        checkpoint_every=checkpoint_every,
    )
    return run(options, console or Console(quiet=True, force_terminal=False))


def evaluate(
    checkpoint: Path | str,
    split: str = "val",
    *,
    config: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
    warn: Callable[[str], None] | None = None,
    out: Path | str | None = None,
    errors: bool = False,
) -> CocoResult:
    """COCO box metrics of a checkpoint.

    Args:
        checkpoint: of cskd-train, whose own config says which data; any other with `config`.
        split: val or test.
        settings: dotted key -> value, as `--set` gives them.
        device: auto, cpu or cuda.
        progress: called after each image with how many are done, and of how many.
        warn: called with each warning.
        out: a file for the detections, in COCO's results format.
        errors: also find what each kind of error costs.

    Raises:
        TrainError: no checkpoint; it does not fit; no such split; the folder of `out` is not there.
        DataError: the annotations cannot be used; `out` cannot be written, or is a file that is read.
    """
    return evaluate_checkpoint(
        checkpoint,
        settings,
        split,
        config=config,
        device=choose_device(device),
        progress=progress,
        warn=warn,
        out=None if out is None else Path(out),
        errors=errors,
    )
