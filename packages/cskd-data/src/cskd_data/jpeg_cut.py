"""How much of a JPEG whose end is missing was decoded."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np

END = b"\xff\xd9"
_SEGMENTS = 16  # of made-up data, each closed by a restart marker
_SEGMENT_BYTES = 1024
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])", re.DOTALL)  # of a segment; inside a scan's data there is none
_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN = 0xDA


def lost_share(content: bytes) -> float:
    """The share of a JPEG's pixels that its data does not reach, from 0 to 1.

    Method. The data is decoded twice, once ended where it breaks off, once continued with made-up data. libjpeg fills
    what it has no data for with grey, and decodes the made-up data to something else, so the first block (MCU: 8 x 8 to
    32 x 32 pixels) in which the two pictures differ is the first that was not decoded. It and all that follow it, in
    the order of rows, are lost. Grey that is in the picture itself is in both. A JPEG of several scans (progressive)
    has every block in each scan: where a scan is missing as a whole, all is lost, for all is coarser.

    Args:
        content: the file, without its end marker.
    """
    layout = _layout(content)
    if layout is None or not layout.complete:
        return 1.0
    # A marker that is cut in two, or a restart marker without data, would end the made-up data too.
    data = content.rstrip(b"\xff")
    ended = _decoded(data + END)
    continued = _decoded(data + _made_up(data[layout.data :]) + END)
    if ended is None or continued is None or ended.shape != continued.shape:
        return 1.0
    differing = (ended != continued).any(axis=2)
    height, width = differing.shape
    step_y, step_x = layout.block
    differing &= _inner(height, step_y)[:, None] & _inner(width, step_x)
    rows = np.flatnonzero(differing.any(axis=1))
    if not rows.size:
        return 0.0
    top = rows[0] // step_y * step_y
    left = np.flatnonzero(differing[top : top + step_y].any(axis=0))[0] // step_x * step_x
    bottom = min(top + step_y, height)
    lost = (bottom - top) * (width - left) + (height - bottom) * width
    return float(lost) / (height * width)


def _inner(length: int, step: int) -> np.ndarray:
    """Which pixels of a side belong to one block only: the edges of blocks that store colour coarser blend."""
    place = np.arange(length) % step
    edge = 2 if step > 8 else 0
    return (place >= edge) & (place < step - edge)


@dataclass(frozen=True)
class _Layout:
    block: tuple[int, int]  # height and width of an MCU in pixels
    complete: bool  # whether the last scan has begun
    data: int  # where the last scan's data begins


def _layout(content: bytes) -> _Layout | None:
    """What the segments say; None where they make no sense."""
    block = (8, 8)
    missing: set[tuple[int, int]] = set()  # component and coefficient whose last bit no scan brings
    position, data = 2, 0
    try:
        while (found := _MARKER.search(content, position)) is not None and found.end() + 2 <= len(content):
            marker, position = found[1][0], found.end()
            (length,) = struct.unpack_from(">H", content, position)
            body = content[position + 2 : position + length]
            if marker in _FRAME:
                parts = [body[6 + 3 * index : 9 + 3 * index] for index in range(body[5])]
                block = 8 * max(part[1] & 15 for part in parts), 8 * max(part[1] >> 4 for part in parts)
                missing = set(product((part[0] for part in parts), range(64)))
            elif marker == _SCAN:
                first, last, bits = body[-3:]
                if bits & 15 == 0:
                    components = [body[1 + 2 * index] for index in range(body[0])]
                    missing -= set(product(components, range(first, last + 1)))
                data = position + length
            position += length
    except (IndexError, struct.error, ValueError):
        return None
    return _Layout(block, not missing, data) if data and min(block) else None


def _made_up(scan: bytes) -> bytes:
    """Random data without markers but for restart markers, which go on with the numbers of those in the scan."""
    before = _RESTART.findall(scan)
    number = before[-1][0] - 0xD0 + 1 if before else 0
    random = np.random.default_rng(0).integers(0, 255, (_SEGMENTS, _SEGMENT_BYTES), dtype=np.uint8)
    return b"".join(
        segment.tobytes() + bytes((0xFF, 0xD0 + (number + index) % 8)) for index, segment in enumerate(random)
    )


def _decoded(content: bytes) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
