"""`cskd-deploy infer`."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import click
import numpy as np

import cskd_deploy
from cskd_data.errors import CskdError, DataError
from cskd_data.files import check_writable, write_atomically, written_over
from cskd_data.images import find_images, read_image
from cskd_deploy.backends import NAMES
from cskd_deploy.commands.options import runtime_options
from cskd_deploy.detect.detector import Detector
from cskd_deploy.detect.drawing import draw, drawn_name, write_image
from cskd_deploy.detect.postprocess import Detections
from cskd_deploy.detect.video import Video, VideoFile, drawn_frame, stop_signals, video_source
from cskd_deploy.errors import CheckFailed, DeployError, Interrupted
from cskd_deploy.model.manifest import Manifest
from cskd_deploy.outputs import check_apart, check_output
from cskd_deploy.progress import Progress

SHOWN = 5
USUAL_THRESHOLD = 0.3
SECONDS_BETWEEN_LINES = 5.0
STDOUT = "-"


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    help="Folder for copies of the images, or frames, with the boxes drawn; of a video also a video file "
    "(.mp4 or .avi).",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Write the detections to this file; - is the standard output. Of a video a line for each frame, as it comes.",
)
@click.option(
    "--score-thr",
    type=click.FloatRange(0, 1),
    help="Leave out detections with a lower score. [default: 0.3, or the file's own threshold where that is higher]",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Images at a time, of those in a row that are padded to one size. [default: as many as the graph is fixed to, "
    "else 1]",
)
@click.option("--max-frames", type=click.IntRange(min=1), metavar="N", help="Of a video or a camera, at most so many.")
@click.option("--backend", type=click.Choice(NAMES), help="[default: the one for the file's name]")
@runtime_options
def command(
    model: Path,
    images: tuple[str, ...],
    output: Path | None,
    json_file: Path | None,
    score_thr: float | None,
    batch: int | None,
    max_frames: int | None,
    backend: str | None,
    **options: Any,
) -> None:
    """Detect on images: files, folders, or patterns in quotes ('frames/*.jpg'). Or on a video file, or a camera.

    Prints what it finds in each image. An image that cannot be read is named and left out; the exit code is then 1.

    A video or a camera is given alone: as a file that OpenCV reads, or as camera:0 for the first camera. Each frame is
    detected on, in its turn, and written as it is done; at the end frames a second are those of the whole: reading,
    detecting, drawing. Ctrl-C ends it between two frames: what was written is whole, the exit code is 130. Where a
    file holds clearly fewer frames than it announces, that is said, and the exit code is 1.

    \b
    Examples:
      cskd-deploy infer student.onnx data/shapes/images --output detections --score-thr 0.5
      cskd-deploy infer student.onnx 'data/shapes/images/*.jpg' --json detections.json
      cskd-deploy infer student.onnx traffic.mp4 --output drawn.mp4 --json traffic.jsonl
      cskd-deploy infer student.onnx camera:0 --json - --max-frames 1000
    """
    quiet = str(json_file) == STDOUT
    source = video_source(images)
    if source is not None:
        with contextlib.ExitStack() as stack:
            video = stack.enter_context(Video(source))
            if json_file is not None and not quiet:
                if output is not None:
                    check_apart({"--json": [json_file], "--output": [drawn_frame(output)]})
                check_output(json_file, [model, video.path], what="--json")
            drawn = None if output is None else stack.enter_context(VideoFile(output, video))
            lines = None if json_file is None else stack.enter_context(_Lines(json_file))
            detector = stack.enter_context(cskd_deploy.load(model, backend=backend, **options))
            threshold = _ready(detector, score_thr, model)
            _detect_frames(detector, video, detector.batch(batch), max_frames, threshold, drawn, lines, quiet)
        return
    if max_frames is not None:
        raise DeployError("--max-frames is for a video or a camera: leave it out for images")
    paths = find_images(images)
    drawings = {} if output is None else _drawings(paths, output)
    if json_file is not None and not quiet:
        check_apart({"--json": [json_file], "--output": drawings.values()})
        check_output(json_file, [model, *paths], what="--json")
    if output is not None:
        check_writable(output / "drawing")
    entries: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    undrawn: CskdError | None = None
    with cskd_deploy.load(model, backend=backend, **options) as detector, Progress("infer", "images") as progress:
        threshold = _ready(detector, score_thr, model)
        count, manifest = detector.batch(batch), detector.manifest
        for pairs in detector.batches(_readable(paths, skipped), _size, count):
            for (path, image), all_found in zip(pairs, detector.detect_batch([pair[1] for pair in pairs]), strict=True):
                found = _at_least(threshold, all_found)
                entries.append({"image": str(path), **_entry(image, found, manifest)})
                if not quiet:
                    click.echo(_line(path, found, manifest.classes))
                if path in drawings:
                    try:
                        write_image(drawings[path], draw(image, found, manifest.classes))
                    except CskdError as error:  # what is found is written all the same
                        if json_file is None:
                            raise
                        undrawn, drawings = error, {}
            progress(len(entries) + len(skipped), len(paths))
        progress(len(paths), len(paths))
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
    if undrawn is not None:
        raise undrawn
    if skipped:
        raise CheckFailed(f"{len(skipped)} of {len(paths)} images could not be read, see above")


def _readable(paths: Sequence[Path], skipped: list[dict[str, str]]) -> Iterator[tuple[Path, np.ndarray]]:
    """The images that can be read; the others are named, and added to `skipped`."""
    for path in paths:
        try:
            image = read_image(path)
        except DataError as error:
            click.echo(f"skipped: {error}", err=True)
            skipped.append({"image": str(path), "reason": str(error)})
        else:
            yield path, image


def _size(pair: tuple[Any, np.ndarray]) -> tuple[int, int]:
    return pair[1].shape[0], pair[1].shape[1]


class _Lines:
    """A text file, or the standard output, to which lines are written as they come; a context manager.

    The file is opened for the first line: an older one stays whole until there is something to replace it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = sys.stdout if str(path) == STDOUT else None

    def __enter__(self) -> _Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None and self._file is not sys.stdout:
            self._file.close()

    def write(self, line: str) -> None:
        """Add a line, which others can read at once."""
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w", encoding="utf-8")
        self._file.write(f"{line}\n")
        self._file.flush()


def _detect_frames(
    detector: Detector,
    video: Video,
    batch: int,
    most: int | None,
    threshold: float,
    drawn: VideoFile | None,
    lines: _Lines | None,
    quiet: bool,
) -> None:
    """Detect on a video to its end, to `most` frames, or to a signal.

    Args:
        lines: where a JSON object for each frame goes.
        quiet: nothing else goes to the standard output.

    Raises:
        Interrupted: a signal came.
        CheckFailed: the video ended before the frames that it announces.
    """
    manifest = detector.manifest
    begin = shown = time.perf_counter()
    done = 0
    with stop_signals() as signals:
        for frames in detector.batches(itertools.islice(video, most), lambda frame: frame.size, batch):
            results = detector.detect_batch([frame.image for frame in frames])
            for frame, all_found in zip(frames, results, strict=True):
                found = _at_least(threshold, all_found)
                if lines is not None:
                    entry = {"frame": frame.number, "seconds": frame.seconds, **_entry(frame.image, found, manifest)}
                    lines.write(json.dumps(entry))
                if not quiet:
                    click.echo(_line(f"frame {frame.number}", found, manifest.classes))
                if drawn is not None:
                    drawn.write(draw(frame.image, found, manifest.classes))
            done += len(frames)
            now = time.perf_counter()
            if now - shown >= SECONDS_BETWEEN_LINES:
                shown = now
                click.echo(f"infer {done} frames, {done / (now - begin):.1f} frames/s", err=True)
            if signals:
                break
    seconds = max(time.perf_counter() - begin, 1e-9)
    own = "" if video.rate is None else f"; the source has {video.rate:.3g}"
    click.echo(f"{done} frames in {seconds:.1f} s: {done / seconds:.1f} frames/s{own}", err=True)
    if signals:
        raise Interrupted(f"stopped after {done} frames by {signals[0].name}", signals[0])
    if video.announced is not None:
        raise CheckFailed(
            f"the video ends after {done} frames, about {video.announced} were announced: it is cut off or damaged "
            "(copy it again), or its container counts wrongly"
        )


def _ready(detector: Detector, score_thr: float | None, model: Path) -> float:
    """The score threshold; says what there is to know of how the model runs."""
    for note in detector.backend.notes:
        click.echo(f"note: {note}", err=True)
    return _threshold(score_thr, detector.manifest, model)


def _threshold(asked: float | None, manifest: Manifest, model: Path) -> float:
    own = manifest.postprocessing.score_threshold
    if asked is None:
        return max(USUAL_THRESHOLD, own)
    if not asked >= own:  # nan is nothing
        raise DeployError(
            f"--score-thr {asked:g} is below {own:g}, the score from which {model} keeps detections (its metadata): "
            f"give {own:g} or more"
        )
    return asked


def _at_least(threshold: float, found: Detections) -> Detections:
    kept = found.scores >= np.float32(threshold)
    return Detections(found.boxes[kept], found.scores[kept], found.labels[kept])


def _entry(image: np.ndarray, found: Detections, manifest: Manifest) -> dict[str, Any]:
    return {
        "height": image.shape[0],
        "width": image.shape[1],
        "detections": [
            {"class": manifest.classes[label], "label": label, "score": score, "box": box}
            for box, score, label in zip(
                found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
            )
        ],
    }


def _line(name: object, found: Detections, classes: Sequence[str]) -> str:
    best = [
        f"{classes[label]} {score:.2f} ({', '.join(f'{value:.0f}' for value in box)})"
        for box, score, label in list(zip(found.boxes, found.scores, found.labels, strict=True))[:SHOWN]
    ]
    more = [f"{len(found) - SHOWN} more"] if len(found) > SHOWN else []
    count = f"{len(found)} detection{'' if len(found) == 1 else 's'}"
    return f"{name}: {count}" + (f": {', '.join(best + more)}" if best else "")


def _drawings(paths: list[Path], folder: Path) -> dict[Path, Path]:
    """Where each image's drawing goes: by its name, or by its place below the folder that all images share.

    Both as they were given: of a link its own, not those of what it points to. Where OpenCV writes no files of a name's
    ending, `.png` stands behind it.

    Raises:
        DeployError: a drawing would replace an image or another drawing.
    """
    places = {path: Path(os.path.abspath(path)) for path in paths}
    shared = Path(os.path.commonpath([place.parent for place in places.values()]))
    drawings = {path: folder / drawn_name(place.relative_to(shared)) for path, place in places.items()}
    found = written_over(drawings.values(), paths)
    if found is not None:
        raise DeployError(f"--output {folder} would replace the image {found[1]}: give another folder")
    first: dict[Path, Path] = {}
    for path, drawing in drawings.items():
        if first.setdefault(drawing, path) != path:
            raise DeployError(
                f"--output: the drawings of {first[drawing]} and {path} would both be {drawing}: give them apart, with "
                "a folder each"
            )
    return drawings
