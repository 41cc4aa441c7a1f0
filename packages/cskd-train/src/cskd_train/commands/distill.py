"""`cskd-train distill`: a project's whole way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cskd_train.commands.data.common import A_PATH, as_json_option, show


@click.command("distill")
@click.argument("folder", metavar="DIR", type=A_PATH)
@click.option("--budget", metavar="TIME", help="Choose epochs that fit into 2h, 90m, ...  [default: all epochs]")
@click.option("--no-baseline", is_flag=True, help="Leave out the student alone, and with it what distilling changed.")
@click.option("--gpus", type=click.IntRange(min=1), metavar="N", help="Train in N processes, each on a GPU of its own.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@as_json_option
def command(folder: Path, no_baseline: bool, as_json: bool, **options: Any) -> None:
    """Go the whole way of the project in DIR, as `cskd-train new` has written it.

    The data are checked; the teacher, the student alone and the student under the teacher are trained; their best
    epochs are measured on the test split; the distilled student is exported, evaluated and timed by cskd-deploy, where
    that is installed; a table says how all compare, and DIR/report.html shows it. What is done is not done again:
    stopped at any point, by a signal or a power cut, the same command goes on.

    With --budget every run keeps the same share of its epochs, as many as fit by what the first steps take; its
    learning rate falls at the same shares of them.

    \b
    Examples:
      cskd-train new cells --data cells.json
      cskd-train distill cells
      cskd-train distill cells --budget 2h
    """
    from rich.console import Console

    from cskd_train.project.distill import distill

    outcome = distill(folder, baseline=not no_baseline, console=Console(stderr=True), **options)
    if not as_json:
        click.echo()
    show(outcome, as_json)
