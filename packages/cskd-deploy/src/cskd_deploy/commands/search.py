"""`cskd-deploy search`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cskd_deploy.commands.options import calibration_options
from cskd_deploy.lower.conversion import TARGETS, CalibrationSettings, precision_name
from cskd_deploy.lower.search import SearchSettings, search_int8
from cskd_deploy.progress import Progress

A_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("model", metavar="FP32.onnx", type=A_PATH)
@calibration_options(help="Images like those it will see, not those of --ann.")
@click.option(
    "--ann", required=True, type=A_PATH, help="COCO file, or the folder of another format, to measure mAP on."
)
@click.option("--images", type=A_PATH, help="Folder of its images.  [default: beside the file]")
@click.option(
    "--max-drop",
    required=True,
    type=click.FloatRange(min=0),
    metavar="POINTS",
    help="Points of mAP that may be lost against FP32.",
)
@click.option("--target", type=click.Choice(TARGETS), default=TARGETS[0], show_default=True, help="As of export.")
@click.option("--keep-float", multiple=True, metavar="NAME", help="As of export: layers to leave in float in any case.")
@click.option(
    "--output", "-o", type=A_PATH, help="File to write.  [default: the model's name with .int8-cpu.onnx, beside it]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    model: Path,
    calibration_images: Path | None,
    calibration_ann: Path | None,
    calibration_count: int,
    ann: Path,
    images: Path | None,
    max_drop: float,
    target: str,
    keep_float: tuple[str, ...],
    output: Path | None,
    as_json: bool,
) -> None:
    """Find the layers that INT8 should leave in float, and write the INT8 file with them.

    If mAP drops by more than --max-drop, each layer is quantised alone to see what it costs, and the costliest go back
    to float, one more at a time, until the drop is small enough. That is an evaluation of --ann for every layer. Prints
    what the layers cost, and the --keep-float options with which `cskd-deploy export` makes the same file.

    \b
    Example:
      cskd-deploy search student.onnx --calibration-images data/shapes/images \\
          --calibration-ann data/shapes/annotations/train.json \\
          --ann data/shapes/annotations/val.json --images data/shapes/images --max-drop 0.5
    """

    if calibration_images is None and calibration_ann is None:
        raise click.UsageError("INT8 needs images to calibrate on: give --calibration-images or --calibration-ann")

    def progress(line: str) -> None:
        click.echo(f"search: {line}", err=True)

    with Progress("search: calibration", "images") as counted:
        result = search_int8(
            model,
            output or model.with_suffix(f".{precision_name('int8', target)}.onnx"),
            target,
            CalibrationSettings(calibration_images, calibration_ann, calibration_count),
            keep_float,
            SearchSettings(ann, images, max_drop),
            progress,
            lambda line: progress(f"warning: {line}"),
            counted,
        )
    click.echo(json.dumps(result.to_dict(), indent=2) if as_json else str(result))
