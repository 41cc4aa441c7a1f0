"""Several data sets that belong together, such as the splits of one: same classes, no picture in two."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

from cskd_data.dataset import Dataset, Note
from cskd_data.merge import same_classes
from cskd_data.names import counted

_END_BYTES = 1 << 14


def check_together(datasets: Mapping[str, Dataset]) -> list[Note]:
    """Compare data sets by pair: what to know about the same picture in two of them.

    Pictures are the same when they are one file, or files of the same bytes.

    Args:
        datasets: name (`train`, or a file's) -> data set.

    Raises:
        DataError: as `cskd_data.merge.same_classes`.
    """
    way_out = "Give both the same class names, or choose with --classes"
    same_classes(list(datasets.values()), list(datasets), way_out)
    pictures = {name: _by_size(dataset) for name, dataset in datasets.items()}
    digests = _Digests()
    notes = []
    for one, other in combinations(pictures, 2):
        shared: list[str] = []
        for size in pictures[one].keys() & pictures[other].keys():
            shared += _shared(pictures[one][size], pictures[other][size], digests)
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


class _Digests:
    """Digests of files, each computed once."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, bool], bytes | None] = {}

    def of(self, path: str, whole: bool) -> bytes | None:
        """Of the last bytes of a file, or of all; None where it cannot be read."""
        if (path, whole) not in self._found:
            self._found[path, whole] = self._compute(path, whole)
        return self._found[path, whole]

    @staticmethod
    def _compute(path: str, whole: bool) -> bytes | None:
        try:
            with open(path, "rb") as file:
                if not whole:
                    file.seek(-min(_END_BYTES, os.fstat(file.fileno()).st_size), os.SEEK_END)
                return hashlib.sha256(file.read()).digest()
        except OSError:
            return None


def _shared(first: list[str], second: list[str], digests: _Digests) -> list[str]:
    """Which files of the first list are in the second, or have the bytes of one there; all are of one size.

    The last bytes are compared first: most pictures differ in them.
    """
    listed = set(second)
    by_end: dict[bytes | None, list[str]] = {}
    for path in second:
        by_end.setdefault(digests.of(path, whole=False), []).append(path)
    by_end.pop(None, None)
    return [
        path
        for path in first
        if path in listed
        or (
            (alike := by_end.get(digests.of(path, whole=False)))
            and digests.of(path, whole=True) in {digests.of(other, whole=True) for other in alike} - {None}
        )
    ]
