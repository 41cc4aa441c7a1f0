"""Images that show which values the activations of a network take, prepared as for inference."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

import cskd_data
from cskd_data.images import list_images, read_image
from cskd_deploy.detect.detector import Detector


def calibration_images(folder: Path, count: int, annotations: Path | None, classes: Sequence[str]) -> list[Path]:
    """At most `count` images of a folder, spread evenly over it by name.

    Args:
        annotations: a COCO file: only the images that it lists. Training and validation images often share a folder.
        classes: of the model, which the file must know.

    Raises:
        DataError: there is no folder, or no image in it; the file cannot be used, or lists an image that is missing.
    """
    if annotations is None:
        paths = list_images(folder)
    else:
        listed = cskd_data.read(annotations, folder).select(classes)
        paths = sorted(listed.path(entry) for entry in listed.images)
    return [paths[place] for place in np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)]


class CalibrationReader:
    """The feeds of some images, one in memory at a time: ONNX Runtime's `CalibrationDataReader`.

    Args:
        detector: says how images are prepared.
        paths: the images.
        inputs: names of the graph's inputs.
        progress: called with (read, images).
    """

    def __init__(
        self, detector: Detector, paths: Sequence[Path], inputs: Collection[str], progress: Callable[[int, int], None]
    ) -> None:
        self._detector = detector
        self._paths = paths
        self._inputs = inputs
        self._progress = progress
        self._places = iter(range(len(paths)))

    def __len__(self) -> int:
        return len(self._paths)

    def set_range(self, start_index: int, end_index: int) -> None:
        """The images that `get_next` gives from now on."""
        self._places = iter(range(start_index, end_index))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next image's feed, or None after the last.

        Raises:
            DataError: the image cannot be read.
        """
        place = next(self._places, None)
        if place is None:
            return None
        feed = self._detector.feed(self._detector.prepare(read_image(self._paths[place])))
        self._progress(place + 1, len(self._paths))
        return {name: values for name, values in feed.items() if name in self._inputs}
