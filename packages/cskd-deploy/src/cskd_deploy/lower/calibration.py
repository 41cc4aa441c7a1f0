"""Images that show which values the activations of a network take, prepared as for inference."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

import cskd_data
from cskd_data.errors import DataError
from cskd_data.images import list_images, read_image
from cskd_data.unlabelled import read_unlabelled
from cskd_deploy.accuracy.against_fp32 import feed_of
from cskd_deploy.detect.detector import Detector
from cskd_deploy.errors import DeployError

FEW_IMAGES = 32  # fewer are warned of


def calibration_images(folder: Path | None, count: int, annotations: Path | None, classes: Sequence[str]) -> list[Path]:
    """At most `count` images of a folder, spread evenly over it by name.

    Args:
        folder: None looks for it where the data set of `annotations` has it.
        annotations: a COCO file, or the folder of another format or of one split: only the images that it lists.
            Training and validation images often share a folder. Its labels are not read: it may have none, or others.
        classes: of the model.

    Raises:
        DataError: there is no folder, or no image in it; the file cannot be used, or lists an image that is missing.
    """
    if annotations is None:
        assert folder is not None  # one of the two is given
        paths = list_images(folder)
    else:
        listed = _listed(annotations, folder, classes)
        paths = sorted(listed.path(entry) for entry in listed.images)
    return [paths[place] for place in np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)]


def _listed(annotations: Path, folder: Path | None, classes: Sequence[str]) -> cskd_data.Dataset:
    try:
        return cskd_data.read(annotations, folder)
    except DataError as error:
        if not annotations.is_file():
            raise
        try:  # of images only
            return read_unlabelled(annotations, classes, folder)
        except DataError:
            raise error from None


def check_worth(paths: Sequence[Path]) -> None:
    """Refuse images that no range can be taken from, before the network runs.

    Raises:
        DeployError: there is one only, or each of them has a single colour.
        DataError: one cannot be read.
    """
    if len(paths) < 2:
        raise DeployError(
            "INT8 cannot be calibrated on one image: the ranges would be that image's. Give a folder with more "
            f"(--calibration-images) or take more of it (--calibration-count): {FEW_IMAGES} at least, and varied"
        )
    # Nearly always the first one is a picture, and no other is read.
    if all(_single_colour(read_image(path)) for path in paths):
        raise DeployError(
            f"each of the {len(paths)} calibration images has a single colour, {paths[0]} among them: no range can be "
            "taken from them. Give images like those the model will see (--calibration-images)"
        )


def _single_colour(image: np.ndarray) -> bool:
    return bool((image == image[0, 0]).all())


def calibration_feeds(
    detector: Detector, paths: Sequence[Path], inputs: Collection[str], progress: Callable[[int, int], None]
) -> Iterator[dict[str, np.ndarray]]:
    """The feeds of some images, one in memory at a time.

    Args:
        detector: says how images are prepared.
        paths: the images.
        inputs: names of the graph's inputs.
        progress: called with (read, images).

    Raises:
        DataError: an image cannot be read.
    """
    for number, path in enumerate(paths, 1):
        feed = feed_of(detector, read_image(path))
        progress(number, len(paths))
        yield {name: values for name, values in feed.items() if name in inputs}
