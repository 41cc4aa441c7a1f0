"""Which file an annotation's `file_name` means: as it stands, or as it was written on another machine."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from cskd_data.dataset import Note
from cskd_data.folders import check_folder, walk
from cskd_data.names import counted

SAMPLE = 20
"""Images whose files say where the folder is."""

_KINDS = {  # in the order in which they are tried
    "backslash": "{} written in Windows' way",
    "quoted": "{} quoted as in a URL",
    "elsewhere": "{} with folders that are not there; the files were found by the rest of the name",
    "alike": "{} in other upper or lower case, or with other accents, than the file's own",
}


def find_images(
    names: Sequence[str], source: Path, images: Path | None, searched: bool = False
) -> tuple[Path | None, list[str | None], list[Note]]:
    """The image folder and, for each name, the file's name below it.

    Args:
        names: the file names of the data set.
        source: the annotation file.
        images: the image folder; None looks for it beside `source`.
        searched: only the name as it stands is a file's.

    Returns:
        The folder, None where none was given and no image found; the name of each file below it (absolute where the
        file lies elsewhere), None where there is none; and what was not found under its plain name.

    Raises:
        DataError: `images` is no folder.
    """
    root = check_folder(images, source) if images is not None else _guess(names, source)
    if root is None:
        return None, [None] * len(names), []
    if searched:
        return root, [name if os.path.isfile(os.path.join(root, name)) else None for name in names], []
    folder = _Folder(root)
    found = [folder.find(name) for name in names]
    # Two names of other machines that would mean one file here mean neither.
    meant: dict[str, set[str]] = {}
    for name, hit in zip(names, found, strict=True):
        if hit is not None:
            meant.setdefault(hit[0], set()).add(name)
    files = [None if hit is None or (hit[1] and len(meant[hit[0]]) > 1) else hit[0] for hit in found]
    notes = []
    for kind, message in _KINDS.items():
        changed = {
            f"{name} is {hit[0]}"
            for name, hit, file in zip(names, found, files, strict=True)
            if hit is not None and file is not None and hit[1] == kind
        }
        if changed:
            notes.append(Note.of(message.format(counted(len(changed), "file name")), sorted(changed)))
    return root, files, notes


def _guess(names: Sequence[str], source: Path) -> Path | None:
    """The folder near the annotation file that holds most of the first images."""
    beside, above = source.parent, source.parent.parent
    folders = [beside, beside / "images", beside / "data", above, above / "images"]
    own_names = dict.fromkeys([source.stem, source.stem.removeprefix("instances_")])
    folders += [place / name for place in (beside, above, above / "images") for name in own_names]
    sample = names[:SAMPLE]

    def hits(folder: Path) -> int:
        if not folder.is_dir():
            return 0
        plain = _Folder(folder, deep=False)
        return sum(plain.find(name) is not None for name in sample)

    counts = [hits(folder) for folder in folders]
    most = max(counts)
    return folders[counts.index(most)] if most else None


class _Folder:
    """An image folder, searched by name.

    Args:
        deep: also search its files, at any depth, for a base name.
    """

    def __init__(self, root: Path, deep: bool = True) -> None:
        self._root = str(root)
        self._deep = deep
        self._files: dict[str, list[str]] | None = None

    def find(self, name: str) -> tuple[str, str] | None:
        """The name below the folder, and the kind of change that it took (empty: none)."""
        if os.path.isfile(os.path.join(self._root, name)):
            return name, ""
        for variant, kind in self._variants(name):
            for start in (self._root, os.path.dirname(self._root) or os.pardir):
                path = os.path.join(start, variant)
                if os.path.isfile(path):
                    return self._below(path), kind
        base = name.replace("\\", "/").rsplit("/", 1)[-1]
        for wanted in dict.fromkeys((base, unquote(base))) if self._deep else ():
            there = self._index().get(folded(wanted), [])
            if len(there) == 1:
                same = os.path.basename(there[0]) == wanted
                return there[0], "elsewhere" if same else "alike"
        return None

    def _variants(self, name: str) -> Iterator[tuple[str, str]]:
        yield name, ""
        slashed = name.replace("\\", "/")
        forms = {slashed: "backslash"}
        forms.setdefault(unquote(slashed), "quoted")
        for form, kind in forms.items():
            if form != name:
                yield form, kind
        for form in forms:
            parts = form.split("/")
            for first in range(1, len(parts)):
                yield "/".join(parts[first:]), "elsewhere"

    def _below(self, path: str) -> str:
        below = os.path.relpath(path, self._root)
        return below if not below.startswith(os.pardir) else os.path.abspath(path)

    def _index(self) -> dict[str, list[str]]:
        if self._files is None:
            self._files = {}
            for path in walk(Path(self._root)):
                self._files.setdefault(folded(path.name), []).append(self._below(str(path)))
        return self._files


def folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
