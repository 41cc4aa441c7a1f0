"""One rule how a picture is decoded: check, training, deployment and drawing all read through `read_image`."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from cskd_data.errors import DataError, ImageFault
from cskd_data.header import read_header

MOST_BYTES = 1 << 29  # of an image file
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MOST_LOST = 0.05
"""The share of its pixels that a truncated JPEG may lack and still be used."""

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_GREY = 128  # what libjpeg fills missing blocks with


def read_image(path: Path) -> np.ndarray:
    """Decode an image file to BGR, `(height, width, 3)` uint8, turned upright by its EXIF tag.

    A JPEG whose last bytes are missing is used while it lacks at most `MOST_LOST` of its pixels.

    Raises:
        DataError: the file is missing, empty, truncated, too large or no image; it is named.
    """
    try:
        return load_image(path)
    except ImageFault as fault:
        raise DataError(f"image {path} {fault}") from fault


def load_image(path: Path) -> np.ndarray:
    """As `read_image`, for callers that name the file themselves.

    Raises:
        ImageFault: the fault in words that follow the name.
    """
    header = read_header(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ImageFault(f"is larger than {MOST_BYTES >> 20} MiB, and is not read")
        content = path.read_bytes()
    except OSError as error:
        raise ImageFault(f"cannot be read ({error.strerror})") from error
    cut = header is not None and not header.whole
    if cut and not content.startswith(_JPEG_START):
        raise ImageFault("is truncated (the PNG has no end chunk)")
    if cut:
        content += _JPEG_END
        lost = _lost_share(content)
        if lost > MOST_LOST:
            raise ImageFault(f"is truncated (the JPEG has no end marker, and {lost:.0%} of its pixels are missing)")
    return _decode(content, cv2.IMREAD_COLOR)


def list_images(folder: Path) -> list[Path]:
    """The image files directly in `folder`, by name.

    Raises:
        DataError: `folder` is no folder or holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"image folder {folder} does not exist")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise DataError(f"folder {folder} holds no image ({', '.join(SUFFIXES)})")
    return paths


def find_images(sources: Sequence[str]) -> list[Path]:
    """The image files that are meant by names of files, folders, and patterns like `frames/*.jpg` or `video/**/*.png`.

    Each file once, in the order of the sources; those of a folder or a pattern by name.

    Raises:
        DataError: a source is nothing of these, or holds no image.
    """
    found: dict[Path, None] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            found.update(dict.fromkeys(list_images(path)))
        elif path.exists():
            found[path] = None
        elif glob.has_magic(source):
            paths = sorted(Path(name) for name in glob.glob(source, recursive=True))
            files = [one for one in paths if one.suffix.lower() in SUFFIXES and one.is_file()]
            if not files:
                raise DataError(f"no image matches {source!r} ({', '.join(SUFFIXES)})")
            found.update(dict.fromkeys(files))
        else:
            raise DataError(f"image {source} does not exist: expected an image, a folder of images, or a pattern")
    return list(found)


def _decode(content: bytes, flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:  # more pixels than OpenCV opens
        raise ImageFault(f"cannot be decoded ({error.err})") from error
    if image is None:
        raise ImageFault("cannot be decoded as an image")
    return image


def _lost_share(content: bytes) -> float:
    """The share of a JPEG's pixels behind the last one that its data reaches: grey from there to the end."""
    image = _decode(content, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    side = 8
    height, width = image.shape[0] // side * side, image.shape[1] // side * side
    grey = (np.abs(image[:height, :width].astype(np.int16) - _GREY) <= 1).all(axis=2)
    blocks = grey.reshape(height // side, side, width // side, side).all(axis=(1, 3))
    kept = np.flatnonzero(~blocks.ravel())
    return 1 - (kept[-1] + 1) / blocks.size if kept.size else 1.0
