"""`cskd-deploy bench`."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

import cskd_data
from cskd_data.errors import DataError
from cskd_deploy.backends import NAMES
from cskd_deploy.backends.onnxruntime_settings import parse_settings
from cskd_deploy.commands.options import runtime_options
from cskd_deploy.errors import DeployError
from cskd_deploy.measure.benchmark import benchmark, images_of
from cskd_deploy.measure.plot import check_evaluated, check_plot, plot, read_evaluations
from cskd_deploy.progress import Progress


class Counts(click.ParamType):
    """`1,2,4`.

    Args:
        what: they count.
    """

    name = "N,N,..."

    def __init__(self, what: str) -> None:
        self._what = what

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The numbers, each once.

        Raises:
            click.BadParameter: not positive whole numbers.
        """
        if isinstance(value, tuple):
            return value
        try:
            sizes = tuple(dict.fromkeys(int(text) for text in str(value).replace(",", " ").split()))
        except ValueError:
            sizes = ()
        if not sizes or min(sizes) < 1:
            self.fail(f"{value!r} are no {self._what}, expected for example 1,2,4", param, ctx)
        return sizes


@click.command()
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    help="Checkpoint to time in PyTorch in the same run, in turns with the models. Needs torch and cskd-train.",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    type=click.Choice(NAMES),
    help="Run each file in this backend; may be given several times. [default: the one for the file's name]",
)
@click.option("--images", type=click.Path(path_type=Path), help="Folder of images. [default: seeded random images]")
@click.option("--ann", type=click.Path(path_type=Path), help="A data set, as of eval, to time on its images.")
@click.option(
    "--batch",
    "batches",
    type=Counts("batch sizes"),
    help="Sizes of a batch. [default: as many images as a graph is fixed to, else 1]",
)
@click.option(
    "--streams",
    type=Counts("numbers of streams"),
    help="Beside latency, the throughput of exported files with so many batches under way at a time, each in a copy of "
    "the model. They share the cores; with --threads each has so many.",
)
@click.option("--duration", type=click.FloatRange(min=0), default=3.0, show_default=True, help="Seconds, at least.")
@click.option("--iterations", type=click.IntRange(min=1), default=10, show_default=True, help="Batches, at least.")
@click.option(
    "--warmup",
    type=click.FloatRange(min=0),
    help="Milliseconds before it counts. [default: 200, on a GPU 2000]",
)
@click.option(
    "--mlperf",
    is_flag=True,
    help="As long as MLPerf's runs, in place of --duration and --iterations: 600 s each, and 1024 images one at a "
    "time (single-stream) or 24576 in batches or streams (offline).",
)
@runtime_options
@click.option("--cold/--no-cold", default=True, show_default=True, help="Time and memory of a process of its own.")
@click.option("--force", is_flag=True, help="Time files together that do different work; what differs is a note.")
@click.option("--ort", "ort", multiple=True, metavar="NAME=VALUE", help="Of ONNX Runtime: graph, arena, spinning.")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Draw the result. Needs matplotlib.")
@click.option(
    "--eval",
    "evaluations",
    multiple=True,
    type=click.Path(path_type=Path),
    help="JSON of `eval --json` of a file that is timed: --plot shows latency against mAP. May be given several times.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    models: tuple[Path, ...],
    reference: Path | None,
    backends: tuple[str, ...],
    images: Path | None,
    ann: Path | None,
    batches: tuple[int, ...] | None,
    streams: tuple[int, ...] | None,
    duration: float,
    iterations: int,
    warmup: float | None,
    mlperf: bool,
    cold: bool,
    force: bool,
    ort: tuple[str, ...],
    plot_file: Path | None,
    evaluations: tuple[Path, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Time models in turns: pre-processing, inference and post-processing, batch by batch.

    Inference is the graph: network, top-k and decoding (with Faster R-CNN also the proposals and their NMS); for a
    checkpoint mmdet's own code in PyTorch, up to the same point. All share the pre- and post-processing (NMS). Reading
    and decoding image files is not timed. On a GPU the copies to it and back are part of the inference, and shown apart
    where the backend can tell (h2d, compute, d2h).

    For latency batches follow each other in one synchronous stream: images/s is the batch over its mean latency. With
    --streams several do so at the same time: images/s is that of all of them, and the latency that under this load. A
    ratio is given between results of one device only, over --reference or else the first model; a checkpoint runs on
    the device of the first model.

    Notes say when times are unstable (p90 above 1.2 times p50), when a GPU waits for the processor or for copies, and
    what to do about it.

    --warmup, --duration and --iterations are trtexec's: milliseconds, then at least so many seconds and at least so
    many batches of each model.

    \b
    Examples:
      cskd-deploy bench student.onnx
      cskd-deploy bench student.onnx --reference work_dirs/student/best.pth --images data/shapes/images
      cskd-deploy bench student.onnx student_int8.onnx --threads 1 --ort spinning=off --plot latency.png
      cskd-deploy bench any.onnx --batch 1,8 --streams 2,4
    """
    source = click.get_current_context().get_parameter_source
    if mlperf and ParameterSource.COMMANDLINE in (source("duration"), source("iterations")):
        raise DeployError("--mlperf says how long to measure: leave --duration and --iterations out")
    if evaluations and plot_file is None:
        raise DeployError("--eval is for the picture of latency against mAP: give --plot FILE.png with it")
    scores = read_evaluations(evaluations)
    pictures = images if ann is None else cskd_data.read(ann, images)
    if plot_file is not None:
        files = [*models, *([reference] if reference else [])]
        check_plot(plot_file, [*files, *evaluations, *images_of(pictures)])
        check_evaluated(files, scores)
    report = benchmark(
        models,
        pictures,
        reference=reference,
        backends=backends,
        batches=batches or (),
        streams=streams or (),
        duration=duration,
        iterations=iterations,
        warmup=None if warmup is None else warmup / 1e3,
        mlperf=mlperf,
        cold=cold,
        force=force,
        progress=functools.partial(Progress, show_rate=False),
        ort=parse_settings(ort),
        **options,
    )
    fault = None
    if plot_file is not None:
        try:
            unplotted = plot(report.results, scores, plot_file)
        except DataError as error:  # the disk is full: the figures are shown all the same
            fault, unplotted = error, []
        notes = [f"{label} has no evaluation, and is not in the picture" for label in unplotted]
        report = dataclasses.replace(report, notes=[*report.notes, *notes])
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        report.print()
    if fault is not None:
        raise fault
    if plot_file is not None and not as_json:
        click.echo(f"picture: {plot_file}")
