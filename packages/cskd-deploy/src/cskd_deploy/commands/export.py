"""`cskd-deploy export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from cskd_deploy.backends import DEVICES
from cskd_deploy.backends.tensorrt.export import check_engine_output, require_tensorrt
from cskd_deploy.backends.tensorrt.settings import parse_build_settings
from cskd_deploy.commands.export_options import (
    BUILD_KEYS,
    build,
    build_options,
    engine_path,
    onnx_path,
    precision_options,
    refuse_build_options,
    spelled,
)
from cskd_deploy.errors import DeployError
from cskd_deploy.lower.precision import PrecisionPlan, precision_plan
from cskd_deploy.model.manifest import GraphForm
from cskd_deploy.progress import Progress

if TYPE_CHECKING:
    from cskd_deploy.exporter.onnx import ExportResult
    from cskd_deploy.lower.conversion import PrecisionResult


class BatchSize(click.ParamType):
    """A positive number, or `any`, which becomes None."""

    name = "N|any"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """The number.

        Raises:
            click.BadParameter: it is neither.
        """
        if value == "any":
            return None
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is no batch size, expected a number from 1 on, or any", param, ctx)
        return int(value)


@click.command(epilog=BUILD_KEYS)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Checkpoint of cskd-train.")
@click.option(
    "--onnx",
    "onnx_file",
    type=click.Path(path_type=Path),
    help="An exported FP32 file in place of a checkpoint, for --format trt or a lower --precision. Needs no PyTorch.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Config file to use in place of the one stored in the checkpoint (a plain mmdet checkpoint has none).",
)
@click.option("--format", "file_format", type=click.Choice(["onnx", "trt"]), default="onnx", show_default=True)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    help="File to write. [default: the checkpoint's name with .onnx (trt: .engine), before it the precision (.fp16, "
    ".int8-cpu, .int8-tensorrt, .int8+fp16), beside it]",
)
@click.option(
    "--input-size",
    "input_sizes",
    nargs=2,
    type=int,
    multiple=True,
    metavar="H W",
    help="Fix the height and width of the graph's input. Given twice, images are padded to one of the two: a pair of "
    "orientations. [default: every image as mmdet resizes and pads it]",
)
@click.option(
    "--input",
    "graph_input",
    type=click.Choice(["uint8", "float"]),
    default="uint8",
    show_default=True,
    help="uint8: the graph takes raw pixels (height x width x BGR) and normalises them itself. float: it takes "
    "normalised images (channels x height x width).",
)
@click.option(
    "--batch",
    type=BatchSize(),
    default="1",
    show_default=True,
    help="Images at a time: a number that the graph is fixed to, or any.",
)
@click.option(
    "--nms",
    type=click.Choice(["outside", "graph"]),
    default="outside",
    show_default=True,
    help="Where overlapping detections are removed. graph: by ONNX's NonMaxSuppression; it gives a fixed number of "
    "detections, those of score 0 are none.",
)
@click.option(
    "--proposals",
    type=click.IntRange(min=1),
    metavar="N",
    help="Faster R-CNN: keep the best N proposals of an image. Fewer are faster; `eval --reference` with the "
    "checkpoint shows what they cost. [default: the config's]",
)
@click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="cpu",
    show_default=True,
    help="Where the file is compared with mmdet.",
)
@precision_options
@build_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    checkpoint: Path | None,
    onnx_file: Path | None,
    config: Path | None,
    file_format: str,
    output: Path | None,
    input_sizes: tuple[tuple[int, int], ...],
    graph_input: str,
    batch: int | None,
    nms: str,
    proposals: int | None,
    trt: tuple[str, ...],
    device: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Export a student to one file that carries all that inference needs.

    The graph (ONNX opset 17, IR version 8) takes the resized image and gives decoded boxes, scores and labels before
    NMS. Class names, preprocessing, thresholds and the checkpoint's sha256 are in the file's metadata. The file is
    compared with mmdet in PyTorch before it gets its name; a wrong one is never left behind.

    Images are resized and padded exactly as in the checkpoint's test pipeline: where that keeps the ratio, the graph
    takes every height and width that is a multiple of the padding's divisor. --input-size fixes the size instead:
    images are padded to it, and one that does not fit (an upright one in a lying input) is made smaller until it does;
    export then prints what that costs. A larger --input-size adds padding, it does not enlarge images.

    With --precision fp16, int8 or int8+fp16 the file is then converted. INT8 is calibrated on a folder of images and
    made for a --target; int8+fp16, FP16 where it is not INT8, is for TensorRT. Decoding stays in float32; layers that
    suffer can too: `cskd-deploy search` finds which, --keep-float names them.

    With --format trt the ONNX file is built into a TensorRT engine for the GPU at hand, with a manifest beside it
    (`student.engine.json`) that is checked before the engine is loaded. The ONNX file is kept.

    \b
    Examples:
      cskd-deploy export --checkpoint work_dirs/student/best.pth --output student.onnx
      cskd-deploy export --checkpoint work_dirs/student/best.pth --nms graph --output student_nms.onnx
      cskd-deploy export --checkpoint work_dirs/student/best.pth --input-size 800 1344 --input-size 1344 800
      cskd-deploy export --onnx student.onnx --precision int8 --calibration-images data/shapes/images \\
          --calibration-ann data/shapes/annotations/train.json --output student.int8.onnx
      cskd-deploy export --onnx student.onnx --format trt --output student.engine
    """
    form = GraphForm(input=graph_input, nms=nms, batch=batch, proposals=proposals)
    plan = precision_plan(**options, engine=file_format == "trt", spelled=spelled)
    source = _source(checkpoint, onnx_file, file_format, plan)
    if onnx_file is not None:
        _refuse_checkpoint_options()
    engine = None
    if file_format == "trt":
        settings = parse_build_settings(trt)
        engine = engine_path(output, source, plan, onnx_file is not None)
        require_tensorrt()  # before the work of an ONNX file
    else:
        refuse_build_options(trt)
    target = onnx_path(engine, plan) if engine else output or source.with_suffix(plan.suffix)
    if engine is not None:
        cache = None if plan.calibration is None else plan.calibration.cache
        made = [] if onnx_file is not None and plan.is_plain else [target]
        others = {"ONNX file": made, "calibration cache": [] if cache is None else [cache]}
        check_engine_output(engine, settings, [source, config], others)

    def progress(line: str) -> None:
        click.echo(f"export: {line}", err=True)

    def warn(line: str) -> None:
        progress(f"warning: {line}")

    def plain(path: Path) -> ExportResult:
        """Export the checkpoint to an FP32 file."""
        from cskd_deploy.exporter.onnx import export

        return export(source, path, config, input_sizes, progress, form, device, for_engine=engine is not None)

    def reported(path: Path) -> None:
        """An FP32 file on the way to another."""
        click.echo(str(plain(path)), err=True)

    if onnx_file is None or not plan.is_plain:
        result: ExportResult | PrecisionResult
        if plan.is_plain:
            result = plain(target)
        elif onnx_file is not None:
            result = plan.convert(onnx_file, target, progress, warn, Progress)
        else:
            result = plan.convert_from(reported, target, progress, warn, Progress, [source, config])
        onnx_file = target
        if engine is None:
            click.echo(json.dumps(result.to_dict(), indent=2) if as_json else str(result))
            return
        click.echo(str(result), err=True)
    assert engine is not None
    build(onnx_file, engine, as_json, settings, plan.calibration)


def _refuse_checkpoint_options() -> None:
    """An exported file has its form already.

    Raises:
        DeployError: options that shape the export of a checkpoint were given.
    """
    context = click.get_current_context()
    options = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    shaping = ("config", "input_sizes", "graph_input", "batch", "nms", "proposals", "device")
    given = [options[name] for name in shaping if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if given:
        raise DeployError(f"{', '.join(given)}: only with --checkpoint; the file of --onnx is exported already")


def _source(checkpoint: Path | None, onnx_file: Path | None, file_format: str, plan: PrecisionPlan) -> Path:
    if onnx_file is not None and file_format != "trt" and plan.is_plain:
        raise DeployError("--onnx is an FP32 file to make something else of: give --format trt or --precision with it")
    source = checkpoint or onnx_file
    if source is None or (checkpoint and onnx_file):
        raise DeployError("give what to export: --checkpoint FILE, or for --format trt in its place --onnx FILE")
    return source
