"""What an image file says about itself without being decoded: its size, and whether it ends where it should."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from cskd_data.errors import ImageFault
from cskd_data.header_form import Header, check_size, orientation_of
from cskd_data.header_rare import rare_header

__all__ = ["Header", "read_header"]

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_START_OF_SCAN, _APP1, _PROGRESSIVE = 0xDA, 0xE1, 0xC2
# Start-of-frame markers hold the size: C0..CF without C4 (Huffman tables), C8 (reserved) and CC (arithmetic coding).
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def read_header(path: Path) -> Header:
    """The header of an image file; a few kilobytes are read.

    Raises:
        ImageFault: the file is missing, empty, of no format that is read here, ends inside its header, or has more
            pixels than are decoded.
    """
    try:
        with path.open("rb") as file:
            return parse_header(file)
    except FileNotFoundError:
        raise ImageFault("does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise ImageFault(f"cannot be read ({getattr(error, 'strerror', None) or error})") from error


def parse_header(file: BinaryIO) -> Header:
    """As `read_header`, of an open file or of bytes in memory (`io.BytesIO`).

    Raises:
        ImageFault: as `read_header`.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(16)
    if not start:
        raise ImageFault("is empty (0 bytes)")
    try:
        if start.startswith(_JPEG_START):
            header = _jpeg_header(file)
        elif start.startswith(_PNG_START):
            header = _png_header(file, end)
        else:
            header = rare_header(file, start, end)
    except struct.error:
        raise ImageFault("is truncated (it ends inside its header)") from None
    check_size(header, end)
    return header


def _jpeg_header(file: BinaryIO) -> Header:
    """Walk the segments of a JPEG up to the one that holds its size."""
    orientation = 1
    for marker, length in _segments(file):
        if marker in _START_OF_FRAME:
            height, width = struct.unpack(">xHH", file.read(5))
            return Header(width, height, orientation, _jpeg_is_whole(file), "JPEG").as_turned()
        if marker == _APP1 and orientation == 1:
            segment = file.read(length)
            if segment.startswith(b"Exif\0\0"):
                orientation = orientation_of(segment[6:])
        else:
            file.seek(length, os.SEEK_CUR)
    raise ImageFault("has a broken JPEG header")


def _segments(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """The marker and content length of each segment before the first scan; `file` stands at the content."""
    file.seek(2)
    while True:
        marker = file.read(2)
        while marker == b"\xff\xff":  # any number of fill bytes may stand before a marker
            marker = marker[1:] + file.read(1)
        if len(marker) < 2:
            raise ImageFault("is truncated (it ends inside its header)")
        if marker[0] != 0xFF or marker[1] == _START_OF_SCAN:
            return
        (length,) = struct.unpack(">H", file.read(2))
        if length < 2:
            return
        yield marker[1], length - 2


def _png_header(file: BinaryIO, end: int) -> Header:
    """Walk the chunks of a PNG; bytes behind its end chunk do not count."""
    width, height, bits, orientation = 0, 0, 8, 1
    name = b""
    file.seek(8)
    while len(start := file.read(8)) == 8:
        (length,), name = struct.unpack(">I", start[:4]), start[4:]
        if name == b"IHDR" and not width:
            width, height, bits = struct.unpack(">IIB", file.read(9))
            file.seek(length - 9 + 4, os.SEEK_CUR)
        elif name == b"eXIf":
            orientation = orientation_of(file.read(min(length, end)))
            file.seek(4, os.SEEK_CUR)
        else:
            file.seek(length + 4, os.SEEK_CUR)
        if not width or name == b"IEND" or file.tell() > end:
            break
    if not width:
        raise ImageFault("has a broken PNG header")
    whole = name == b"IEND" and file.tell() <= end
    return Header(width, height, orientation, whole, "PNG", bits).as_turned()


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


def header_of(content: bytes) -> Header:
    """As `read_header`, of a file's contents.

    Raises:
        ImageFault: as `read_header`.
    """
    return parse_header(io.BytesIO(content))
