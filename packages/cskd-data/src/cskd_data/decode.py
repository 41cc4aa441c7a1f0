"""The one rule how the bytes of an image file become a picture; the table is in `cskd_data.images`."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import cv2
import numpy as np

from cskd_data.errors import ImageFault
from cskd_data.header import header_of
from cskd_data.header_form import Header
from cskd_data.jpeg_cut import END, lost_share

MOST_LOST = 0.05
"""The share of its pixels that a truncated JPEG may lack and still be used."""

_GREY = 128  # what libjpeg fills missing blocks with
_TWELVE_BITS = 1 << 4  # of the upper eight

_lost: dict[tuple[int, int], float] = {}  # by length and checksum


@dataclass(frozen=True)
class Picture:
    """A decoded image file.

    `pixels` is BGR, `(height, width, 3)` uint8; `warnings` says in what it is not what it seems, in words that follow
    the file's name.
    """

    pixels: np.ndarray
    header: Header
    warnings: tuple[str, ...] = ()


def decode(content: bytes) -> Picture:
    """Decode the contents of an image file.

    Raises:
        ImageFault: it is empty, of another format, too large, broken, of another size than its header says, or lacks
            more than `MOST_LOST` of its pixels.
    """
    header = header_of(content)
    warnings = []
    flags = cv2.IMREAD_COLOR
    if header.kind == "WebP" and header.orientation != 1:
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
        warnings.append("has an EXIF orientation, which OpenCV does not follow in a WebP: viewers show it turned")
    if header.whole:
        pixels = _pixels(content, flags)
        if header.kind == "JPEG" and _may_be_grey(pixels):
            end = content.rfind(END)
            warnings += _cut_warning(content[:end] if end > 0 else content)
    elif header.kind == "JPEG":
        pixels = _pixels(content.rstrip(b"\xff") + END, flags)
        warnings += _cut_warning(content) or ["lacks its end marker, but no pixel"]
    else:
        raise ImageFault(f"is truncated (the {header.kind} has no end chunk)")
    height, width = pixels.shape[:2]
    if (width, height) != (header.width, header.height):
        stated = f"{header.width} x {header.height}"
        raise ImageFault(f"has two sizes: {stated} pixels by its header, {width} x {height} as OpenCV decodes it")
    if header.bits > 8 and pixels.max() < _TWELVE_BITS:
        warnings.append(
            f"holds small numbers in {header.bits} bits, so that it is nearly black as 8 bits: multiply them first"
        )
    return Picture(pixels, header, tuple(warnings))


def _pixels(content: bytes, flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        raise ImageFault(f"cannot be decoded ({error.err})") from error
    if image is None:
        raise ImageFault("cannot be decoded as an image")
    return image


def _cut_warning(content: bytes) -> list[str]:
    """What to say about a JPEG that breaks off; nothing where no pixel is missing.

    Args:
        content: without its end marker.
    """
    mark = len(content), zlib.crc32(content)
    if mark not in _lost:  # two more decodings, once a picture and not in every epoch
        _lost[mark] = lost_share(content)
    lost = _lost[mark]
    if lost > MOST_LOST:
        raise ImageFault(f"is truncated (the JPEG breaks off, {lost:.0%} of its pixels are missing)")
    return [f"is truncated: {lost:.1%} of its pixels are missing and grey"] if lost else []


def _may_be_grey(pixels: np.ndarray) -> bool:
    """Whether a corner looks as if the data had ended before it; which one depends on EXIF's orientation."""
    height, width = pixels.shape[:2]
    ys, xs = slice(max(height - 8, 0), height), slice(max(width - 8, 0), width)
    corners = (pixels[y, x] for y in (slice(0, 8), ys) for x in (slice(0, 8), xs))
    return any(bool((corner == _GREY).all()) for corner in corners)
