"""`cskd-train new`: a project of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cskd_train.commands.data.common import A_PATH, as_json_option, show


@click.command("new")
@click.argument("folder", metavar="DIR", type=A_PATH)
@click.option(
    "--data",
    type=A_PATH,
    multiple=True,
    required=True,
    help="A COCO file, a COCO, VOC or YOLO folder; twice or three times: training, validation, test.",
)
@click.option("--images", type=A_PATH, help="Folder that the image names start from.  [default: looked for]")
@click.option(
    "--detector",
    type=click.Choice(["retinanet", "fcos", "gfl", "faster_rcnn"]),
    default="retinanet",
    show_default=True,
)
@click.option("--teacher", type=click.Choice(["r50", "r101"]), default="r50", show_default=True)
@click.option("--student", type=click.Choice(["r18", "r50"]), default="r18", show_default=True)
@click.option("--width", type=click.Choice(["1", "0.5"]), help="0.5 is for processors.  [default: by the machine]")
@click.option(
    "--init",
    metavar="START",
    help="imagenet, none, or what the teacher starts from: a checkpoint, a URL, mmdet::FOLDER/FILE.py.  "
    "[default: imagenet at width 1, none at 0.5]",
)
@click.option("--size", type=click.IntRange(min=64), help="Longer side of the images.  [default: by the boxes]")
@click.option(
    "--unlabeled",
    type=A_PATH,
    metavar="IMAGES",
    help="Pictures without labels, to train the student under the teacher on what the teacher finds there.",
)
@as_json_option
def command(folder: Path, data: tuple[Path, ...], width: str | None, as_json: bool, **options: Any) -> None:
    """Write a project into DIR for a data set of one's own: a teacher, a student, the student under the teacher.

    DIR gets data/ (the splits in normal form; images stay where they are), dataset.py, teacher.py, student.py,
    distilled.py, and README.md with the commands. What is chosen is printed with its reason: size of the images,
    anchors, epochs, batch, learning rate.

    \b
    Examples:
      cskd-train new cells --data cells.json --images photographs
      cskd-train new cards --data data/cards/annotations/train.json --data data/cards/annotations/val.json \\
        --detector gfl --unlabeled more_photographs
      cskd-train new fish --data aquarium --init mmdet::retinanet/retinanet_r50_fpn_2x_coco.py --size 640
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from cskd_train.project.new import new

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def advance(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
            bar.update(tasks[what], completed=done, total=of)

        width_of = None if width is None else float(width)
        project = new(folder, data, width=width_of, progress=advance, **options)
    show(project, as_json)
