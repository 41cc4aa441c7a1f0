"""`cskd-train card`: a model card beside a student's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cskd_train.commands.data.common import A_PATH, as_json_option, overwrite_option, show


@click.command("card")
@click.argument("work_dir", type=A_PATH)
@click.option("--output", type=A_PATH, help="Folder to write into.  [default: card in WORK_DIR]")
@click.option("--name", help="Of the model.  [default: that of the folder]")
@click.option("--license", metavar="ID", help="An identifier that Hugging Face knows, as apache-2.0.")
@click.option("--base-model", multiple=True, metavar="ID", help="On the Hub, of what it was made from; repeatable.")
@click.option("--dataset", "datasets", multiple=True, metavar="ID", help="On the Hub; repeatable.")
@overwrite_option
@as_json_option
def command(work_dir: Path, output: Path | None, as_json: bool, **options: Any) -> None:
    """Write the best epoch of a run as a model repository has it: README.md, model.safetensors, config.py.

    WORK_DIR is the work dir of a run, or a project of cskd-train new. README.md is a model card in Hugging Face's form:
    a header with the results, the recipe, data, limits, and the sha256 of each file. Wherever cskd-train and
    cskd-deploy take a checkpoint they take model.safetensors too.

    \b
    Examples:
      cskd-train card work_dirs/retinanet_r18_shapes --output model --license apache-2.0
      cskd-train test model/model.safetensors
    """
    from cskd_train.report.card import write_card

    show(write_card(work_dir, output, **options), as_json)
