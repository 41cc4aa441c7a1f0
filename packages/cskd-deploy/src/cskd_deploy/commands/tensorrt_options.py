"""The options of `export` that are for building an engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from cskd_deploy.backends import ENGINE_SUFFIXES
from cskd_deploy.engine_shapes import parse_shapes
from cskd_deploy.errors import DeployError
from cskd_deploy.progress import Progress
from cskd_deploy.tensorrt_build import HARDWARE, BuildSettings
from cskd_deploy.tensorrt_export import export_engine

Command = TypeVar("Command", bound=Callable[..., Any])
SHAPES = "NAME:SHAPE,..."

_BUILD = (
    click.option(
        "--workspace",
        type=click.IntRange(min=1),
        metavar="MIB",
        help="trt: GPU memory that a layer may take. [default: all]",
    ),
    click.option(
        "--timing-cache",
        type=click.Path(path_type=Path),
        help="trt: file that keeps the timings of layers, read where it exists: the next build is faster.",
    ),
    click.option(
        "--version-compatible", is_flag=True, help="trt: the engine runs with later versions of TensorRT too; slower."
    ),
    click.option(
        "--hardware-compatible",
        type=click.Choice(list(HARDWARE)),
        default="none",
        show_default=True,
        help="trt: other GPUs that the engine runs on too; slower.",
    ),
    click.option("--min-shapes", metavar=SHAPES, help="trt: smallest shapes of dynamic inputs: image:1x320x320x3"),
    click.option("--opt-shapes", metavar=SHAPES, help="trt: shapes to be fastest at. [default: the input size]"),
    click.option("--max-shapes", metavar=SHAPES, help="trt: largest shapes of dynamic inputs."),
)


def build_options(command: Command) -> Command:
    """The options of `export --format trt`, which `build` takes as keywords."""
    for option in reversed(_BUILD):  # as decorators do: the last one is applied first
        command = option(command)
    return command


def engine_path(output: Path | None, source: Path) -> Path:
    """Where an engine goes: `output`, or beside what it is made of.

    Raises:
        DeployError: the name is not one by which an engine is known.
    """
    path = output or source.with_suffix(ENGINE_SUFFIXES[0])
    if path.suffix.lower() not in ENGINE_SUFFIXES:
        raise DeployError(f"--output {path} is no name of an engine: give it one of {', '.join(ENGINE_SUFFIXES)}")
    return path


def refuse_build_options(options: Mapping[str, Any]) -> None:
    """Say that options of `build_options` do nothing where no engine is built.

    Raises:
        DeployError: one of them was given.
    """
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value and value != "none"]
    if given:
        raise DeployError(f"{', '.join(given)} is for engines: give --format trt with it")


def build(
    onnx: Path,
    output: Path,
    as_json: bool,
    *,
    workspace: int | None,
    timing_cache: Path | None,
    version_compatible: bool,
    hardware_compatible: str,
    min_shapes: str | None,
    opt_shapes: str | None,
    max_shapes: str | None,
) -> None:
    """Build the engine `output` of an ONNX file and print what it is."""
    settings = BuildSettings(
        workspace_mib=workspace,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        min_shapes=parse_shapes(min_shapes, "--min-shapes"),
        opt_shapes=parse_shapes(opt_shapes, "--opt-shapes"),
        max_shapes=parse_shapes(max_shapes, "--max-shapes"),
    )
    progress = Progress("export: TensorRT", "%", show_rate=False)
    result = export_engine(onnx, output, settings, timing_cache, progress)
    click.echo(json.dumps(result.to_dict(), indent=2) if as_json else str(result))
