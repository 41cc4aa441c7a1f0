"""`cskd-deploy triton`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cskd_deploy.backends import DEVICES
from cskd_deploy.serving.triton import write_repository


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--name", help="Of the model, which is its folder in OUT.  [default: the file's name]")
@click.option(
    "--device",
    type=click.Choice(DEVICES),
    help="Where the server runs it. [default: a GPU where the server has one, else the processor]",
)
@click.option("--instances", type=click.IntRange(min=1), default=1, show_default=True, help="Side by side on a device.")
@click.option(
    "--max-batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Images at a time, of a file exported with --batch any.  [default: 8; of an engine, its profile's]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    model: Path,
    output: Path,
    name: str | None,
    device: str | None,
    instances: int,
    max_batch: int | None,
    as_json: bool,
) -> None:
    """Write a model repository of NVIDIA's Triton Inference Server for an exported file.

    OUT/NAME gets config.pbtxt (backend onnxruntime, or tensorrt for an engine; inputs and outputs as the graph has
    them; the file's manifest as a parameter), labels.txt, a README that says what a client does before and after the
    graph, with a client to run, and the file as version 1. OUT may hold other models. No runtime and no server is
    needed here.

    \b
    Examples:
      cskd-deploy triton student.onnx models
      cskd-deploy triton student.engine models --name cards --instances 2
    """
    result = write_repository(model, output, name, device, instances, max_batch)
    click.echo(json.dumps(result.to_dict(), indent=2) if as_json else str(result))
