"""The options of every command that runs a model: they are arguments of `backends.backend_for`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from cskd_deploy.backends import BUFFERS, RUN_DEVICES

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
