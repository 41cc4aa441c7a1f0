"""Image files: one rule how a picture is decoded, for the check, training, evaluation, deployment and drawing.

OpenCV decodes, as it does in mmcv; the same file gives the same pixels everywhere. What each kind of file becomes:

| file                            | picture (BGR, 8 bits)                                                              |
|---------------------------------|------------------------------------------------------------------------------------|
| JPEG, PNG, TIFF with EXIF       | turned or mirrored as the orientation says, all eight; its size is the turned one  |
| WebP with EXIF                  | as stored, with a warning: OpenCV does not turn a WebP                             |
| JPEG whose end is missing       | used with a warning while at most 5 % of its pixels are missing, else refused      |
| JPEG whose data ends early      | the same, also where an end marker was put behind it                               |
| other files without their end   | refused                                                                            |
| 16 bits                         | the upper 8 bits (TIFF in colour: rounded); a warning where no number reaches 4096 |
| 32 bits, fractions (TIFF)       | refused                                                                            |
| CMYK                            | converted without a colour profile                                                 |
| palette, 1 bit                  | the palette's colours, black and white                                             |
| alpha                           | dropped: the colours below it show                                                 |
| grey                            | three equal channels                                                               |
| animated PNG, WebP; TIFF pages  | the first                                                                          |
| 1 x 1 pixel                     | as it is (mmdet leaves sides below 32 pixels out of training; the check says so)   |
| above 268 million pixels        | refused by the header, before memory is taken                                      |
| more pixels than bytes can hold | refused by the header                                                              |
| GIF, AVIF, HEIC, JPEG 2000 ...  | refused by name                                                                    |
| a name that is not UTF-8        | read as any other; printed with escapes for the bytes that are no text             |
"""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cskd_data.decode import MOST_LOST, Picture, decode
from cskd_data.errors import DataError, ImageFault
from cskd_data.folders import files_below
from cskd_data.header import read_header

__all__ = ["MOST_LOST", "ImageWarning", "find_images", "image_size", "list_images", "load_image", "picture"]

MOST_BYTES = 1 << 29  # of an image file
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff")


class ImageWarning(UserWarning):
    """An image is used, but is not what it seems."""


def load_image(path: Path) -> np.ndarray:
    """Decode an image file to BGR, `(height, width, 3)` uint8.

    Warns:
        ImageWarning: what is odd about it, once a file.

    Raises:
        ImageFault: the file is missing, empty, truncated, too large or no image; in words that follow its name.
    """
    found = picture(path)
    for warning in found.warnings:
        warnings.warn(f"image {path} {warning}", ImageWarning, stacklevel=2)
    return found.pixels


def picture(path: Path) -> Picture:
    """As `load_image`, with the warnings as a list.

    Raises:
        ImageFault: as `load_image`.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ImageFault(f"is larger than {MOST_BYTES >> 20} MiB, and is not read")
        content = path.read_bytes()
    except FileNotFoundError:
        raise ImageFault("does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise ImageFault(f"cannot be read ({getattr(error, 'strerror', None) or error})") from error
    return decode(content)


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels by the header, turned as `load_image` turns the picture.

    Raises:
        ImageFault: the file is missing, empty, of another format or too large.
    """
    header = read_header(path)
    return header.width, header.height


def read_image(path: Path) -> np.ndarray:
    """As `load_image`, for callers that do not name the file themselves.

    Raises:
        DataError: as `load_image`; the file is named.
    """
    try:
        return load_image(path)
    except ImageFault as fault:
        raise DataError(f"image {path} {fault}") from fault


def list_images(folder: Path) -> list[Path]:
    """The image files directly in `folder`, by name; where there is none, those below it at any depth.

    Raises:
        DataError: `folder` is no folder or holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"image folder {folder} does not exist")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    paths = paths or files_below(folder, SUFFIXES)
    if not paths:
        raise DataError(f"folder {folder} holds no image ({', '.join(SUFFIXES)})")
    return paths


def find_images(sources: Sequence[str]) -> list[Path]:
    """The image files that are meant by names of files, folders, and patterns like `frames/*.jpg` or `video/**/*.png`.

    Each file once, as it is spelled first, in the order of the sources; those of a folder or a pattern by name. A link
    to a file is one of its own.

    Raises:
        DataError: a source is nothing of these, or holds no image.
    """
    found: list[Path] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            found += list_images(path)
        elif path.exists():
            found.append(path)
        elif glob.has_magic(source):
            paths = sorted(Path(name) for name in glob.glob(source, recursive=True))
            files = [one for one in paths if one.suffix.lower() in SUFFIXES and one.is_file()]
            if not files:
                raise DataError(f"no image matches {source!r} ({', '.join(SUFFIXES)})")
            found += files
        else:
            raise DataError(f"image {source} does not exist: expected an image, a folder of images, or a pattern")
    once: dict[tuple[str, str], Path] = {}
    for path in found:
        once.setdefault((os.path.realpath(path.parent), path.name), path)
    return list(once.values())
