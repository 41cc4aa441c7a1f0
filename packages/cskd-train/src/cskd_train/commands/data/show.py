"""`cskd-train data show`: a contact sheet of a data set."""

from __future__ import annotations

from pathlib import Path

import click

from cskd_data.contact_sheet import contact_sheet
from cskd_data.errors import DataError
from cskd_data.files import check_not_input, check_writable
from cskd_train.commands.data.common import A_PATH, as_json_option, images_option, progress, read
from cskd_train.commands.data.common import show as show_result


@click.command("show")
@click.argument("file", type=A_PATH)
@click.argument("out", type=A_PATH, default=Path("contact_sheet.png"), required=False)
@images_option
@click.option("--count", default=12, show_default=True, help="Images on the sheet.")
@click.option("--columns", default=4, show_default=True, help="Images in a row.")
@click.option("--seed", default=0, show_default=True, help="Another seed chooses other images.")
@as_json_option
def command(file: Path, out: Path, images: Path | None, count: int, columns: int, seed: int, as_json: bool) -> None:
    """Draw images of the data set FILE with boxes and class names into the PNG file OUT.

    Every class is to be seen; images with boxes over their edge come first. OUT is contact_sheet.png by default, and
    is replaced.

    \b
    Examples:
      cskd-train data show data/shapes/annotations/val.json sheet.png
      cskd-train data show cells.json --images photographs --count 24 --columns 6
    """
    if out.suffix.lower() != ".png":
        raise DataError(f"output {out} is no PNG file: give a name that ends in .png")
    check_writable(out)
    dataset = read(file, images)
    check_not_input(out, map(dataset.path, dataset.images))
    with progress("drawing") as advance:
        sheet = contact_sheet(dataset, out, count, columns, seed, progress=advance)
    show_result(sheet, as_json)
