"""`cskd-deploy export`."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path), help="Checkpoint of cskd-train.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Config file to use in place of the one stored in the checkpoint (a plain mmdet checkpoint has none).",
)
@click.option("--format", "file_format", type=click.Choice(["onnx"]), default="onnx", show_default=True)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    help="File to write. [default: the checkpoint's name with .onnx, beside it]",
)
@click.option(
    "--input-size",
    nargs=2,
    type=int,
    metavar="H W",
    help="Height and width of the graph's input. [default: the test pipeline's scale, rounded up to its padding: "
    "(1333, 800) gives 800 1344]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    checkpoint: Path,
    config: Path | None,
    file_format: str,
    output: Path | None,
    input_size: tuple[int, int] | None,
    as_json: bool,
) -> None:
    """Export a student to one file that carries all that inference needs.

    The graph takes one normalised image and gives decoded boxes, scores and labels before NMS. Class names,
    preprocessing, thresholds and the checkpoint's sha256 are in the file's metadata. The file is compared with mmdet in
    PyTorch before it gets its name; a wrong one is never left behind.

    Images keep the scale of the checkpoint's test pipeline and are padded to the input's size. An image that would not
    fit (an upright one in a lying input) is made smaller until it does: give a square --input-size to
    keep the scale of both. A larger --input-size adds padding, it does not enlarge images.

    \b
    Example:
      cskd-deploy export --checkpoint work_dirs/student/best.pth --output student.onnx
    """
    from cskd_deploy.onnx_export import export

    target = output or checkpoint.with_suffix(".onnx")
    result = export(checkpoint, target, config, input_size, lambda line: click.echo(f"export: {line}", err=True))
    click.echo(json.dumps(result.to_dict(), indent=2) if as_json else str(result))
