"""Folders: the one that a user names, and the files in one at any depth."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from cskd_data.dataset import GIVE_IMAGES
from cskd_data.errors import DataError
from cskd_data.split import SPLIT_CALLED, SPLIT_NAMES


def check_folder(images: Path, source: Path) -> Path:
    """The folder that the user gave for the images.

    Raises:
        DataError: it is none.
    """
    if not os.path.isdir(images):
        raise DataError(f"the image folder {images} of {source} does not exist: {GIVE_IMAGES}")
    return images


def folders_of_splits(folder: Path) -> dict[str, list[Path]]:
    """The folders directly in one that are named as splits, in capitals or not, by split; empty ones too."""
    found: dict[str, list[Path]] = {split: [] for split in SPLIT_NAMES}
    with contextlib.suppress(OSError):  # no folder, or one that may not be read
        for name in sorted(os.listdir(folder)):
            if name.lower() in SPLIT_CALLED and os.path.isdir(folder / name):
                found[SPLIT_CALLED[name.lower()]].append(folder / name)
    return {split: folders for split, folders in found.items() if folders}


def files_below(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of these endings in a folder, at any depth, by name; hidden ones are left out."""
    found = []
    for path in walk(folder):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            found.append(path)
    return sorted(found)


def walk(folder: Path) -> Iterator[Path]:
    """Links to folders are followed, each folder once: a link to a folder above would never end."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            yield Path(place, name)
