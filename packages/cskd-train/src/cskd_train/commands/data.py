"""`cskd-train data`: generate, convert and check data sets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import cskd_data
from cskd_data.check import Report
from cskd_train.data.shapes import ShapesSet, generate
from cskd_train.data.voc import Conversion, convert

_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


@click.group("data")
def command() -> None:
    """Generate, convert and check data sets in COCO format.

    \b
    Examples:
      cskd-train data shapes data/shapes
      cskd-train data check data/shapes/annotations/train.json --images data/shapes/images
    """


@command.command("shapes")
@click.argument("root", type=click.Path(path_type=Path))
@click.option("--images", default=320, show_default=True, help="Training images.")
@click.option("--val-images", default=80, show_default=True, help="Validation images.")
@click.option("--size", nargs=2, type=int, default=(160, 160), show_default=True, metavar="H W", help="Pixels.")
@click.option("--seed", default=0, show_default=True, help="Another seed draws other images.")
@_as_json
def shapes(root: Path, images: int, val_images: int, size: tuple[int, int], seed: int, as_json: bool) -> None:
    """Generate a detection set of figures over clutter in the new folder ROOT.

    The same options give the same files. A set that is there already is left as it is.

    \b
    Examples:
      cskd-train data shapes data/shapes
      cskd-train data shapes data/few --images 40 --val-images 10 --size 128 160
    """
    with _progress("generating") as advance:
        made = generate(root, images=images, val_images=val_images, size=size, seed=seed, progress=advance)
    _show(made, as_json)


@command.command("from-voc")
@click.argument("voc_root", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--split", help="Only the images that ImageSets/Main/SPLIT.txt lists.")
@click.option("--classes", help="Class names, comma-separated, in the order of their ids. [default: all found]")
@click.option("--zero-based", is_flag=True, help="Coordinates count from zero (width = xmax - xmin).")
@click.option("--overwrite", is_flag=True, help="Replace OUT.")
@_as_json
def from_voc(
    voc_root: Path, out: Path, split: str | None, classes: str | None, zero_based: bool, overwrite: bool, as_json: bool
) -> None:
    """Convert the Pascal VOC folder VOC_ROOT to the COCO file OUT.

    VOC counts pixels from one and boxes include their last pixel: x = xmin - 1, width = xmax - xmin + 1. Objects marked
    difficult get iscrowd 1, so they are neither learnt nor counted.

    \b
    Examples:
      cskd-train data from-voc VOCdevkit/VOC2007 data/voc/train.json --split trainval
      cskd-train data from-voc BCCD data/cells.json --classes RBC,WBC,Platelets --zero-based
    """
    with _progress("reading") as advance:
        conversion = convert(
            voc_root, out, split, _names(classes), zero_based=zero_based, overwrite=overwrite, progress=advance
        )
    _show(conversion, as_json)


@command.command("check")
@click.argument("ann_file", type=click.Path(path_type=Path))
@click.option("--images", "image_root", type=click.Path(path_type=Path), required=True, help="Folder of the images.")
@click.option("--classes", help="The config's class names, comma-separated. [default: the file's]")
@click.option("--decode", is_flag=True, help="Decode every image in full (slower).")
@_as_json
def check(ann_file: Path, image_root: Path, classes: str | None, decode: bool, as_json: bool) -> None:
    """Check the COCO file ANN_FILE and its images, as every run does before it begins.

    Exit code 0: fit for use, with warnings maybe. Exit code 2: a run would stop; the first faults are named.

    \b
    Examples:
      cskd-train data check data/shapes/annotations/train.json --images data/shapes/images
      cskd-train data check cells.json --images photographs --classes RBC,WBC,Platelets --decode
    """
    dataset = cskd_data.read(ann_file, image_root)
    if (names := _names(classes)) is not None:
        dataset = dataset.select(names)
    with _progress("checking images") as advance:
        report = dataset.check(decode=decode, progress=advance)
    report.raise_for_errors()
    _show(report, as_json)


def _names(classes: str | None) -> list[str] | None:
    return None if classes is None else [name.strip() for name in classes.split(",") if name.strip()]


def _show(result: ShapesSet | Conversion | Report, as_json: bool) -> None:
    click.echo(json.dumps(result.to_dict(), indent=2) if as_json else str(result))


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, gone when done; nothing is drawn where no person looks at it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
