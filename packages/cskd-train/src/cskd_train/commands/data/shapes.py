"""`cskd-train data shapes`: generate a detection set."""

from __future__ import annotations

from pathlib import Path

import click

from cskd_data.shapes import generate
from cskd_train.commands.data.common import A_PATH, as_json_option, progress, show


@click.command("shapes")
@click.argument("root", type=A_PATH)
@click.option("--images", default=320, show_default=True, help="Training images.")
@click.option("--val-images", default=80, show_default=True, help="Validation images.")
@click.option("--size", nargs=2, type=int, default=(160, 160), show_default=True, metavar="H W", help="Pixels.")
@click.option("--seed", default=0, show_default=True, help="Another seed draws other images.")
@as_json_option
def command(root: Path, images: int, val_images: int, size: tuple[int, int], seed: int, as_json: bool) -> None:
    """Generate a detection set of figures over clutter in the new folder ROOT.

    The same options give the same files. A set that is there already is left as it is.

    \b
    Examples:
      cskd-train data shapes data/shapes
      cskd-train data shapes data/few --images 40 --val-images 10 --size 128 160
    """
    with progress("generating") as advance:
        made = generate(root, images=images, val_images=val_images, size=size, seed=seed, progress=advance)
    show(made, as_json)
