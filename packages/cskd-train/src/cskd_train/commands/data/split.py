"""`cskd-train data split`: cut a data set into training, validation and test images."""

from __future__ import annotations

from pathlib import Path

import click

from cskd_data.files import check_writable
from cskd_data.split import PARTS, Split
from cskd_data.split import split as cut
from cskd_train.commands.data.common import (
    A_PATH,
    as_json_option,
    config_lines,
    images_option,
    overwrite_option,
    progress,
    read,
    refuse_existing,
    show,
)


@click.command("split")
@click.argument("file", type=A_PATH)
@images_option
@click.option("--val", default=0.2, show_default=True, help="Share of the images for validation.")
@click.option("--test", default=0.0, show_default=True, help="Share of the images for the test.")
@click.option("--seed", default=0, show_default=True, help="Another seed cuts otherwise.")
@click.option("--out", type=A_PATH, help="Folder of the new files. [default: beside FILE]")
@overwrite_option
@as_json_option
def command(
    file: Path,
    images: Path | None,
    val: float,
    test: float,
    seed: int,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Cut the data set FILE into NAME_train.json, NAME_val.json and, with --test, NAME_test.json.

    Every image is in one of them, equal pictures in the same, and each class has its share in each. The same options
    give the same files. Images stay where they are.

    \b
    Examples:
      cskd-train data split data/shapes/annotations/train.json --val 0.2
      cskd-train data split cells.json --images photographs --val 0.2 --test 0.1 --seed 3 --out data/cells
    """
    folder = out or (file if file.is_dir() else file.parent)
    stem = file.resolve().name if file.is_dir() else file.stem
    targets = {part: folder / f"{stem}_{part}.json" for part in PARTS if part != "test" or test}
    refuse_existing(list(targets.values()), overwrite)
    for target in targets.values():
        check_writable(target)
    dataset = read(file, images)
    with progress("comparing pictures") as advance:
        result: Split = cut(dataset, val, test, seed, progress=advance)
    for part, target in targets.items():
        result.parts[part].to_coco(target)
    show(result, as_json)
    if not as_json:
        click.echo("\n".join(f"  {target}" for target in targets.values()))
        click.echo(f"  images: {dataset.image_root}")
        written = {part: (target, result.parts[part]) for part, target in targets.items()}
        click.echo("\n".join(config_lines(written)))
