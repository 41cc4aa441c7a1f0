"""One training run, from a config to `result.json`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from mmcv import Config
from rich.console import Console

from cskd_train.engine.build import build_parts, check_data, refuse_unsupported
from cskd_train.engine.device import choose_device, device_name
from cskd_train.engine.epochs import train_epochs
from cskd_train.engine.memory import keep_freed_memory
from cskd_train.engine.records import forget_after
from cskd_train.engine.resume import Resumption
from cskd_train.engine.signals import Interrupted, stop_on_signals
from cskd_train.engine.state import RunState, versions
from cskd_train.engine.workdir import WorkDir
from cskd_train.errors import TrainError
from cskd_train.files import checkpoints
from cskd_train.files.atomic import write_json
from cskd_train.files.config import config_to_data, load_config
from cskd_train.results import RunResult


@dataclass(frozen=True)
class RunOptions:
    """What the command line says about a run, beside its config."""

    config: str
    work_dir: Path
    resume: bool = False
    overwrite: bool = False
    seed: int | None = None  # None: the config's `seed`, or 0
    overrides: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    command: str = ""  # as typed, for result.json


def run(options: RunOptions, console: Console) -> RunResult:
    """Train as a config says, evaluating and saving after every epoch.

    Everything that can be wrong with the input is found before a file of an older run is touched.

    Args:
        console: takes warnings and progress.

    Raises:
        TrainError: bad input; a loss that is not finite; a checkpoint that cannot be written.
        Interrupted: SIGINT or SIGTERM; what was finished is saved and `--resume` goes on from there.
    """
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    cfg = load_config(options.config, options.overrides)
    refuse_unsupported(cfg)
    device = choose_device(options.device)
    if device.type == "cpu":
        keep_freed_memory()
    work_dir = WorkDir(options.work_dir)
    work_dir.prepare(resume=options.resume, overwrite=options.overwrite)
    resumption = Resumption(work_dir) if options.resume and work_dir.last.exists() else None
    if resumption and resumption.epoch >= cfg.runner.max_epochs and work_dir.result.exists():
        _say(console, f"{work_dir.root}: this run is finished already ({resumption.epoch} epochs)")
        return RunResult(**json.loads(work_dir.result.read_text(encoding="utf-8")))
    seed = _seed(options, cfg, resumption)
    for warning in check_data(cfg):
        _say(console, f"warning: {warning}")

    parts = build_parts(cfg, seed, device)
    for remark in parts.remarks:
        _say(console, remark)
    config_data = config_to_data(cfg)
    if resumption:
        resumption.check_epoch_length(len(parts.loader))
        state = resumption.restore(parts.student, parts.distiller, parts.runner.optimizer)
        for change in resumption.changed_settings(config_data):
            _say(console, f"warning: a setting has changed since the run began: {change}")
        forget_after(work_dir.log, resumption.iteration)
        work_dir.result.unlink(missing_ok=True)  # of a shorter run that is now prolonged
    else:
        state = RunState(parts.loader.batch_size)
        work_dir.clear()
    write_json(work_dir.config, config_data)
    distilled = parts.distiller is not None
    meta = {
        "format": checkpoints.FORMAT,
        "version": checkpoints.FORMAT_VERSION,
        "config": config_data,
        "CLASSES": list(parts.classes),
        "seed": seed,
        "versions": versions(),
        "distilled": distilled,
    }
    with stop_on_signals() as stop:
        try:
            train_epochs(
                cfg,
                parts,
                state=state,
                first_epoch=resumption.epoch if resumption else 0,
                work_dir=work_dir,
                meta=meta,
                console=console,
                stop=stop,
            )
        except Interrupted as error:
            raise Interrupted(f"{error}; {_way_on(work_dir, options)}", error.signal_number) from None

    result = RunResult(
        config=options.config,
        work_dir=str(work_dir.root),
        seed=seed,
        distilled=distilled,
        epochs=cfg.runner.max_epochs,
        iterations=state.iterations,
        last=state.last,
        best=state.best,
        best_epoch=state.best_epoch,
        seconds=state.seconds,
        images_per_second=state.images_per_second,
        data_share=state.data_share,
        device=device_name(device),
        command=options.command,
        started=started,
        versions=versions(),
    )
    write_json(work_dir.result, result.to_dict())
    return result


def _seed(options: RunOptions, cfg: Config, resumption: Resumption | None) -> int:
    if resumption is None:
        return int(cfg.get("seed") or 0) if options.seed is None else options.seed
    if options.seed not in (None, resumption.seed):
        raise TrainError(f"--seed {options.seed}: the run that is resumed has seed {resumption.seed}; leave --seed out")
    return resumption.seed


def _way_on(work_dir: WorkDir, options: RunOptions) -> str:
    """What is saved, and the command that goes on."""
    if not work_dir.last.exists():
        return f"no epoch was finished, so nothing is saved in {work_dir.root}. --resume or --overwrite begins anew"
    epoch = checkpoints.load_checkpoint(work_dir.last).meta["epoch"]
    typed = shlex.split(options.command) or ["cskd-train", "run", options.config, "--work-dir", str(work_dir.root)]
    words = [word for word in typed if word not in ("--resume", "--overwrite")]
    return f"epoch {epoch} is saved in {work_dir.last}. Go on with: {shlex.join([*words, '--resume'])}"


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
