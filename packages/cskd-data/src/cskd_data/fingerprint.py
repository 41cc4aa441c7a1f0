"""What was found in image files, remembered: the same files need not be opened again."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cskd_data.dataset import Dataset
from cskd_data.errors import DataError
from cskd_data.files import write_atomically

REMEMBERED_FROM = 1000
"""Images; fewer are looked at anew more quickly than anybody notices."""


def cache_folder() -> Path:
    """`CSKD_CACHE`, or `cskd` in the user's cache folder."""
    named = os.environ.get("CSKD_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cskd"


def fingerprint(dataset: Dataset) -> str:
    """Of every image: its path, the size that the annotations give it, and its file's size and time of change; and of
    the rules that it is checked by."""
    digest = hashlib.sha256(f"{rules()} {cv2.__version__} {np.__version__}".encode())
    root = os.path.abspath(dataset.image_root or "")
    for image in dataset.images:
        path = os.path.join(root, image["file_name"])
        try:
            status = os.stat(path)
            state = f"{status.st_size} {status.st_mtime_ns}"
        except (OSError, ValueError):
            state = "missing"
        digest.update(f"{path}\0{image['width']} {image['height']} {state}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


@functools.cache
def rules() -> str:
    """Of this package's source: what was clean by older rules is looked at again.

    All of it, a few milliseconds once a process: a list of the modules that the rules are in would have to be kept, and
    a change of the others costs one more check after an update, no more.
    """
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


OPENED, DECODED, USABLE = "opened", "decoded", "usable"
"""What can be remembered of the files of one fingerprint: a clean check that opened or decoded them, and which of them
can be used."""


def remembered(mark: str, *kinds: str) -> list[Any] | None:
    """What was stored with `remember` for this fingerprint, of the first of these kinds that there is; else None."""
    for kind in kinds:
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            content = json.loads(_file(mark, kind).read_bytes())
            if isinstance(content, list):
                return content
    return None


def remember(mark: str, kind: str, content: Sequence[Any]) -> None:
    """Store what was found. Where nothing can be written, nothing is remembered."""
    data = json.dumps(content).encode()
    with contextlib.suppress(DataError, OSError, RuntimeError):  # a home that is read-only, or none at all
        write_atomically(_file(mark, kind), lambda file: file.write(data))


def _file(mark: str, kind: str) -> Path:
    return cache_folder() / "checks" / f"{mark}.{kind}.json"
