"""`cskd-train run`: train a detector, alone or distilled."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

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
@click.option("--resume", is_flag=True, help="Go on after the last finished epoch in the work dir, if there is one.")
@click.option("--overwrite", is_flag=True, help="Replace an older run in the work dir.")
@click.option(
    "--seed", type=click.IntRange(min=0), help="Of weights, order and augmentation.  [default: the config's, or 0]"
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Change a setting of the config; repeatable."
)
def command(
    config: str,
    work_dir: Path | None,
    teacher: str | None,
    teacher_checkpoint: str | None,
    resume: bool,
    overwrite: bool,
    seed: int | None,
    device: str,
    assignments: tuple[str, ...],
) -> None:
    """Train the detector of CONFIG, distilled from a teacher where CONFIG has a `distill` block or --teacher-checkpoint
    names one.

    Evaluates after every epoch. The work dir gets last.pth, best.pth, config.json, log.jsonl, tf_logs/ (TensorBoard)
    and, when the run is through, result.json. CONFIG is a file, or mmdet::FOLDER/FILE.py for one that mmdet ships.

    \b
    Examples:
      cskd-train run configs/demo/retinanet_r18_shapes.py
      cskd-train run configs/demo/retinanet_r18_shapes.py --resume --set runner.max_epochs=20
      cskd-train run configs/bccd/retinanet_r18_bccd.py --seed 1 --set data_root=data/bccd
      cskd-train run mmdet::gfl/gfl_r50_fpn_1x_coco.py --teacher mmdet::gfl/gfl_r101_fpn_mstrain_2x_coco.py \\
          --teacher-checkpoint gfl_r101.pth --set distill.preset=cskd-fixed
    """
    from rich.console import Console

    from cskd_train.engine.run import RunOptions, run
    from cskd_train.engine.workdir import WorkDir
    from cskd_train.files.overrides import parse_overrides

    if resume and overwrite:
        raise click.UsageError("--resume goes on with an older run, --overwrite replaces it: give one of them")
    if teacher and not teacher_checkpoint:
        raise click.UsageError("--teacher names a config; its weights come from --teacher-checkpoint FILE")
    named = {"distill.teacher.config": teacher, "distill.teacher.checkpoint": teacher_checkpoint}
    overrides = {key: value for key, value in named.items() if value} | parse_overrides(assignments)
    options = RunOptions(
        config=config,
        work_dir=work_dir or Path("work_dirs") / Path(config.rpartition("::")[2]).stem,
        resume=resume,
        overwrite=overwrite,
        seed=seed,
        overrides=overrides,
        device=device,
        command=shlex.join(["cskd-train", *sys.argv[1:]]),
    )
    result = run(options, Console(stderr=True))
    click.echo(str(result))
    files = WorkDir(options.work_dir)
    for path in (files.best, files.last, files.result, files.log, files.tensorboard):
        if path.exists():
            click.echo(f"  {path}")
