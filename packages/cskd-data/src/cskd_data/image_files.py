"""The image files of a folder, found again by the names that annotations give them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path

from cskd_data.folders import files_below
from cskd_data.images import SUFFIXES
from cskd_data.names import folded


class ImageFiles:
    """Image files by name.

    Args:
        folder: that their names start from.
        within: the folders below it that hold them; none takes all.
    """

    def __init__(self, folder: Path, within: Sequence[Path] = ()) -> None:
        self.folder = folder
        self.paths = [path for inner in within or [folder] for path in files_below(inner, SUFFIXES)]
        self._by_name: dict[str, list[Path]] = {}
        for path in self.paths:
            for key in {path.name, path.stem, folded(path.name), folded(path.stem)}:
                self._by_name.setdefault(key, []).append(path)

    def named(self, name: str, near: Path, folders: Sequence[Sequence[str]] = ()) -> tuple[Path, int] | None:
        """The image of a name, with or without its ending, and how many folders it shares with the first of `folders`.

        Of several it is the one in the folders that are asked for; where that does not tell, the one nearest to the
        file `near`. None where there is none, or two are as good. Upper and lower case count only where two files
        differ by it.

        Args:
            folders: names of folders that the image may lie in, the innermost last, the surest first.
        """
        for key in (name, folded(name)):
            found = self._by_name.get(key, [])
            if found:
                ranks = [
                    (*(shared_end(path.parent.parts, one) for one in folders), -_distance(path, near)) for path in found
                ]
                best = max(ranks)
                return (found[ranks.index(best)], best[0] if folders else 0) if ranks.count(best) == 1 else None
        return None


def shared_end(one: Sequence[str], other: Sequence[str]) -> int:
    """How many names two ways have in common at their ends."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(reversed(one), reversed(other), strict=False)))


def _distance(one: Path, other: Path) -> int:
    """Steps from folder to folder."""
    first, second = one.parent.parts, other.parent.parts
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
    return len(first) + len(second) - 2 * shared


def common_folder(paths: Iterable[Path], default: Path) -> Path:
    """The deepest folder that holds all of these files."""
    folders = {os.path.abspath(path.parent) for path in paths}
    return Path(os.path.commonpath(folders)) if folders else default
