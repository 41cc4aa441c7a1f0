"""Options that several commands have: of running a model (arguments of `backends.backend_for`), and of calibration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cskd_deploy.backends import BUFFERS, RUN_DEVICES
from cskd_deploy.lower.conversion import CalibrationSettings

_OPTIONS = (
    click.option(
        "--device",
        type=click.Choice(RUN_DEVICES),
        help="Where models run; gpu (Intel's) and npu with --backend openvino. [default: cuda where the runtime can "
        "use it, else cpu]",
    ),
    click.option("--threads", type=click.IntRange(min=1), help="[default: every core this process may use]"),
    click.option("--allow-external-data", is_flag=True, help="ONNX: read weights from files below the model's folder."),
    click.option("--buffers", type=click.Choice(BUFFERS), help="TensorRT: the package that holds GPU memory."),
    click.option("--cuda-graph", is_flag=True, help="TensorRT: replay the work as a CUDA graph."),
    click.option("--trust-engine", is_flag=True, help="TensorRT: load an engine that no manifest vouches for."),
)


def runtime_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `device`, `threads`, `allow_external_data`, `buffers`, `cuda_graph` and `trust_engine`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def calibration_options(help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command `calibration_images`, `calibration_ann` and `calibration_count`.

    Args:
        help: what the images are for.
    """
    a_path = click.Path(path_type=Path)
    options = (
        click.option("--calibration-images", type=a_path, metavar="DIR", help=help),
        click.option(
            "--calibration-ann",
            type=a_path,
            metavar="FILE",
            help="Only those images that this COCO file lists; without a folder those beside it.",
        ),
        click.option(
            "--calibration-count",
            type=click.IntRange(min=1),
            default=CalibrationSettings.count,
            show_default=True,
            metavar="N",
            help="At most so many images, spread over the folder.",
        ),
    )

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add
