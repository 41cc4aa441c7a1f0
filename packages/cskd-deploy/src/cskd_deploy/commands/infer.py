"""`cskd-deploy infer`."""

from __future__ import annotations

import colorsys
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np

import cskd_deploy
from cskd_data.errors import DataError
from cskd_data.files import check_writable, write_atomically
from cskd_data.images import find_images, read_image
from cskd_deploy.backends import NAMES
from cskd_deploy.commands.options import runtime_options
from cskd_deploy.detect.postprocess import Detections
from cskd_deploy.errors import CheckFailed, DeployError
from cskd_deploy.model.manifest import Manifest
from cskd_deploy.progress import Progress

SHOWN = 5
USUAL_THRESHOLD = 0.3
FONT = cv2.FONT_HERSHEY_SIMPLEX
GOLDEN = 0.618034  # steps of this part of the circle of hues keep any number of colours apart


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="Folder for copies of the images with the boxes drawn."
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Write the detections to this file; - is the standard output.",
)
@click.option(
    "--score-thr",
    type=click.FloatRange(0, 1),
    help="Leave out detections with a lower score. [default: 0.3, or the file's own threshold where that is higher]",
)
@click.option("--backend", type=click.Choice(NAMES), help="[default: the one for the file's name]")
@runtime_options
def command(
    model: Path,
    images: tuple[str, ...],
    output: Path | None,
    json_file: Path | None,
    score_thr: float | None,
    backend: str | None,
    **options: Any,
) -> None:
    """Detect on images: files, folders, or patterns in quotes ('frames/*.jpg', the frames of a video).

    Prints what it finds in each image. An image that cannot be read is named and left out; the exit code is then 1.

    \b
    Examples:
      cskd-deploy infer student.onnx data/shapes/images --output detections --score-thr 0.5
      cskd-deploy infer student.onnx 'data/shapes/images/*.jpg' --json detections.json
    """
    paths = find_images(images)
    drawings = {} if output is None else _drawings(paths, output)
    quiet = json_file is not None and str(json_file) == "-"
    if json_file is not None and not quiet:
        check_writable(json_file)
    entries: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    with cskd_deploy.load(model, backend=backend, **options) as detector, Progress("infer", "images") as progress:
        manifest = detector.manifest
        threshold = _threshold(score_thr, manifest, model)
        for note in detector.backend.notes:
            click.echo(f"note: {note}", err=True)
        for done, path in enumerate(paths, start=1):
            try:
                image = read_image(path)
            except DataError as error:
                click.echo(f"skipped: {error}", err=True)
                skipped.append({"image": str(path), "reason": str(error)})
            else:
                found = _at_least(threshold, detector.detect(image))
                entries.append(_entry(path, image, found, manifest))
                if not quiet:
                    click.echo(_line(path, found, manifest.classes))
                if path in drawings:
                    _write_image(drawings[path], draw(image, found, manifest.classes))
            progress(done, len(paths))
    if json_file is not None:
        result = {
            "model": str(model),
            "device": detector.backend.device,
            "score_threshold": threshold,
            "images": entries,
            "skipped": skipped,
        }
        text = json.dumps(result)
        if quiet:
            click.echo(text)
        else:
            write_atomically(json_file, lambda file: file.write(text.encode()))
    if skipped:
        raise CheckFailed(f"{len(skipped)} of {len(paths)} images could not be read, see above")


def _threshold(asked: float | None, manifest: Manifest, model: Path) -> float:
    own = manifest.postprocessing.score_threshold
    if asked is None:
        return max(USUAL_THRESHOLD, own)
    if asked < own:
        raise DeployError(
            f"--score-thr {asked:g} is below {own:g}, the score from which {model} keeps detections (its metadata): "
            f"give {own:g} or more"
        )
    return asked


def _at_least(threshold: float, found: Detections) -> Detections:
    kept = found.scores >= np.float32(threshold)
    return Detections(found.boxes[kept], found.scores[kept], found.labels[kept])


def _entry(path: Path, image: np.ndarray, found: Detections, manifest: Manifest) -> dict[str, Any]:
    return {
        "image": str(path),
        "height": image.shape[0],
        "width": image.shape[1],
        "detections": [
            {"class": manifest.classes[label], "label": label, "score": score, "box": box}
            for box, score, label in zip(
                found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
            )
        ],
    }


def _line(path: Path, found: Detections, classes: Sequence[str]) -> str:
    best = [
        f"{classes[label]} {score:.2f} ({', '.join(f'{value:.0f}' for value in box)})"
        for box, score, label in list(zip(found.boxes, found.scores, found.labels, strict=True))[:SHOWN]
    ]
    more = [f"{len(found) - SHOWN} more"] if len(found) > SHOWN else []
    count = f"{len(found)} detection{'' if len(found) == 1 else 's'}"
    return f"{path}: {count}" + (f": {', '.join(best + more)}" if best else "")


def _drawings(paths: list[Path], folder: Path) -> dict[Path, Path]:
    """Where each image's drawing goes: by its name, or by its place below the folder that all images share.

    Raises:
        DeployError: a drawing would replace an image, or the folder cannot be written.
    """
    resolved = {path: path.resolve() for path in paths}
    shared = Path(os.path.commonpath([path.parent for path in resolved.values()]))
    drawings = {path: folder / place.relative_to(shared) for path, place in resolved.items()}
    originals = set(resolved.values())
    for path, drawing in drawings.items():
        if drawing.resolve() in originals:
            raise DeployError(f"--output {folder} would replace the image {path}: give another folder")
    check_writable(folder / "drawing")
    return drawings


def _write_image(path: Path, image: np.ndarray) -> None:
    suffix = path.suffix or ".png"
    done, content = cv2.imencode(suffix, image) if cv2.haveImageWriter(f"image{suffix}") else (False, None)
    if not done or content is None:
        raise DeployError(f"{path} cannot be written: OpenCV writes no {suffix} files")
    write_atomically(path.with_suffix(suffix), lambda file: file.write(content.tobytes()))


def draw(image: np.ndarray, detections: Detections, classes: Sequence[str]) -> np.ndarray:
    """A copy of a BGR uint8 image `(height, width, 3)` with boxes, class names and scores; the best on top."""
    drawn = image.copy()
    scale = max(min(image.shape[:2]) / 900, 0.35)
    thickness = max(round(2 * scale), 1)
    for box, score, label in reversed(list(zip(detections.boxes, detections.scores, detections.labels, strict=True))):
        left, top, right, bottom = (int(value) for value in np.clip(np.rint(box), -1, max(image.shape)))
        colour = _colour(int(label))
        cv2.rectangle(drawn, (left, top), (right, bottom), colour, thickness)
        # OpenCV's fonts have the characters of ASCII only.
        text = f"{classes[label].encode('ascii', 'replace').decode()} {score:.2f}"
        (width, height), below = cv2.getTextSize(text, FONT, scale, thickness)
        base = min(max(top - below, height), image.shape[0] - below)
        cv2.rectangle(drawn, (left, base - height), (left + width, base + below), colour, cv2.FILLED)
        cv2.putText(drawn, text, (left, base), FONT, scale, (255, 255, 255), thickness, cv2.LINE_AA)
    return drawn


def _colour(label: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(label * GOLDEN % 1, 0.9, 0.7)
    return round(255 * blue), round(255 * green), round(255 * red)
