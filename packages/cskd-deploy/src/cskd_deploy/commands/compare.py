"""`cskd-deploy compare`."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from cskd_data.images import list_images
from cskd_deploy.accuracy.compare import Comparison, compare_images, compare_layers
from cskd_deploy.backends import NAMES, backend_for, backend_name, beside, device_among, runs
from cskd_deploy.backends.base import Backend
from cskd_deploy.commands.options import runtime_options
from cskd_deploy.detect.detector import Detector
from cskd_deploy.errors import CheckFailed, DeployError
from cskd_deploy.model.manifest import Manifest
from cskd_deploy.progress import Progress

SHOWN = 10


@click.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option("--images", required=True, type=click.Path(path_type=Path), help="Folder of images.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N images, by name.")
@click.option("--layers", is_flag=True, help="Two ONNX files: the outputs of their layers too. Needs the onnx package.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    metavar="SCORE",
    help="Exit code 1 when a detection has no partner, or their scores lie further apart.",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    type=click.Choice(NAMES),
    help="Of both models; given twice, of the first and the second. [default: the ones for the files' names]",
)
@runtime_options
@click.option("--json", "as_json", is_flag=True, help="Print all images and layers as JSON.")
def command(
    first: Path,
    second: Path,
    images: Path,
    limit: int | None,
    layers: bool,
    tolerance: float | None,
    backends: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Show where two models find other things: exported files of any precision and form, or checkpoints.

    Detections are paired when they have the same class and boxes that overlap by 99 %. A checkpoint runs in PyTorch,
    with its images on the same canvas as the other model's. --layers compares what the layers up to the choice of
    candidates give, by cosine and absolute difference; in Faster R-CNN these are the backbone, the neck and the RPN.

    \b
    Examples:
      cskd-deploy compare work_dirs/student/best.pth student.onnx --images data/shapes/images --limit 20
      cskd-deploy compare student.onnx student_int8.onnx --images data/shapes/images --limit 8 --layers
    """
    if layers and any(backend_name(path) != "onnxruntime" for path in (first, second)):
        raise DeployError("--layers compares two ONNX files: export the checkpoint, then compare the files")
    if layers and "openvino" in backends:
        raise DeployError("--layers shows what the layers give in ONNX Runtime: leave --backend openvino out")
    names = _names((first, second), backends)
    paths = list_images(images)[:limit]
    with ExitStack() as stack:
        detectors = [Detector(backend) for backend in _open((first, second), names, options, stack)]
        manifests = [detector.manifest for detector in detectors]
        if manifests[0].classes != manifests[1].classes:
            raise DeployError(
                f"{first} has the classes {', '.join(manifests[0].classes)}, {second} has "
                f"{', '.join(manifests[1].classes)}: they cannot be compared"
            )
        with Progress("compare", "images") as progress:
            found = compare_images(detectors[0], detectors[1], paths, progress)
        devices = [detector.backend.device for detector in detectors]
        running = dict.fromkeys(note for detector in detectors for note in detector.backend.notes)
        notes = [*_notes(*manifests), *running]
    differing = None
    if layers:
        with Progress("layers", "images") as progress:
            differing = compare_layers(
                first, second, paths, options["threads"], progress, options["allow_external_data"]
            )
    result = Comparison(str(first), str(second), found, differing, (devices[0], devices[1]))
    if as_json:
        click.echo(json.dumps({**result.to_dict(), "tolerance": tolerance, "notes": notes}, indent=2))
    else:
        _print(result, notes)
    if tolerance is not None:
        _check(result, tolerance)


def _names(paths: tuple[Path, Path], backends: tuple[str, ...]) -> tuple[str | None, str | None]:
    """The backend of each model; None for the one of its name."""
    if len(backends) > 2:
        raise DeployError(f"there are two models to compare, and --backend was given {len(backends)} times")
    if len(backends) == 2:
        return backends[0], backends[1]
    taken = [next((name for name in backends if runs(name, path)), None) for path in paths]
    if backends and not any(taken):
        raise DeployError(f"--backend {backends[0]} runs neither {paths[0]} nor {paths[1]}")
    return taken[0], taken[1]


def _open(
    paths: tuple[Path, Path], names: tuple[str | None, str | None], options: dict[str, Any], stack: ExitStack
) -> list[Backend]:
    """Both models, loaded; the exported one first, since it says which canvas a checkpoint's images get, and where."""
    opened: dict[int, Backend] = {}
    taken = [name or backend_name(path) for name, path in zip(names, paths, strict=True)]
    for place in sorted((0, 1), key=lambda one: backend_name(paths[one]) == "pytorch"):
        own = dict(options)
        own["device"] = device_among(taken[place], taken, options["device"])
        for other in opened.values():
            own["like"] = other.manifest
            if backend_name(paths[place]) == "pytorch":
                own["device"] = beside(options["device"], other)
        opened[place] = stack.enter_context(backend_for(paths[place], names[place], **own))
    return [opened[0], opened[1]]


def _notes(first: Manifest, second: Manifest) -> list[str]:
    """What differs between the models beside the models themselves."""
    notes = []
    if first.sha256 != second.sha256:
        notes.append("the models come from different checkpoints (sha256 differs)")
    if first.preprocessing != second.preprocessing or first.graph.dynamic != second.graph.dynamic:
        notes.append("the models resize, normalise or pad images differently")
    if first.postprocessing != second.postprocessing:
        notes.append("the models have different thresholds")
    return notes


def _print(result: Comparison, notes: list[str]) -> None:
    click.echo(f"first  {result.first} ({result.devices[0]})\nsecond {result.second} ({result.devices[1]})")
    click.echo(
        f"{len(result.images)} images, {result.detections} detections, {100 * result.share:.2f} % matched, "
        f"scores within {result.largest_score_difference:.1e}"
    )
    click.echo("largest differences by image\n   first second unmatched  score diff  pixels  image")
    for one in result.worst(SHOWN):
        found = one.agreement
        click.echo(
            f"{found.reference:8} {found.other:6} {one.unmatched:9}  {found.largest_score_difference:10.1e} "
            f"{found.largest_corner_difference:7.3f}  {one.image}"
        )
    if result.layers is not None:
        click.echo(f"largest differences by layer, {len(result.layers)} compared")
        click.echo("   cosine     largest        mean  output")
        for layer in sorted(result.layers, key=lambda layer: layer.cosine)[:SHOWN]:
            click.echo(str(layer))
    for note in notes:
        click.echo(f"note: {note}")


def _check(result: Comparison, tolerance: float) -> None:
    unmatched = sum(one.unmatched for one in result.images)
    if unmatched or result.largest_score_difference > tolerance:
        raise CheckFailed(
            f"{unmatched} detections have no partner, scores lie up to {result.largest_score_difference:.1e} apart "
            f"({tolerance:g} allowed, --tolerance)"
        )
