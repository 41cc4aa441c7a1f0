"""The label files of a YOLO data set: which one an image has, and which ones have no image."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from cskd_data.errors import DataError
from cskd_data.folders import files_below
from cskd_data.images import SUFFIXES

_HEAD = 1 << 10  # bytes of a label file in which its first row is


class Labels:
    """The label files of a set.

    Args:
        root: its folder.
        anywhere: also look for a label file by its name in all of the folder: the images lie elsewhere.
    """

    def __init__(self, root: Path, anywhere: bool) -> None:
        self._root = root
        self._anywhere = anywhere
        self._by_stem: dict[str, list[Path]] = {}
        for path in files_below(root, (".txt",)) if anywhere else ():
            self._by_stem.setdefault(path.stem, []).append(path)

    def of(self, image: Path) -> Path | None:
        """The file of an image: in `labels` for the last `images` of its path, else beside it, else in `labels`.

        None where there is none.

        Raises:
            DataError: several folders hold a file of its name, and none has the name of the image's folder.
        """
        folders = [*_swapped(image.parent, "images", "labels"), image.parent, self._root / "labels"]
        name = f"{image.stem}.txt"
        there = next((folder / name for folder in folders if os.path.isfile(folder / name)), None)
        found = self._by_stem.get(image.stem, [])
        if there is None and len(found) > 1:
            found = [path for path in found if path.parent.name == image.parent.name]
            if len(found) != 1:
                raise DataError(f"several folders below {self._root} have a label file {name}: it is unclear whose")
        return there or (found[0] if found else None)

    def without_image(self, used: Iterable[Path], images: Iterable[Path]) -> list[Path]:
        """The label files, in the folders of those that are used, beside which no image of their name is.

        Args:
            used: the label files of images that are read.
            images: of all splits; their folders are where images may be.
        """
        taken = set(used)
        everywhere = {image.parent for image in images}
        stems: dict[Path, set[str]] = {}
        found = []
        for folder in sorted({label.parent for label in taken}):
            places = {folder, *_swapped(folder, "labels", "images")}
            if self._anywhere or folder == self._root / "labels":
                places |= everywhere
            for place in places - stems.keys():
                stems[place] = {name for name, suffix in _entries(place) if suffix.lower() in SUFFIXES}
            for name, suffix in sorted(_entries(folder)):
                label = folder / f"{name}{suffix}"
                if suffix == ".txt" and label not in taken and not any(name in stems[place] for place in places):
                    found += [label] if _holds_rows(label) else []
        return found


def _swapped(folder: Path, name: str, other: str) -> list[Path]:
    """The folder with `other` in place of the last `name` of its path; nothing where it has none."""
    parts = folder.parts
    if name not in parts:
        return []
    last = len(parts) - 1 - parts[::-1].index(name)
    return [Path(*parts[:last], other, *parts[last + 1 :])]


def _entries(folder: Path) -> list[tuple[str, str]]:
    """The names in a folder with their endings; hidden ones are left out."""
    try:
        return [os.path.splitext(name) for name in os.listdir(folder) if not name.startswith(".")]
    except OSError:
        return []


def _holds_rows(file: Path) -> bool:
    """Whether a text begins with a row of numbers; names of classes and lists of images do not."""
    try:
        with file.open("rb") as stream:
            words = stream.read(_HEAD).split(b"\n", 1)[0].split()
        return len([float(word) for word in words[:5]]) == 5
    except (OSError, ValueError):
        return False
