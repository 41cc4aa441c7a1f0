"""`cskd-deploy bench`."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from cskd_deploy import environment
from cskd_deploy.backends.base import Backend
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.backends.torch import TorchBackend
from cskd_deploy.bench import STAGES, Latencies, measure, random_images
from cskd_deploy.detector import Detector
from cskd_deploy.images import list_images, read_image
from cskd_deploy.progress import Progress

MOST_IMAGES = 32  # held decoded in memory
ENOUGH_FOR_P99 = 100


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    help="Checkpoint to time in PyTorch in the same run, in turns with the model. Needs torch and cskd-train.",
)
@click.option("--images", type=click.Path(path_type=Path), help="Folder of images. [default: seeded random images]")
@click.option("--duration", type=click.FloatRange(min=0), default=3.0, show_default=True, help="Seconds, at least.")
@click.option("--iterations", type=click.IntRange(min=1), default=10, show_default=True, help="Images, at least.")
@click.option(
    "--warmup", type=click.FloatRange(min=0), default=200, show_default=True, help="Milliseconds before it counts."
)
@click.option("--threads", type=click.IntRange(min=1), help="[default: every core this process may use]")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    model: Path,
    reference: Path | None,
    images: Path | None,
    duration: float,
    iterations: int,
    warmup: float,
    threads: int | None,
    as_json: bool,
) -> None:
    """Time an exported model: pre-processing, inference and post-processing of one image at a time.

    Inference is the graph: network, top-k and decoding; for the reference mmdet's own forward, top-k and decoding in
    PyTorch. Both share the pre- and post-processing (NMS). Reading and decoding image files is not timed.

    \b
    Examples:
      cskd-deploy bench student.onnx
      cskd-deploy bench student.onnx --reference work_dirs/student/best.pth --images data/shapes/images
    """
    used_threads = threads or environment.usable_cores()
    cv2.setNumThreads(used_threads)
    with contextlib.ExitStack() as stack:
        backends: list[Backend] = [stack.enter_context(OnnxRuntimeBackend(model, used_threads))]
        manifest = backends[0].manifest
        if reference is not None:
            size = manifest.preprocessing.input_size
            backends.append(stack.enter_context(TorchBackend(reference, input_size=size, threads=used_threads)))
        pictures, source = _pictures(images, manifest.preprocessing.input_size)
        found = measure(
            [Detector(backend) for backend in backends],
            pictures,
            duration=duration,
            iterations=iterations,
            warmup=warmup / 1e3,
            progress=Progress("bench", "s measured", show_rate=False),
        )
        notes = _notes(found, reference, manifest.sha256, backends)
    surroundings = environment.describe(used_threads)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "environment": surroundings,
                    "images": source,
                    "input_size": list(manifest.preprocessing.input_size),
                    "results": [one.to_dict() for one in found],
                    "speedup": _speedups(found),
                    "notes": notes,
                },
                indent=2,
            )
        )
        return
    _print(found, source, surroundings, notes, manifest.preprocessing.input_size)


def _pictures(folder: Path | None, size: tuple[int, int]) -> tuple[list[np.ndarray], str]:
    if folder is None:
        return random_images(size), f"4 random images of {size[1]} x {size[0]} pixels (seed 0)"
    paths = list_images(folder)[:MOST_IMAGES]
    return [read_image(path) for path in paths], f"{len(paths)} images of {folder}"


def _notes(found: list[Latencies], reference: Path | None, sha256: str, backends: list[Backend]) -> list[str]:
    notes = []
    if reference is None:
        notes.append("add --reference CHECKPOINT to time PyTorch in the same run")
    elif backends[1].manifest.sha256 != sha256:
        notes.append(f"{reference} is not the checkpoint that the model was exported from (sha256 differs)")
    fewest = min(one.count for one in found)
    if fewest < ENOUGH_FOR_P99:
        notes.append(f"p99 rests on {fewest} images only: raise --duration or --iterations")
    return notes


def _speedups(found: list[Latencies]) -> dict[str, float] | None:
    """How many times faster the model's median is than the reference's."""
    if len(found) < 2:
        return None
    return {stage: found[1].summary(stage)["p50"] / found[0].summary(stage)["p50"] for stage in ("inference", "total")}


def _print(
    found: list[Latencies], source: str, surroundings: dict[str, Any], notes: list[str], size: tuple[int, int]
) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in surroundings["versions"].items())
    click.echo(f"{surroundings['processor']}, {surroundings['threads']} threads; {versions}")
    click.echo(f"batch 1, input {size[0]} x {size[1]} (height x width), {source}; milliseconds an image")
    table = Table(box=None, pad_edge=False)
    for title in ("backend", "stage", "mean", "p50", "p90", "p99", "images/s"):
        table.add_column(title, justify="left" if title in ("backend", "stage") else "right", no_wrap=True)
    for one in found:
        for stage in STAGES:
            numbers = one.summary(stage)
            rate = f"{1e3 / numbers['mean']:.1f}" if stage in ("inference", "total") else ""
            table.add_row(
                one.backend if stage == STAGES[0] else "", stage, *(f"{v:.2f}" for v in numbers.values()), rate
            )
    Console(width=100, highlight=False).print(table)
    for one in found:
        click.echo(
            f"{one.backend}: {one.path}, {one.size_bytes / 1e6:.1f} MB, {one.count} images timed, "
            f"{one.detections / one.count:.1f} detections an image"
        )
    speedups = _speedups(found)
    if speedups:
        click.echo(
            f"{found[0].backend} is {speedups['inference']:.2f} times as fast as {found[1].backend} in inference, "
            f"{speedups['total']:.2f} times in the whole (medians)"
        )
    for note in notes:
        click.echo(f"note: {note}")
