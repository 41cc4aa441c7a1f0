"""Several data sets that belong together, such as the splits of one: same classes, no picture in two."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

from cskd_data.dataset import Dataset, Note
from cskd_data.errors import DataError
from cskd_data.names import counted

_END_BYTES = 1 << 14


def check_together(datasets: Mapping[str, Dataset]) -> list[Note]:
    """Compare data sets by pair: what to know about the same picture in two of them.

    Pictures are the same when they are one file, or files of the same bytes.

    Args:
        datasets: name (`train`, or a file's) -> data set.

    Raises:
        DataError: two have other classes; both lists are in the message. Another order of the same is no fault.
    """
    for (one, first), (other, second) in combinations(datasets.items(), 2):
        if set(first.classes) != set(second.classes):
            raise DataError(
                f"{one} and {other} have different classes.\n  {one}: {', '.join(first.classes)}\n  {other}: "
                f"{', '.join(second.classes)}\nGive both the same class names, or choose with --classes"
            )
    pictures = {name: _by_size(dataset) for name, dataset in datasets.items()}
    digests: dict[tuple[str, bool], bytes] = {}
    notes = []
    for one, other in combinations(pictures, 2):
        shared = []
        for size in pictures[one].keys() & pictures[other].keys():
            there = pictures[other][size]
            shared += [
                path for path in pictures[one][size] if any(_same(path, candidate, digests) for candidate in there)
            ]
        if shared:
            names = sorted(Path(path).name for path in shared)
            message = (
                f"{counted(len(names), 'picture')} both in {one} and in {other}, so that its scores flatter the model"
            )
            notes.append(Note.of(message, names))
    return notes


def _by_size(dataset: Dataset) -> dict[int, list[str]]:
    """The files of a data set by their number of bytes."""
    found: dict[int, list[str]] = {}
    if dataset.image_root is None:
        return found
    for name in {image["file_name"] for image in dataset.images}:
        path = os.path.abspath(dataset.image_root / name)
        try:
            found.setdefault(os.stat(path).st_size, []).append(path)
        except OSError:
            continue
    return found


def _same(one: str, other: str, digests: dict[tuple[str, bool], bytes]) -> bool:
    """Whether two files of one size are the same: their last bytes are compared first, then all."""

    def digest(path: str, whole: bool) -> bytes:
        if (path, whole) not in digests:
            with open(path, "rb") as file:
                if not whole:
                    file.seek(-min(_END_BYTES, os.fstat(file.fileno()).st_size), os.SEEK_END)
                digests[path, whole] = hashlib.sha256(file.read()).digest()
        return digests[path, whole]

    try:
        return one == other or all(digest(one, whole) == digest(other, whole) for whole in (False, True))
    except OSError:
        return False
