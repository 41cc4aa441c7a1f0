"""The options of `export` that lower the precision, and those that build an engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from cskd_deploy.backends import ENGINE_SUFFIXES
from cskd_deploy.backends.tensorrt.export import export_engine
from cskd_deploy.backends.tensorrt.settings import KEYS, BuildSettings, usage
from cskd_deploy.errors import DeployError
from cskd_deploy.lower.conversion import FP32, PRECISIONS, TARGETS, CalibrationSettings, precision_name
from cskd_deploy.lower.precision import PrecisionPlan
from cskd_deploy.model.onnx_file import read_model
from cskd_deploy.progress import Progress

Command = TypeVar("Command", bound=Callable[..., Any])
_NAMED = {precision_name(precision, target) for precision in PRECISIONS for target in TARGETS} - {FP32}

_OPTIONS = (
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default=FP32,
        show_default=True,
        help="int8+fp16: for TensorRT, FP16 where it is not INT8.",
    ),
    click.option(
        "--target",
        type=click.Choice(TARGETS),
        help="int8: what the file is for. `cpu` is ONNX Runtime on processors, `tensorrt` is symmetric, as TensorRT "
        "wants it. [default: cpu; tensorrt with --format trt]",
    ),
    click.option(
        "--calibration-images",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="int8, int8+fp16: pictures to calibrate on and to compare with FP32 on, like those it will see, not those "
        "it is evaluated on. fp16, trt: to compare on. [default there: random images]",
    ),
    click.option(
        "--calibration-ann",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Take only those images that this COCO file lists; without a folder those beside it.",
    ),
    click.option(
        "--calibration-count",
        type=click.IntRange(min=1),
        metavar="N",
        help="At most so many images, spread over the folder. [default: 64]",
    ),
    click.option(
        "--calibration-cache",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="int8, int8+fp16: what calibration finds, as JSON. Written where it does not exist; where it does, "
        "nothing is calibrated, and no pictures are needed. Of another model it is refused.",
    ),
    click.option(
        "--keep-float",
        multiple=True,
        metavar="NAME",
        help="A layer to leave in float (int8+fp16: in FP16), as the student names it (bbox_head.retina_cls), a module "
        "that holds it (bbox_head) or a glob (neck.*_convs). May be given again.",
    ),
)


def precision_options(command: Command) -> Command:
    """The options, which `lower.precision.precision_plan` takes as keywords."""
    for option in reversed(_OPTIONS):  # as decorators do: the last one is applied first
        command = option(command)
    return command


def spelled(name: str) -> str:
    """An option as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


_BUILD = click.option(
    "--trt", multiple=True, metavar="KEY[=VALUE]", help="trt: a setting of the build, see below. May be given again."
)
BUILD_KEYS = "\b\nKeys of --trt, in trtexec's spelling:\n" + "\n".join(
    f"  {usage(name)}\n      {key.help}" for name, key in KEYS.items()
)


def build_options(command: Command) -> Command:
    """The option of `export --format trt`, which `parse_build_settings` and `refuse_build_options` take."""
    return _BUILD(command)


def engine_path(output: Path | None, source: Path, plan: PrecisionPlan, is_onnx: bool) -> Path:
    """Where an engine goes: `output`, or beside what it is made of with its precision in the name, `best.fp16.engine`.

    Args:
        source: a checkpoint, or an ONNX file, which has its own precision where the plan has none.

    Raises:
        DeployError: the name does not end as an engine's does, or the ONNX file cannot be used.
    """
    if output is None:
        precision = read_model(source)[1].precision if is_onnx and plan.is_plain else plan.name
        return _with_precision(source, precision, ENGINE_SUFFIXES[0])
    if output.suffix.lower() not in ENGINE_SUFFIXES:
        raise DeployError(f"--output {output} is no name of an engine: give it one of {', '.join(ENGINE_SUFFIXES)}")
    return output


def onnx_path(engine: Path, plan: PrecisionPlan) -> Path:
    """Where the ONNX file of an engine goes that is exported or converted for it."""
    return _with_precision(engine, plan.name, ".onnx")


def _with_precision(path: Path, precision: str, suffix: str) -> Path:
    """`path` with another suffix, and before it the precision, once: `best.fp16.engine`. FP32 is not named."""
    if precision not in _NAMED:
        return path.with_suffix(suffix)
    return path.with_name(f"{path.stem.removesuffix(f'.{precision}')}.{precision}{suffix}")


def refuse_build_options(trt: Sequence[str]) -> None:
    """Say that `--trt` does nothing where no engine is built.

    Raises:
        DeployError: it was given.
    """
    if trt:
        raise DeployError(f"--trt {trt[0]} is for engines: give --format trt with it")


def build(
    onnx: Path, output: Path, as_json: bool, settings: BuildSettings, pictures: CalibrationSettings | None
) -> None:
    """Build the engine `output` of an ONNX file and print what it is.

    Args:
        pictures: to compare the two on.
    """
    with Progress("export: TensorRT", "%", show_rate=False) as progress:
        result = export_engine(onnx, output, settings, progress, images=_files(pictures, onnx))
    click.echo(json.dumps(result.to_dict(), indent=2) if as_json else str(result))


def _files(pictures: CalibrationSettings | None, onnx: Path) -> list[Path]:
    return [] if pictures is None else pictures.paths(read_model(onnx)[1].classes)
