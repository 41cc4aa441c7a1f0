"""`cskd-train report`: one HTML file on a run, or on several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cskd_train.commands.data.common import A_PATH, as_json_option, show


@click.command("report")
@click.argument("work_dir", type=A_PATH)
@click.argument("others", nargs=-1, metavar="[OTHER]...", type=A_PATH)
@click.option("--output", type=A_PATH, help="The HTML file.  [default: report.html in WORK_DIR]")
@click.option("--split", type=click.Choice(["val", "test"]), default="val", show_default=True, help="Key of `data`.")
@click.option(
    "--images",
    type=click.IntRange(min=0),
    default=500,
    show_default=True,
    help="The most images that are detected on, evenly spaced over the split; 0 detects on none.",
)
@click.option("--deploy", type=A_PATH, help="report.json of cskd-deploy, or its folder.  [default: looked for]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting of the data's config; repeatable.",
)
@as_json_option
def command(
    work_dir: Path, others: tuple[Path, ...], assignments: tuple[str, ...], as_json: bool, **options: Any
) -> None:
    """Write what a run was and came to into one HTML file that needs no network and no scripts.

    WORK_DIR is the work dir of a run, finished or under way, or a project of cskd-train new. With each OTHER all are
    compared. The page has the recipe, the data, curves of losses and mAP, precision and recall with the best
    threshold, AP of each class, errors by kind, detections beside the truth, guidance maps, and where the time went.

    Detections are made from best.pth, of the teacher and the student alone too where their files are there, and kept
    in report_cache, beside report.html.

    \b
    Examples:
      cskd-train report work_dirs/retinanet_r18_shapes
      cskd-train report work_dirs/retinanet_r18_shapes --split test --images 100
      cskd-train report work_dirs/retinanet_r50_shapes work_dirs/retinanet_r18_shapes --output compared.html
    """
    from rich.console import Console

    from cskd_train.files.overrides import parse_overrides
    from cskd_train.report.write import write_report

    report = write_report(
        work_dir, *others, settings=parse_overrides(assignments), console=Console(stderr=True), **options
    )
    show(report, as_json)
