"""`cskd-deploy bench`."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np

from cskd_data.files import check_writable, sha256_of_file
from cskd_data.images import list_images, read_image
from cskd_deploy.backends import NAMES, backend_for, backend_name, runs
from cskd_deploy.backends.onnxruntime_settings import parse_settings
from cskd_deploy.commands.options import beside, runtime_options
from cskd_deploy.detect.detector import Detector
from cskd_deploy.errors import DeployError
from cskd_deploy.measure import environment
from cskd_deploy.measure.bench import check_comparable, differences, measure, random_images
from cskd_deploy.measure.cold_start import ColdStart, measure_cold
from cskd_deploy.measure.plot import check_plotting, plot, read_evaluations
from cskd_deploy.measure.report import BenchReport, notes_on_samples
from cskd_deploy.progress import Progress

MOST_IMAGES = 32  # held decoded in memory


@dataclass(frozen=True)
class Subject:
    """A file in a backend."""

    path: Path
    backend: str
    options: dict[str, Any]


class BatchSizes(click.ParamType):
    """`1,2,4`."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The sizes, each once.

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
            self.fail(f"{value!r} are no batch sizes, expected for example 1,2,4", param, ctx)
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
@click.option("--batch", "batches", type=BatchSizes(), default="1", show_default=True, help="Sizes of a batch.")
@click.option("--duration", type=click.FloatRange(min=0), default=3.0, show_default=True, help="Seconds, at least.")
@click.option("--iterations", type=click.IntRange(min=1), default=10, show_default=True, help="Batches, at least.")
@click.option(
    "--warmup",
    type=click.FloatRange(min=0),
    help="Milliseconds before it counts. [default: 200, on a GPU 2000]",
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
    batches: tuple[int, ...],
    duration: float,
    iterations: int,
    warmup: float | None,
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

    Batches follow each other in one synchronous stream: images/s is the batch over its mean latency. A ratio is given
    between results of one device only; a checkpoint runs on the device of the first model.

    --warmup, --duration and --iterations are trtexec's: milliseconds, then at least so many seconds and at least so
    many batches of each model.

    \b
    Examples:
      cskd-deploy bench student.onnx
      cskd-deploy bench student.onnx --reference work_dirs/student/best.pth --images data/shapes/images
      cskd-deploy bench student.onnx student_int8.onnx --threads 1 --ort spinning=off --plot latency.png
    """
    if plot_file is not None:
        check_plotting()
        check_writable(plot_file)
    elif evaluations:
        raise DeployError("--eval is for the picture of latency against mAP: give --plot FILE.png with it")
    known = read_evaluations(evaluations)
    used_threads = options["threads"] or environment.usable_cores()
    cv2.setNumThreads(used_threads)
    options = {**options, "threads": used_threads, "ort": parse_settings(ort)}
    files = [*models, *([reference] if reference else [])]
    # Checkpoints come last: they are run at the size of the first exported file.
    files.sort(key=lambda path: backend_name(path) == "pytorch")
    subjects = _subjects(files, backends, options)
    with contextlib.ExitStack() as stack:
        detectors: list[Detector] = []
        for subject in subjects:
            if backend_name(subject.path) == "pytorch" and detectors:
                subject.options["like"] = detectors[0].manifest
                subject.options["device"] = beside(options["device"], detectors[0].backend)
            backend = stack.enter_context(backend_for(subject.path, subject.backend, **subject.options))
            subject.options["device"] = backend.device  # that of its cold start
            detectors.append(Detector(backend))
        notes = _unlike(detectors, force)
        size = detectors[0].manifest.preprocessing.input_size
        pictures, source = _pictures(images, size, max(batches))
        starts, failures = _cold_starts(subjects) if cold else ({}, [])
        found = measure(
            detectors,
            pictures,
            batches=batches,
            duration=duration,
            iterations=iterations,
            warmup=None if warmup is None else warmup / 1e3,
            progress=Progress("bench", "s measured", show_rate=False),
        )
        notes += dict.fromkeys(note for detector in detectors for note in detector.backend.notes)
        notes += [*failures, *_notes(detectors), *notes_on_samples(found)]
    for one in found:
        one.cold = starts.get((one.path, one.backend))
        one.sha256 = sha256_of_file(Path(one.path))
    settings = {**environment.describe(used_threads), "onnxruntime_settings": str(options["ort"])}
    if plot_file is not None:
        notes += [f"{label} has no evaluation, and is not in the picture" for label in plot(found, known, plot_file)]
    report = BenchReport(found, settings, source, size, notes)
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
        return
    report.print()
    if plot_file is not None:
        click.echo(f"picture: {plot_file}")


def _subjects(files: list[Path], backends: tuple[str, ...], options: dict[str, Any]) -> list[Subject]:
    """Each file in each backend that was asked for and runs it."""
    # A checkpoint has one backend, and is there to be compared with.
    taken = {path: [name for name in backends if runs(name, path)] for path in files}
    subjects = []
    for path in dict.fromkeys(files):
        natural = backend_name(path)
        names = taken[path] or ([natural] if not backends or natural == "pytorch" else [])
        if not names:
            raise DeployError(f"{path} runs in {natural}, not in {', '.join(backends)}: change --backend")
        subjects += [Subject(path, name, dict(options)) for name in dict.fromkeys(names)]
    idle = [name for name in backends if not any(name in names for names in taken.values())]
    if idle:
        raise DeployError(f"--backend {idle[0]} runs none of the files given: {', '.join(map(str, files))}")
    return subjects


def _unlike(detectors: list[Detector], force: bool) -> list[str]:
    if not force:
        check_comparable(detectors)
    return [f"not the same work: {difference}" for difference in differences(detectors)]


def _pictures(folder: Path | None, size: tuple[int, int], batch: int) -> tuple[list[np.ndarray], str]:
    if folder is None:
        return random_images(size), f"4 random images of {size[1]} x {size[0]} pixels (seed 0)"
    pictures = [read_image(path) for path in list_images(folder)[:MOST_IMAGES]]
    if batch > 1:  # a batch is one array
        pictures = [picture for picture in pictures if picture.shape == pictures[0].shape]
    return pictures, f"{len(pictures)} images of {folder}"


def _cold_starts(subjects: list[Subject]) -> tuple[dict[tuple[str, str], ColdStart], list[str]]:
    found, failures = {}, []
    for subject in subjects:
        try:
            start = measure_cold(subject.path, subject.backend, subject.options)
        except DeployError as error:
            failures.append(str(error))
        else:
            found[str(subject.path), subject.backend] = start
    return found, failures


def _notes(detectors: list[Detector]) -> list[str]:
    first = detectors[0]
    checkpoints = [detector for detector in detectors if detector.backend.name == "pytorch"]
    if not checkpoints:
        return ["add --reference CHECKPOINT to time PyTorch in the same run"]
    return [
        f"{detector.backend.path} is not the checkpoint that {first.backend.path} was exported from (sha256 differs)"
        for detector in checkpoints
        if detector.manifest.sha256 != first.manifest.sha256
    ]
