"""Detections drawn on their image."""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from cskd_data.files import write_atomically
from cskd_deploy.detect.postprocess import Detections
from cskd_deploy.errors import DeployError

FONT = cv2.FONT_HERSHEY_SIMPLEX
GOLDEN = 0.618034  # steps of this part of the circle of hues keep any number of colours apart


def drawn_name(path: Path) -> Path:
    """The name of a drawing by that of its image: the same where OpenCV writes such files, else with `.png` behind."""
    return path if _is_written(path.suffix.lower()) else path.with_name(f"{path.name}.png")


@functools.cache
def _is_written(suffix: str) -> bool:
    """Whether OpenCV writes 8-bit colour images of this kind."""
    level = cv2.getLogLevel()
    cv2.setLogLevel(0)  # what it cannot write is no fault here
    try:
        return bool(cv2.haveImageWriter(f"image{suffix}") and cv2.imencode(suffix, np.zeros((64, 64, 3), np.uint8))[0])
    except cv2.error:
        return False
    finally:
        cv2.setLogLevel(level)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an image file of the kind that its name says, one of `drawn_name`'s.

    Raises:
        DeployError: OpenCV cannot write it.
        DataError: the disk cannot hold it.
    """
    done, content = cv2.imencode(path.suffix, image)
    if not done:
        raise DeployError(f"{path} cannot be written: OpenCV makes no {path.suffix} file of {image.shape[:2]} pixels")
    write_atomically(path, lambda file: file.write(content.tobytes()))


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
