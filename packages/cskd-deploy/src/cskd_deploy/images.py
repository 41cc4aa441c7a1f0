"""Reading images: a damaged file is an error, never a half-grey picture."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from cskd_deploy.errors import DeployError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def read_image(path: Path) -> np.ndarray:
    """Decode an image file to BGR, `(height, width, 3)` uint8, turned upright by its EXIF tag as mmcv does.

    Raises:
        DeployError: the file is missing, empty, truncated or not an image.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DeployError(f"image {path} cannot be read: {error.strerror}") from error
    if not content:
        raise DeployError(f"image {path} is empty (0 bytes)")
    if _is_truncated(content):
        raise DeployError(f"image {path} is truncated: its end marker is missing ({len(content)} bytes). Copy it again")
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
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
