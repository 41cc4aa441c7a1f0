"""`cskd-deploy report`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cskd_deploy.backends import RUN_DEVICES
from cskd_deploy.commands.options import calibration_options
from cskd_deploy.errors import DeployError
from cskd_deploy.forms.run import JSON, TEXT, Settings, report_forms
from cskd_deploy.lower.conversion import CalibrationSettings
from cskd_deploy.model.manifest import GraphForm
from cskd_deploy.progress import Progress

A_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("checkpoint", type=A_PATH)
@click.option(
    "--ann",
    type=A_PATH,
    help="COCO file, or the folder of another format or of one split.  [default: what the checkpoint's config names as "
    "val]",
)
@click.option("--images", type=A_PATH, help="Folder of its images.  [default: beside the file]")
@click.option("--limit", type=click.IntRange(min=1), help="Evaluate on the first N images only.")
@calibration_options(help="INT8 is calibrated on them, not those of --ann.  [default: what the config names as train]")
@click.option("--input-size", "input_sizes", nargs=2, type=int, multiple=True, metavar="H W", help="As of export.")
@click.option(
    "--nms", type=click.Choice(["outside", "graph"]), default="outside", show_default=True, help="As of export."
)
@click.option(
    "--device", type=click.Choice(RUN_DEVICES), help="As of bench. [default: cuda where a runtime can use it]"
)
@click.option("--threads", type=click.IntRange(min=1), help="[default: every core this process may use]")
@click.option(
    "--duration",
    type=click.FloatRange(min=0),
    default=3.0,
    show_default=True,
    help="Seconds a form is timed, at least.",
)
@click.option(
    "--output", "-o", type=A_PATH, metavar="DIR", help="Folder for all files.  [default: best_forms for best.pth]"
)
@click.option("--plot", "plot_file", type=A_PATH, help="Draw latency against mAP (.svg, .png). Needs matplotlib.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    checkpoint: Path,
    ann: Path | None,
    images: Path | None,
    limit: int | None,
    calibration_images: Path | None,
    calibration_ann: Path | None,
    calibration_count: int,
    input_sizes: tuple[tuple[int, int], ...],
    nms: str,
    device: str | None,
    threads: int | None,
    duration: float,
    output: Path | None,
    plot_file: Path | None,
    as_json: bool,
) -> None:
    """Make every form of a student that this machine can make and run, and measure them side by side.

    The forms are FP32, FP16, INT8 for processors and INT8 for TensorRT as ONNX files, in ONNX Runtime and, where it is
    installed, in OpenVINO; where TensorRT is, engines of FP32, FP16 and INT8. The checkpoint in PyTorch is the first
    row. All are evaluated on the same images and timed in turns in one process. A form that fails is a row with its
    reason.

    The files, report.json and report.md go into --output. What is there already and unchanged, with the same settings,
    is not made, evaluated or timed again. `agrees` is the share of the detections with a score above 0.3 that have a
    partner in PyTorch's (one class, IoU 0.5, scores within 0.1).

    \b
    Examples:
      cskd-deploy report work_dirs/student/best.pth --plot forms.svg
      cskd-deploy report work_dirs/student/best.pth --ann aquarium/test --calibration-images aquarium/train/images
    """
    if images is not None and ann is None:
        raise DeployError("--images is the folder of the images of --ann: give that too")
    calibration = None
    if calibration_images is not None or calibration_ann is not None:
        calibration = CalibrationSettings(calibration_images, calibration_ann, calibration_count)
    folder = output or checkpoint.with_name(f"{checkpoint.stem}_forms")
    settings = Settings(
        ann=ann,
        images=images,
        calibration=calibration,
        calibration_count=calibration_count,
        input_sizes=input_sizes,
        graph=GraphForm(input="uint8", nms=nms),
        limit=limit,
        device=device,
        threads=threads,
        duration=duration,
    )

    def say(line: str) -> None:
        click.echo(f"report: {line}", err=True)

    report = report_forms(checkpoint, folder, settings, say, Progress, plot_file)
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else str(report))
    if not as_json:
        click.echo(f"\n{folder / TEXT}, {folder / JSON}" + (f", {plot_file}" if plot_file else ""))
