"""Small files that tests change: pictures as bytes, VOC and YOLO folders, and a fresh interpreter's limits."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

HEIGHT, WIDTH = 48, 64


def photo(height=HEIGHT, width=WIDTH, seed=0):
    """Smooth noise, BGR: something that a JPEG keeps and no part of which is plain grey."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(height // 8, 2), max(width // 8, 2), 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(kind, pixels=None, mode="RGB", **settings):
    """A picture file's bytes, written by Pillow: `encoded("JPEG", progressive=True)`."""
    image = Image.fromarray((photo() if pixels is None else pixels)[..., ::-1].copy()).convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def with_orientation(kind, orientation):
    """A picture file whose EXIF block asks for a turn."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    settings = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
    return encoded(kind, exif=exif, **settings)


def turned(pixels, orientation):
    """What EXIF's orientation makes of stored pixels."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    flips = {2: (0, 1), 3: (1, 1), 4: (1, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}
    down, across = flips.get(orientation, (0, 0))
    return pixels[:: -1 if down else 1, :: -1 if across else 1]


def png_of_size(width, height):
    """A PNG's header with nothing behind it."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + b"\0\0\0\0" + b"\0\0\0\0IEND\xaeB`\x82"


def write(path: Path, content: bytes | str) -> Path:
    """Write a file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_photo(path: Path, seed=0, height=HEIGHT, width=WIDTH) -> Path:
    """Write `photo` in the format of the path's ending."""
    return write(path, cv2.imencode(path.suffix, photo(height, width, seed))[1].tobytes())


def boxes_of(dataset):
    """File name -> [x, y, width, height, class] of each box, to a thousandth."""
    names = {image["id"]: Path(image["file_name"]).name for image in dataset.images}
    found = {name: [] for name in names.values()}
    for one in dataset.annotations:
        box = [round(value, 3) for value in one["bbox"]]
        found[names[one["image_id"]]].append([*box, dataset.classes[one["category_id"] - 1]])
    return found


def note_of(dataset, words) -> str:
    (found,) = [str(note) for note in dataset.notes if words in str(note)]
    return found
