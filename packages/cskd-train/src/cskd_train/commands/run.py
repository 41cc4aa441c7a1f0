"""`cskd-train run`: train a detector, alone or distilled."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click


@click.command("run")
@click.argument("config")
@click.option("--work-dir", type=click.Path(path_type=Path), help="Where to write.  [default: work_dirs/CONFIG's name]")
@click.option(
    "--teacher", metavar="CONFIG", help="Distil from the detector of this config; needs --teacher-checkpoint."
)
@click.option(
    "--teacher-checkpoint",
    metavar="FILE",
    help="The teacher's weights, a file or a URL; one of cskd-train has its config.",
)
@click.option(
    "--init",
    "load_from",
    metavar="FILE",
    help="Start from another detector's weights: a file, a URL, or mmdet::FOLDER/FILE.py of mmdet's zoo.",
)
@click.option("--resume", is_flag=True, help="Go on from last.pth in the work dir, if there is one.")
@click.option("--overwrite", is_flag=True, help="Replace an older run in the work dir.")
@click.option("--dry-run", is_flag=True, help="Build everything, take two steps, print the plan; write nothing.")
@click.option("--epochs", type=click.IntRange(min=1), help="How long.  [default: the config's]")
@click.option("--batch-size", type=click.IntRange(min=1), help="Images a batch of one process.  [default: config's]")
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), help="Learning rate, as it is.  [default: config's]")
@click.option("--workers", type=click.IntRange(min=0), help="Processes that load images.  [default: the config's]")
@click.option("--gpus", type=click.IntRange(min=1), metavar="N", help="Train in N processes, each on a GPU of its own.")
@click.option("--max-restarts", type=click.IntRange(min=0), default=0, help="Restarts of all N when one fails.")
@click.option("--accumulate", type=click.IntRange(min=1), metavar="N", help="Batches of a process that make a step.")
@click.option(
    "--amp",
    type=click.Choice(["bf16", "fp16"]),
    is_flag=False,
    flag_value="bf16",
    help="Mixed precision; alone it is bf16.",
)
@click.option("--skip-broken", is_flag=True, help="Go on without images that cannot be used; they are counted.")
@click.option("--ema", is_flag=True, help="Average the student's weights; the average is evaluated and kept.")
@click.option("--checkpoint-every", type=click.IntRange(min=1), metavar="STEPS", help="Save within an epoch, too.")
@click.option(
    "--seed", type=click.IntRange(min=0), help="Of weights, order and augmentation.  [default: the config's, or 0]"
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Change a setting of the config; repeatable."
)
@click.pass_obj
def command(
    arguments: list[str],
    config: str,
    work_dir: Path | None,
    teacher: str | None,
    teacher_checkpoint: str | None,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    gpus: int | None,
    max_restarts: int,
    seed: int | None,
    device: str,
    checkpoint_every: int | None,
    assignments: tuple[str, ...],
    **settings: Any,
) -> None:
    """Train the detector of CONFIG, distilled from a teacher where CONFIG has a `distill` block or --teacher-checkpoint
    names one.

    Saves and evaluates after every epoch. The work dir gets last.pth, best.pth, config.json, log.jsonl, tf_logs/
    (TensorBoard) and, when the run is through, result.json. A run that was stopped (Ctrl-C, SIGTERM, SIGHUP, SIGUSR1)
    has saved its last step; --resume goes on from there. CONFIG is a file, or mmdet::FOLDER/FILE.py for one that mmdet
    ships. classes, image_scale, img_norm_cfg and data_root, in CONFIG or by --set, reach every place that uses them.

    A distilled run first evaluates its teacher on up to 64 validation images, and warns of one that is worse than the
    student alone, whose finished run it looks for beside the work dir. In the end it says how the student compares with
    both, and whether mAP was still rising.

    --init (load_from in CONFIG) takes what fits of a detector with a backbone of the same kind, depth and width; of its
    classifier the rows of those classes that have the same name in the data. What begins afresh is said, with the
    reason, and kept in result.json.

    \b
    Examples:
      cskd-train run configs/demo/retinanet_r18_shapes.py
      cskd-train run configs/demo/retinanet_r18_shapes.py --resume --epochs 20
      cskd-train run configs/bccd/retinanet_r18_bccd.py --seed 1 --set data_root=data/bccd
      cskd-train run mine.py --init mmdet::retinanet/retinanet_r18_fpn_1x_coco.py --dry-run
      cskd-train run configs/cskd/cskd_retina_r50_distill_r18_fpn_coco_1x.py --gpus 8 --amp --checkpoint-every 1000
      cskd-train run mmdet::gfl/gfl_r50_fpn_1x_coco.py --teacher mmdet::gfl/gfl_r101_fpn_mstrain_2x_coco.py \\
          --teacher-checkpoint gfl_r101.pth
    """
    from rich.console import Console

    from cskd_train.engine.distributed import is_launched
    from cskd_train.engine.launch import check_processes, end_with_launcher, launch
    from cskd_train.engine.prepare import RunOptions, prepare, say, way_on
    from cskd_train.engine.resume import saved_position
    from cskd_train.engine.signals import stop_on_signals
    from cskd_train.engine.workdir import WorkDir
    from cskd_train.files.overrides import parse_overrides

    if resume and overwrite:
        raise click.UsageError("--resume goes on with an older run, --overwrite replaces it: give one of them")
    if teacher and not teacher_checkpoint:
        raise click.UsageError("--teacher names a config; its weights come from --teacher-checkpoint FILE")
    if max_restarts and not gpus:
        raise click.UsageError("--max-restarts is for the processes of --gpus N")
    options = RunOptions(
        config=config,
        work_dir=work_dir or Path("work_dirs") / Path(config.rpartition("::")[2]).stem,
        resume=resume,
        overwrite=overwrite,
        seed=seed,
        overrides=_overrides(teacher, teacher_checkpoint, **settings) | parse_overrides(assignments),
        device=device,
        checkpoint_every=checkpoint_every,
        dry_run=dry_run,
        command=shlex.join(["cskd-train", *arguments]),
    )
    console = Console(stderr=True)
    if gpus:
        check_processes(gpus, device)
    if gpus and not is_launched():
        with stop_on_signals():
            prepare(options, lambda line: say(console, line))
            last = WorkDir(options.work_dir).last
            launch(gpus, arguments, lambda: way_on(options, saved_position(last)), max_restarts)
        return
    if is_launched():
        end_with_launcher()
    _run(options, console)


def _run(options: Any, console: Any) -> None:
    from cskd_train.engine.distributed import is_main_process
    from cskd_train.engine.dry_run import dry_run
    from cskd_train.engine.run import run
    from cskd_train.engine.workdir import WorkDir
    from cskd_train.results import RunResult, next_steps

    outcome = dry_run(options, console) if options.dry_run else run(options, console)
    if not is_main_process():
        return
    click.echo(str(outcome))
    files = WorkDir(options.work_dir)
    for path in () if options.dry_run else (files.best, files.last, files.result, files.log, files.tensorboard):
        if path.exists():
            click.echo(f"  {path}")
    best = files.best if files.best.exists() else files.last  # without a validation split there is no best
    if isinstance(outcome, RunResult) and outcome.exportable and best.exists():
        words = ["cskd-deploy", "export", "--checkpoint", str(best), "--output", str(best.with_name("student.onnx"))]
        click.echo(f"  export it: {shlex.join(words)}")
    for sentence in next_steps(outcome) if isinstance(outcome, RunResult) else ():
        click.echo(f"  {sentence}")


def _overrides(
    teacher: str | None,
    teacher_checkpoint: str | None,
    *,
    epochs: int | None,
    batch_size: int | None,
    lr: float | None,
    workers: int | None,
    accumulate: int | None,
    amp: str | None,
    ema: bool,
    skip_broken: bool,
    load_from: str | None,
) -> dict[str, Any]:
    """The settings of a config that have an option of their own."""
    named: dict[str, Any] = {
        "distill.teacher.config": teacher,
        "distill.teacher.checkpoint": teacher_checkpoint,
        "runner.max_epochs": epochs,
        "data.samples_per_gpu": batch_size,
        "data.workers_per_gpu": workers,
        "optimizer.lr": lr,
        "auto_scale_lr": None if lr is None else {},
        "accumulate": accumulate,
        "amp": amp,
        "ema": {} if ema else None,
        "data.skip_broken": skip_broken or None,
        "load_from": load_from,
    }
    return {key: value for key, value in named.items() if value is not None}
