"""The options of `export` that lower the precision, and those that build an engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from cskd_deploy.backends import ENGINE_SUFFIXES
from cskd_deploy.backends.tensorrt.export import export_engine, read_model
from cskd_deploy.backends.tensorrt.settings import KEYS, BuildSettings, usage
from cskd_deploy.errors import DeployError
from cskd_deploy.lower.calibration import calibration_images
from cskd_deploy.lower.conversion import (
    FP32,
    PRECISIONS,
    TARGETS,
    CalibrationSettings,
    PrecisionResult,
    convert_to_fp16,
    convert_to_int8,
    precision_name,
)
from cskd_deploy.progress import Progress

Command = TypeVar("Command", bound=Callable[..., Any])
_NAMED = {precision_name(precision, target) for precision in PRECISIONS for target in TARGETS} - {FP32}

_OPTIONS = (
    click.option("--precision", type=click.Choice(PRECISIONS), default=FP32, show_default=True),
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
        help="int8: pictures to calibrate on and to compare with FP32 on, like those it will see, not those it is "
        "evaluated on. fp16, trt: to compare on. [default there: random images]",
    ),
    click.option(
        "--calibration-ann",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Take only those images of the folder that this COCO file lists.",
    ),
    click.option(
        "--calibration-count",
        type=click.IntRange(min=1),
        metavar="N",
        help="At most so many images, spread over the folder. [default: 64]",
    ),
    click.option(
        "--keep-float",
        multiple=True,
        metavar="NAME",
        help="fp16, int8: a layer to leave in float, as the student names it (bbox_head.retina_cls), a module that "
        "holds it (bbox_head) or a glob (neck.*_convs). May be given again.",
    ),
)
_INT8_ONLY = ("target",)
_PICTURES = ("calibration_images", "calibration_ann", "calibration_count")


@dataclass(frozen=True)
class PrecisionPlan:
    """What the options ask for, checked for consistency."""

    precision: str
    target: str
    keep_float: tuple[str, ...]
    calibration: CalibrationSettings | None  # pictures to calibrate on, and to compare with FP32 on

    @property
    def is_plain(self) -> bool:
        """Whether the FP32 file is all that is wanted."""
        return self.precision == FP32

    @property
    def name(self) -> str:
        """What the file's manifest calls it: `fp32`, `fp16`, `int8-cpu`, `int8-tensorrt`."""
        return precision_name(self.precision, self.target)

    @property
    def suffix(self) -> str:
        """The end of the default file name: `.onnx`, `.fp16.onnx`, `.int8-cpu.onnx`."""
        return ".onnx" if self.is_plain else f".{self.name}.onnx"

    def convert(self, source: Path, output: Path, progress: Callable[[str], None]) -> PrecisionResult:
        """Write the FP32 file `source` in the lower precision."""
        if self.precision != "int8":
            return convert_to_fp16(source, output, self.keep_float, progress, self.calibration)
        assert self.calibration is not None
        with Progress("export: calibration", "images") as counted:
            return convert_to_int8(source, output, self.target, self.calibration, self.keep_float, progress, counted)


def precision_options(command: Command) -> Command:
    """The options, which `precision_plan` takes as keywords."""
    for option in reversed(_OPTIONS):  # as decorators do: the last one is applied first
        command = option(command)
    return command


def precision_plan(default_target: str, options: dict[str, Any]) -> PrecisionPlan:
    """Check the options against each other, and take them out of `options`.

    Raises:
        DeployError: an option has no meaning beside the others, or one that is needed is missing.
    """
    given = {name: options.pop(name) for name in ("precision", "keep_float", *_PICTURES, *_INT8_ONLY)}
    precision = given["precision"]
    if precision != "int8":
        _refuse(given, _INT8_ONLY, "--precision int8")
    if precision == FP32:
        _refuse(given, ("keep_float",), "--precision fp16 or int8")
        if default_target != "tensorrt":
            _refuse(given, _PICTURES, "--precision fp16 or int8, or --format trt")
    if default_target == "tensorrt" and given["target"] == "cpu":
        raise DeployError("--target cpu has int32 biases, which TensorRT refuses: leave it out with --format trt")
    calibration = None
    if precision == "int8" or any(given[name] is not None for name in _PICTURES):
        why = "--precision int8 needs images to calibrate on" if precision == "int8" else "which images"
        calibration = CalibrationSettings(
            images=_needed(given, "calibration_images", why),
            annotations=given["calibration_ann"],
            count=given["calibration_count"] or CalibrationSettings.count,
        )
    return PrecisionPlan(precision, given["target"] or default_target, given["keep_float"], calibration)


def _refuse(given: dict[str, Any], names: tuple[str, ...], wanted: str) -> None:
    for name in names:
        if given[name] not in (None, ()):
            raise DeployError(f"{_option(name)} is for {wanted}: give that too, or leave it out")


def _needed(given: dict[str, Any], name: str, why: str) -> Path:
    path: Path | None = given[name]
    if path is None:
        raise DeployError(f"{why}: give {_option(name)}")
    return path


def _option(name: str) -> str:
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
    if pictures is None:
        return []
    _, manifest = read_model(onnx)
    return calibration_images(pictures.images, pictures.count, pictures.annotations, manifest.classes)
