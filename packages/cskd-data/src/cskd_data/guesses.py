"""When a file is found by a part of its name only. Such a match is a guess, and its rules are these.

No folder speaks against it; no other name means the same file; and whoever takes it says so in a note.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile

from cskd_data.dataset import Note
from cskd_data.image_files import shared_end
from cskd_data.names import counted, folded
from cskd_data.split import SPLIT_CALLED, SPLIT_NAMES

FolderNames = tuple[str, ...]
"""The folders of a name that tell names apart, the innermost last."""

ELSEWHERE = "{} with folders that are not there; the files were found by the rest of the name"

_KINDS = ("images", "labels", "annotations", "jpegimages", "jpg", "jpeg", "png", "txt", "xml", "json")
_MEANINGLESS = frozenset(("", ".", "..", *_KINDS))


def ends_of(name: str, root: str) -> tuple[list[str], str | None]:
    """What a name is without its first folders, the longest first, and the folder that it gives where that is there.

    A file that is not in a folder that is there is missing: no end follows that leaves out such a folder.

    Args:
        name: with `/` between its folders.
        root: the folder in which its own may be.
    """
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    found = []
    for first in range(len(parts)):
        end = "/".join(parts[first:])
        if end != name:
            found.append(end)
        folder = os.path.join(*parts[first:-1]) if parts[first:-1] else ""
        if folder and os.path.isdir(os.path.join(root, folder)):
            return found, folder
    return found, None


def disputed(hits: Iterable[tuple[str, str, bool]]) -> set[str]:
    """The names whose guess does not count, since another name means the same file.

    Args:
        hits: names, the file of each, and whether that is a guess.
    """
    hits = list(hits)
    takers: dict[str, set[str]] = {}
    for name, file, _ in hits:
        takers.setdefault(os.path.abspath(file), set()).add(name)
    return {name for name, file, guess in hits if guess and len(takers[os.path.abspath(file)]) > 1}


def guessed(found: Mapping[str, str], noun: str = "file name") -> list[Note]:
    """The note on guesses that were taken: name -> file."""
    lines = [f"{name} is {file}" for name, file in found.items()]
    return [Note.of(ELSEWHERE.format(counted(len(lines), noun)), lines)] if lines else []


def folder_names(folders: Iterable[str]) -> FolderNames:
    """Folders without those that tell nothing apart, whatever their case; those of splits by one name each."""
    found = (folded(folder) for folder in folders)
    return tuple(SPLIT_CALLED.get(name, name) for name in found if name not in _MEANINGLESS)


class Folders:
    """The folders on one side of a match: those of all names, or those of all files.

    Args:
        folders: of each name or file.
        from_top: folders that all have count too.
    """

    def __init__(self, folders: Iterable[FolderNames], from_top: bool = False) -> None:
        every = {folder for folder in folders if folder}
        self._ends = {folder[first:] for folder in every for first in range(len(folder))}
        self._same = (
            0 if from_top else sum(1 for _ in takewhile(lambda one: len({*one}) == 1, zip(*every, strict=False)))
        )

    def agree(self, own: FolderNames, others: Folders, other: FolderNames) -> tuple[int, bool] | None:
        """How many folders a name and a file share at their ends, and whether one of both has others: it is a guess.

        None where they speak against each other: one side has the folder that the other one asks for, or both are in
        folders of their own, be it in groups or in splits.
        """
        shared = shared_end(own, other)
        rests = own[self._same : len(own) - shared], other[others._same : len(other) - shared]
        if others._has(own, shared) or (rests[0] and self._has(other, shared)):
            return None
        for of_splits in (True, False):
            one, two = ([name for name in rest if (name in SPLIT_NAMES) == of_splits] for rest in rests)
            if one and two and one[0] != two[0]:
                return None
        return shared, any(rests)

    def _has(self, folder: FolderNames, shared: int) -> bool:
        """Whether an end of a folder, longer than what is shared, is one of these."""
        return any(folder[first:] in self._ends for first in range(len(folder) - shared))


def best(agreements: Sequence[tuple[int, bool] | None]) -> list[int]:
    """The places of the agreements that share most folders, and of these of those that are no guesses."""
    ranks = [(-1, False) if one is None else (one[0], not one[1]) for one in agreements]
    most = max(ranks, default=(-1, False))
    return [place for place, rank in enumerate(ranks) if rank == most and rank[0] >= 0]
