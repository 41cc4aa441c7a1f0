"""What an image file says about itself without being decoded: its size, and whether it ends where it should."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from cskd_data.errors import ImageFault

MOST_PIXELS, MOST_ON_A_SIDE = 1 << 30, 1 << 20
"""What OpenCV decodes at most."""

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_START_OF_SCAN, _APP1 = 0xDA, 0xE1
# Start-of-frame markers hold the size: C0..CF without C4 (Huffman tables), C8 (reserved) and CC (arithmetic coding).
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True)
class Header:
    """What the header of a JPEG or PNG says.

    Width and height in pixels are those of the picture as OpenCV gives it, and so mmdet: turned as EXIF asks.
    """

    width: int
    height: int
    orientation: int = 1  # EXIF's: 1 is upright, 3 upside down, 5 to 8 turned by a quarter, 2, 4, 5 and 7 mirrored
    whole: bool = True  # False: the end marker is missing

    @property
    def turned(self) -> bool:
        """Whether EXIF swaps width and height of the stored picture."""
        return 5 <= self.orientation <= 8


def read_header(path: Path) -> Header | None:
    """The header of a JPEG or PNG; a few kilobytes are read.

    Returns:
        None for another format: only decoding tells its size.

    Raises:
        ImageFault: the file is missing, empty, ends inside its header, or is larger than OpenCV decodes.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            if not start:
                raise ImageFault("is empty (0 bytes)")
            if start.startswith(_JPEG_START):
                header = _jpeg_header(file)
            elif start == _PNG_START:
                header = _png_header(file)
            else:
                return None
    except FileNotFoundError:
        raise ImageFault("does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise ImageFault(f"cannot be read ({getattr(error, 'strerror', None) or error})") from error
    except struct.error:
        raise ImageFault("is truncated (it ends inside its header)") from None
    if header.width * header.height > MOST_PIXELS or max(header.width, header.height) > MOST_ON_A_SIDE:
        raise ImageFault(f"has {header.width} x {header.height} pixels by its header, more than OpenCV decodes")
    if not header.width * header.height:
        raise ImageFault("has no pixels by its header")
    return header


def decoded(path: Path) -> Header:
    """The size of an image of any format, after decoding all of it with OpenCV.

    Raises:
        ImageFault: the file is missing, or cannot be decoded.
    """
    try:
        content = np.fromfile(path, dtype=np.uint8)
        image = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    except OSError as error:
        raise ImageFault(f"cannot be read ({error.strerror})") from error
    except cv2.error as error:
        raise ImageFault(f"cannot be decoded ({error.err})") from error
    if image is None:
        raise ImageFault("cannot be decoded as an image")
    return Header(width=image.shape[1], height=image.shape[0])


def _jpeg_header(file: BinaryIO) -> Header:
    """Walk the segments of a JPEG up to the one that holds its size."""
    file.seek(2)
    orientation = 1
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
            if orientation >= 5:
                width, height = height, width
            return Header(width, height, orientation, _jpeg_is_whole(file))
        if marker[1] == _APP1 and orientation == 1:
            segment = file.read(length - 2)
            if segment.startswith(b"Exif\0\0"):
                orientation = _orientation(segment[6:])
        else:
            file.seek(length - 2, os.SEEK_CUR)


def _png_header(file: BinaryIO) -> Header:
    """Walk the chunks of a PNG; bytes behind its end chunk do not count."""
    width, height, orientation = 0, 0, 1
    file.seek(8)
    end = os.fstat(file.fileno()).st_size
    while len(start := file.read(8)) == 8:
        (length,), name = struct.unpack(">I", start[:4]), start[4:]
        if name == b"IHDR":
            width, height = struct.unpack(">II", file.read(8))
            file.seek(length - 8 + 4, os.SEEK_CUR)
        elif name == b"eXIf":
            orientation = _orientation(file.read(length))
            file.seek(4, os.SEEK_CUR)
        else:
            file.seek(length + 4, os.SEEK_CUR)
        if not width or name == b"IEND" or file.tell() > end:
            break
    if not width:
        raise ImageFault("has a broken PNG header")
    if orientation >= 5:
        width, height = height, width
    return Header(width, height, orientation, name == b"IEND" and file.tell() <= end)


def _orientation(tiff: bytes) -> int:
    """The orientation of an EXIF block; 1 where it has none or is broken."""
    order = "<" if tiff[:2] == b"II" else ">"
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(entries):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, directory + 2 + 12 * entry)
            if tag == _ORIENTATION_TAG:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


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
