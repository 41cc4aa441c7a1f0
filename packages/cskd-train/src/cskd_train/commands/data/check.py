"""`cskd-train data check`: check data sets and their images."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cskd_data.check import Report, check
from cskd_data.dataset import Note
from cskd_data.errors import DataError
from cskd_data.together import check_together
from cskd_train.commands.data.common import A_PATH, as_json_option, progress, read


@click.command("check")
@click.argument("files", type=A_PATH, nargs=-1, required=True)
@click.option(
    "--images",
    type=A_PATH,
    multiple=True,
    help="Folder that the image names start from: once for all files, or once a file. [default: looked for beside it]",
)
@click.option("--classes", help="The config's class names, comma-separated. [default: the file's]")
@click.option("--decode", is_flag=True, help="Decode every image in full (slower).")
@as_json_option
def command(
    files: tuple[Path, ...], images: tuple[Path, ...], classes: str | None, decode: bool, as_json: bool
) -> None:
    """Check the data sets FILES and their images, as every run does before it begins.

    Several files, such as the splits of one set, are also compared: other classes are an error, the same picture in two
    of them is a warning. A run after it opens the images of a large set again only where one has changed. Exit code 0:
    fit for use, with warnings maybe. Exit code 2: a run would stop; the first faults are named.

    \b
    Examples:
      cskd-train data check data/shapes/annotations/train.json --images data/shapes/images
      cskd-train data check data/shapes/annotations/train.json data/shapes/annotations/val.json
      cskd-train data check cells.json --images photographs --classes RBC,WBC,Platelets --decode
    """
    if len(images) not in (0, 1, len(files)):
        raise click.UsageError(f"--images is given {len(images)} times for {len(files)} files: once, or once a file")
    folders = [*images] if len(images) > 1 else [images[0] if images else None] * len(files)
    datasets = {str(file): read(file, folder, classes) for file, folder in zip(files, folders, strict=True)}
    reports = {}
    for name, dataset in datasets.items():
        with progress(f"checking images of {name}") as advance:
            reports[name] = check(dataset, decode=decode, remember=True, progress=advance)
    notes, fault = [], None
    try:
        notes = check_together(datasets)
    except DataError as error:
        fault = error
    _print(reports, notes, as_json)
    for report in reports.values():
        report.raise_for_errors()
    if fault is not None:
        raise fault


def _print(reports: dict[str, Report], notes: list[Note], as_json: bool) -> None:
    """One file's report is an object of its own; several are listed, with what they share."""
    first, *others = reports.values()
    if as_json:
        several = {"files": [one.to_dict() for one in reports.values()], "warnings": [str(note) for note in notes]}
        click.echo(json.dumps(several if others else first.to_dict(), indent=2))
        return
    for report in reports.values():
        if not report.errors:
            click.echo(str(report))
    for note in notes:
        click.echo(f"warning: {note}")
