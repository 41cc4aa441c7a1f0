"""`cskd-train data clean`: write a data set without the images that cannot be used."""

from __future__ import annotations

from pathlib import Path

import click

from cskd_data.clean import clean
from cskd_data.files import check_writable
from cskd_train.commands.data.common import (
    A_PATH,
    as_json_option,
    images_option,
    overwrite_option,
    progress,
    read,
    refuse_existing,
    show,
)


@click.command("clean")
@click.argument("file", type=A_PATH)
@click.argument("out", type=A_PATH)
@images_option
@overwrite_option
@as_json_option
def command(file: Path, out: Path, images: Path | None, overwrite: bool, as_json: bool) -> None:
    """Write the data set FILE as the COCO file OUT, without the images that cannot be used.

    Left out and listed: images that are not there, cannot be decoded, or have another size than FILE says. Every image
    is decoded. Image files are not changed.

    \b
    Examples:
      cskd-train data clean data/shapes/annotations/train.json data/shapes/annotations/clean.json
      cskd-train data clean cells.json clean.json --images photographs --json
    """
    refuse_existing([out], overwrite)
    check_writable(out)
    dataset = read(file, images, skip_missing=True)
    with progress("decoding") as advance:
        cleaned = clean(dataset, out, progress=advance)
    show(cleaned, as_json)
