"""`cskd-train pseudo-label`: a teacher's detections on pictures without labels, to train on."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from cskd_train.commands.data.common import A_PATH, as_json_option, overwrite_option, show


@click.command("pseudo-label")
@click.argument("teacher", type=A_PATH)
@click.argument("pictures", metavar="IMAGES", type=A_PATH)
@click.argument("out", metavar="OUT.json", type=A_PATH)
@click.option("--images", type=A_PATH, help="Folder that the names in a COCO file start from.  [default: looked for]")
@click.option("--config", help="Config of the teacher.  [default: the one stored in it]")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    help="Least score of a detection.  [default: of the best F1 on data.val, which is detected on first]",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--gpus", type=click.IntRange(min=1), metavar="N", help="Detect in N processes, each on a GPU.")
@click.option("--skip-broken", is_flag=True, help="Go on without images that cannot be used; they are counted.")
@overwrite_option
@as_json_option
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Change a setting of the config; repeatable."
)
@click.pass_obj
def command(
    arguments: list[str],
    teacher: Path,
    pictures: Path,
    out: Path,
    images: Path | None,
    config: str | None,
    threshold: float | None,
    device: str,
    gpus: int | None,
    skip_broken: bool,
    overwrite: bool,
    as_json: bool,
    assignments: tuple[str, ...],
) -> None:
    """Write what TEACHER, a checkpoint, detects on IMAGES into OUT.json, a COCO file with a score on each annotation.

    IMAGES is a folder, searched to any depth, or a COCO file that lists images only. The file is for training beside
    labelled images (data.unlabeled in a config); as a validation or test split it is refused. Interrupted, the same
    command goes on where it stopped.

    \b
    Examples:
      cskd-train pseudo-label work_dirs/teacher/best.pth photographs data/unlabeled.json
      cskd-train pseudo-label work_dirs/teacher/best.pth photographs data/unlabeled.json --threshold 0.4 --overwrite
      cskd-train pseudo-label teacher.pth images.json pseudo.json --gpus 2
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from cskd_train.engine.distributed import is_launched, joined
    from cskd_train.engine.evaluate import EvaluationStopped
    from cskd_train.engine.launch import check_processes, end_with_launcher, launch
    from cskd_train.engine.pseudo_label import pseudo_label
    from cskd_train.engine.signals import Interrupted, stop_on_signals
    from cskd_train.files.checkpoints import load_checkpoint
    from cskd_train.files.overrides import parse_overrides

    way_on = "the same command goes on from there"
    if gpus:
        check_processes(gpus, device)
    loaded = load_checkpoint(teacher, require_config=config is None)
    if gpus and not is_launched():
        with stop_on_signals():
            launch(gpus, arguments, lambda: way_on)
        return
    if is_launched():
        end_with_launcher()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with joined(device) as world, stop_on_signals() as stop:
        console = Console(stderr=True, quiet=not world.is_main)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            tasks = {part: bar.add_task(part, total=None, visible=False) for part in ("validation", "pictures")}

            def detecting() -> bool:
                stop.deferred = True
                return stop.requested()

            try:
                labels = pseudo_label(
                    loaded,
                    pictures,
                    out,
                    images=images,
                    config=config,
                    overrides=({"data.skip_broken": True} if skip_broken else {}) | parse_overrides(assignments),
                    threshold=threshold,
                    overwrite=overwrite,
                    progress=lambda part, done, of: bar.update(tasks[part], completed=done, total=of, visible=True),
                    warn=lambda line: console.print(f"warning: {line}", markup=False, highlight=False, soft_wrap=True),
                    world=world,
                    stopped=detecting,
                )
            except EvaluationStopped:
                number = max(number or 0 for number in world.gather(stop.signal_number))
                name = signal.Signals(number).name
                raise Interrupted(f"stopped by {name}; what was found is kept, {way_on}", number) from None
    if world.is_main:
        show(labels, as_json)
