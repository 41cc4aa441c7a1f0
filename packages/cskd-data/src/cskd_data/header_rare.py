"""The headers of BMP, WebP, TIFF and PNM files."""

from __future__ import annotations

import os
import re
import struct
from typing import BinaryIO

from cskd_data.errors import ImageFault
from cskd_data.header_form import Header, orientation_of

_READ = "JPEG, PNG, BMP, WebP, TIFF and PNM are"
_NOT_READ = {  # what people have in a folder of images, by its first bytes
    b"GIF8": "a GIF",
    b"%PDF": "a PDF",
    b"<svg": "an SVG",
    b"<?xm": "XML",
    b"<!DO": "a web page",
    b"<htm": "a web page",
    b"8BPS": "a Photoshop file",
    b"vers": "a Git LFS pointer (fetch the file with `git lfs pull`)",
    b"#?RA": "a Radiance HDR file",
    b"v/1\x01": "an OpenEXR file",
}
_WIDTH, _HEIGHT, _BITS, _ORIENTATION, _SAMPLE_FORMAT = 256, 257, 258, 274, 339
# OpenCV would read it, but its OpenJPEG ends the whole process on a broken one.
_JPEG_2000 = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")


def rare_header(file: BinaryIO, start: bytes, end: int) -> Header:
    """The header of a file that is neither JPEG nor PNG.

    Args:
        start: its first 16 bytes.
        end: its length in bytes.

    Raises:
        ImageFault: another format, or one of these with a broken header.
        struct.error: the file ends inside its header.
    """
    if start[:2] == b"BM":
        return _bmp(file)
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return _webp(file, end)
    if start[:4] in (b"II*\0", b"MM\0*"):
        return _tiff(file, "<" if start[:2] == b"II" else ">")
    if re.match(rb"P[1-6]\s", start):
        return _pnm(file)
    if start.startswith(_JPEG_2000):
        what = "a JPEG 2000 file"
    elif start[4:8] == b"ftyp":
        what = "an AVIF, HEIC or film file"
    else:
        what = _NOT_READ.get(start[:4], "no image, or one in a format")
    raise ImageFault(f"is {what} that is not read ({_READ})")


def _bmp(file: BinaryIO) -> Header:
    file.seek(14)
    (length,) = struct.unpack("<I", file.read(4))
    if length == 12:
        width, height = struct.unpack("<HH", file.read(4))
    else:
        width, height = struct.unpack("<ii", file.read(8))
    return Header(width, abs(height), kind="BMP")  # a negative height: rows from the top


def _webp(file: BinaryIO, end: int) -> Header:
    """EXIF's orientation is read, but OpenCV does not turn a WebP."""
    file.seek(4)
    (size,) = struct.unpack("<I", file.read(4))
    whole = size + 8 <= end
    file.seek(12)
    form = file.read(4)
    file.seek(20)
    if form == b"VP8 ":
        _, width, height = struct.unpack("<6sHH", file.read(10))
        return Header(width & 0x3FFF, height & 0x3FFF, whole=whole, kind="WebP")
    if form == b"VP8L":
        _, packed = struct.unpack("<BI", file.read(5))
        return Header((packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1, whole=whole, kind="WebP")
    if form != b"VP8X":
        raise ImageFault("has a broken WebP header")
    low_width, high_width, low_height, high_height = struct.unpack("<4xHBHB", file.read(10))
    return Header(
        width=(low_width | high_width << 16) + 1,
        height=(low_height | high_height << 16) + 1,
        orientation=_webp_orientation(file, end),
        whole=whole,
        kind="WebP",
    )


def _webp_orientation(file: BinaryIO, end: int) -> int:
    file.seek(30)
    while len(start := file.read(8)) == 8:
        name, length = start[:4], struct.unpack("<I", start[4:])[0]
        if name == b"EXIF":
            return orientation_of(file.read(min(length, end)).removeprefix(b"Exif\0\0"))
        if file.seek(length + length % 2, os.SEEK_CUR) > end:
            break
    return 1


def _tiff(file: BinaryIO, order: str) -> Header:
    """The first picture of a TIFF."""
    file.seek(4)
    (directory,) = struct.unpack(f"{order}I", file.read(4))
    file.seek(directory)
    (count,) = struct.unpack(f"{order}H", file.read(2))
    entries = file.read(12 * count)
    tags: dict[int, int] = {}
    for start in range(0, len(entries) - 11, 12):
        tag, kind, number, value = struct.unpack_from(f"{order}HHII", entries, start)
        if kind == 3 and number > 2 and tag == _BITS:  # the bits of several samples lie elsewhere
            file.seek(value)
            value = struct.unpack(f"{order}H", file.read(2))[0]
        elif kind == 3:  # 16 bit: the first two bytes of four
            value = struct.unpack_from(f"{order}H", entries, start + 8)[0]
        tags.setdefault(tag, value)
    if _WIDTH not in tags or _HEIGHT not in tags:
        raise ImageFault("has a broken TIFF header")
    bits = tags.get(_BITS, 1)
    if bits > 16 or tags.get(_SAMPLE_FORMAT, 1) == 3:
        raise ImageFault(f"holds samples of {bits} bits or fractions, which OpenCV does not read: write 8 or 16 bits")
    orientation = tags.get(_ORIENTATION, 1)
    return Header(
        tags[_WIDTH], tags[_HEIGHT], orientation if 1 <= orientation <= 8 else 1, kind="TIFF", bits=bits
    ).as_turned()


def _pnm(file: BinaryIO) -> Header:
    file.seek(0)
    numbers = re.match(rb"P([1-6])((?:\s+|#[^\n]*\n)+)(\d{1,9})\s(?:\s|#[^\n]*\n)*(\d{1,9})\s", file.read(4096))
    if numbers is None:
        raise ImageFault("has a broken PNM header")
    return Header(int(numbers[3]), int(numbers[4]), kind="PNM")
