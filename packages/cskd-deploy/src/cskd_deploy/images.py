"""Reading images: a damaged file is an error, never a half-grey picture."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from cskd_deploy.errors import DeployError

MOST_BYTES = 1 << 29  # of an image file
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def read_image(path: Path) -> np.ndarray:
    """Decode an image file to BGR, `(height, width, 3)` uint8, turned upright by its EXIF tag as mmcv does.

    Raises:
        DeployError: the file is missing, empty, truncated or not an image.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DeployError(f"image {path} is larger than {MOST_BYTES >> 20} MiB, and is not read")
        content = path.read_bytes()
    except OSError as error:
        raise DeployError(f"image {path} cannot be read: {error.strerror}") from error
    if not content:
        raise DeployError(f"image {path} is empty (0 bytes)")
    if _is_truncated(content):
        raise DeployError(f"image {path} is truncated: its end marker is missing ({len(content)} bytes). Copy it again")
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:  # more pixels than OpenCV opens
        raise DeployError(f"image {path} cannot be decoded: {error.err}") from error
    if image is None:
        raise DeployError(f"image {path} cannot be decoded: not an image, damaged, or of an unsupported kind")
    return image


def list_images(folder: Path) -> list[Path]:
    """The image files directly in `folder`, by name.

    Raises:
        DeployError: `folder` is no folder or holds no image.
    """
    if not folder.is_dir():
        raise DeployError(f"image folder {folder} does not exist")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise DeployError(f"folder {folder} holds no image ({', '.join(SUFFIXES)})")
    return paths


def find_images(sources: Sequence[str]) -> list[Path]:
    """The image files that are meant by names of files, folders, and patterns like `frames/*.jpg` or `video/**/*.png`.

    Each file once, in the order of the sources; those of a folder or a pattern by name.

    Raises:
        DeployError: a source is nothing of these, or holds no image.
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
                raise DeployError(f"no image matches {source!r} ({', '.join(SUFFIXES)})")
            found.update(dict.fromkeys(files))
        else:
            raise DeployError(f"image {source} does not exist: expected an image, a folder of images, or a pattern")
    return list(found)


def _is_truncated(content: bytes) -> bool:
    # OpenCV decodes what there is of a cut JPEG and fills the rest with grey, without an error.
    if content.startswith(b"\xff\xd8"):
        return content.find(b"\xff\xd9", _jpeg_scan_start(content)) < 0
    if content.startswith(b"\x89PNG"):
        return b"IEND" not in content[-64:]
    return False


def _jpeg_scan_start(content: bytes) -> int:
    """Where the compressed data begins: an end marker before it belongs to an embedded thumbnail."""
    position = 2
    while position + 4 <= len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
        if marker == 0xDA:
            break
    return position
