"""Which file an annotation's `file_name` means: as it stands, or as it was written on another machine."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from cskd_data.dataset import Note
from cskd_data.folders import check_folder, walk
from cskd_data.guesses import ELSEWHERE, FolderNames, Folders, best, disputed, ends_of, folder_names
from cskd_data.names import counted, folded

SAMPLE = 20
"""Images whose files say where the folder is."""

_KINDS = {  # in the order in which they are tried
    "backslash": "{} written in Windows' way",
    "quoted": "{} quoted as in a URL",
    "elsewhere": ELSEWHERE,
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
    folder = _Folder(root, names)
    found = [folder.find(name) for name in names]
    hits = [(name, *hit) for name, hit in zip(names, found, strict=True) if hit is not None]
    lost = disputed((name, os.path.join(root, file), bool(kind)) for name, file, kind in hits)
    files = [None if hit is None or name in lost else hit[0] for name, hit in zip(names, found, strict=True)]
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
        plain = _Folder(folder, names, deep=False)
        return sum(plain.find(name) is not None for name in sample)

    counts = [hits(folder) for folder in folders]
    most = max(counts)
    return folders[counts.index(most)] if most else None


class _Folder:
    """An image folder, searched by name.

    Args:
        names: all that will be looked for.
        deep: also search its files, at any depth, for a base name.
    """

    def __init__(self, root: Path, names: Sequence[str], deep: bool = True) -> None:
        self._root = str(root)
        self._names = names
        self._deep = deep
        self._files: dict[str, list[str]] | None = None

    def find(self, name: str) -> tuple[str, str] | None:
        """The name below the folder, and the kind of change that it took (empty: none)."""
        if os.path.isfile(os.path.join(self._root, name)):
            return name, ""
        slashed = name.replace("\\", "/")
        forms = {name: "", slashed: "backslash"}
        forms.setdefault(unquote(slashed), "quoted")
        for form, kind in forms.items():
            if (file := self._plain(form)) is not None:
                return file, kind if form != name else ""
        there = None
        for form in dict.fromkeys((slashed, unquote(slashed))):
            ends, there = ends_of(form, self._root)
            for end in ends:
                if (file := self._plain(end)) is not None:
                    return file, "elsewhere"
            if there is not None:
                break
        return self._by_base(slashed, there) if self._deep else None

    def _plain(self, name: str) -> str | None:
        """A name in the folder, or in the one above."""
        for start in (self._root, os.path.dirname(self._root) or os.pardir):
            path = os.path.join(start, name)
            if os.path.isfile(path):
                return self._below(path)
        return None

    def _by_base(self, slashed: str, there: str | None) -> tuple[str, str] | None:
        """The only file at any depth that has the base name, and whose folders the name does not contradict.

        Args:
            there: the folder that the name gives, where it is there: no other one counts.
        """
        base = slashed.rsplit("/", 1)[-1]
        for wanted in dict.fromkeys((base, unquote(base))):
            hits = self._index().get(folded(wanted), [])
            if there is not None:
                hits = [file for file in hits if os.path.dirname(file) == there]
                agreed: list[tuple[int, bool] | None] = [(0, True)] * len(hits)
            else:
                own = _folders_of(slashed)
                agreed = [self._asked.agree(own, self._tree, _folders_of(file)) for file in hits]
            places = best(agreed)
            if len(places) == 1:
                file = hits[places[0]]
                return file, "elsewhere" if os.path.basename(file) == wanted else "alike"
        return None

    def _below(self, path: str) -> str:
        below = os.path.relpath(path, self._root)
        return below if not below.startswith(os.pardir) else os.path.abspath(path)

    def _index(self) -> dict[str, list[str]]:
        if self._files is None:
            self._files = {}
            for path in walk(Path(self._root)):
                self._files.setdefault(folded(path.name), []).append(self._below(str(path)))
        return self._files

    @functools.cached_property
    def _asked(self) -> Folders:
        return Folders(map(_folders_of, self._names))

    @functools.cached_property
    def _tree(self) -> Folders:
        folders = {os.path.dirname(file) for files in self._index().values() for file in files}
        return Folders((folder_names(folder.split(os.sep)) for folder in folders), from_top=True)


def _folders_of(name: str) -> FolderNames:
    return folder_names(unquote(name.replace("\\", "/")).split("/")[:-1])
