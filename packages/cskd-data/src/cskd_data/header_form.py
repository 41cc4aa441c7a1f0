"""What every image header has, and EXIF's orientation."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from cskd_data.errors import ImageFault

MOST_PIXELS, MOST_ON_A_SIDE = 1 << 28, 1 << 20
"""What is decoded at most: 268 million pixels take 768 MiB. OpenCV's own bounds are 2**30 and 2**20."""

_PIXELS_PER_BYTE = 1 << 14
"""More pixels a byte than any photograph's compression gives (PNG and TIFF reach 8256 at most): a bomb."""

_FREE = 1 << 20  # pixels; smaller pictures are decoded whatever their files' size
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True)
class Header:
    """What the header of an image file says.

    Width and height in pixels are those of the picture as OpenCV gives it, and so mmdet: turned as EXIF asks.
    """

    width: int
    height: int
    orientation: int = 1  # EXIF's: 1 is upright, 3 upside down, 5 to 8 turned by a quarter, 2, 4, 5 and 7 mirrored
    whole: bool = True  # False: the end is missing
    kind: str = ""  # JPEG, PNG, BMP, WebP, TIFF ...
    bits: int = 8  # of a sample

    @property
    def turned(self) -> bool:
        """Whether EXIF swaps width and height of the stored picture."""
        return 5 <= self.orientation <= 8 and self.kind != "WebP"

    def as_turned(self) -> Header:
        """This header, made with the stored width and height, with those of the turned picture."""
        return replace(self, width=self.height, height=self.width) if self.turned else self


def check_size(header: Header, file_size: int) -> None:
    """Refuse what is not decoded.

    Raises:
        ImageFault: no pixels, more than `MOST_PIXELS`, or far more than the file's bytes can hold.
    """
    width, height = header.width, header.height
    if width < 1 or height < 1:
        raise ImageFault("has no pixels by its header")
    what = f"has {width} x {height} pixels by its header"
    if width * height > MOST_PIXELS or max(width, height) > MOST_ON_A_SIDE:
        raise ImageFault(f"{what}, more than are decoded ({MOST_PIXELS // 10**6} million): cut it into tiles")
    if width * height > max(_FREE, file_size * _PIXELS_PER_BYTE):
        raise ImageFault(f"{what}, which its {file_size} bytes cannot hold")


def orientation_of(tiff: bytes) -> int:
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
