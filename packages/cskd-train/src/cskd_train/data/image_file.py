"""What an image file says about itself without being decoded: its size, and whether it ends where it should."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_START_OF_SCAN, _APP1 = 0xDA, 0xE1
# Start-of-frame markers hold the size: C0..CF without C4 (Huffman tables), C8 (reserved) and CC (arithmetic coding).
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ORIENTATION_TAG = 0x0112


class ImageFault(ValueError):
    """What is wrong with an image file, in a few words that follow its name."""


@dataclass(frozen=True)
class ImageSize:
    """Width and height in pixels as a decoder that obeys EXIF's orientation gives them (OpenCV does, and so mmdet)."""

    width: int
    height: int


def glance(path: Path) -> ImageSize | None:
    """The size of a JPEG or PNG from its header, after a look at its end; a few kilobytes are read.

    Returns:
        the size; None for another format, of which only `decode` knows.

    Raises:
        ImageFault: the file is missing, empty, truncated (its end marker is missing) or its header makes no sense.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            if not start:
                raise ImageFault("is empty (0 bytes)")
            if start.startswith(_JPEG_START):
                size = _jpeg_size(file)
                if not _jpeg_is_whole(file):
                    raise ImageFault("is truncated (the JPEG has no end marker)")
                return size
            if start == _PNG_START:
                header = file.read(16)
                file.seek(-min(64, file.seek(0, os.SEEK_END)), os.SEEK_END)
                if len(header) < 16 or _PNG_END not in file.read():
                    raise ImageFault("is truncated (the PNG has no end chunk)")
                return ImageSize(*struct.unpack(">II", header[8:]))
            return None
    except FileNotFoundError:
        raise ImageFault("does not exist") from None
    except OSError as error:
        raise ImageFault(f"cannot be read ({error.strerror})") from error
    except struct.error:
        raise ImageFault("is truncated (it ends inside its header)") from None


def decode(path: Path) -> ImageSize:
    """The size of an image after decoding all of it with OpenCV, as training does.

    Raises:
        ImageFault: the file is missing, or cannot be decoded.
    """
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise ImageFault(f"cannot be read ({error.strerror})") from error
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise ImageFault("cannot be decoded as an image")
    return ImageSize(width=image.shape[1], height=image.shape[0])


def _jpeg_size(file: BinaryIO) -> ImageSize:
    """Walk the segments of a JPEG up to the one that holds its size."""
    file.seek(2)
    rotated = False
    while True:
        marker = file.read(2)
        while marker == b"\xff\xff":  # any number of fill bytes may stand before a marker
            marker = marker[1:] + file.read(1)
        if len(marker) < 2:
            raise ImageFault("is truncated (it ends inside its header)")
        if marker[0] != 0xFF or marker[1] == _START_OF_SCAN:
            raise ImageFault("has a broken JPEG header")
        (length,) = struct.unpack(">H", file.read(2))
        if marker[1] in _START_OF_FRAME:
            height, width = struct.unpack(">xHH", file.read(5))
            return ImageSize(height, width) if rotated else ImageSize(width, height)
        if marker[1] == _APP1:
            rotated = rotated or _is_rotated(file.read(length - 2))
        else:
            file.seek(length - 2, os.SEEK_CUR)


def _is_rotated(segment: bytes) -> bool:
    """Whether an EXIF segment asks for a turn by a quarter (orientation 5 to 8), which swaps width and height."""
    if not segment.startswith(b"Exif\0\0"):
        return False
    tiff = segment[6:]
    order = "<" if tiff[:2] == b"II" else ">"
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(entries):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, directory + 2 + 12 * entry)
            if tag == _ORIENTATION_TAG:
                return 5 <= value <= 8
    except struct.error:  # a broken EXIF block turns nothing
        pass
    return False


def _jpeg_is_whole(file: BinaryIO) -> bool:
    """Whether a JPEG has its end-of-image marker.

    Nearly every file ends in it. For one with bytes behind it (padding, a second picture), the compressed data is
    searched: inside it 0xFF is always followed by 0x00 or a restart marker, so FF D9 can be nothing but the end. `file`
    stands behind the frame header, thus behind an EXIF thumbnail with an end marker of its own.
    """
    frame = file.tell()
    file.seek(-2, os.SEEK_END)
    if file.read() == _JPEG_END:
        return True
    file.seek(frame)
    return _JPEG_END in file.read()
