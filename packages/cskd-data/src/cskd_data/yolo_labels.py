"""The label files of a YOLO data set: which one an image has, and which ones have no image."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from cskd_data.dataset import Note
from cskd_data.errors import DataError
from cskd_data.folders import files_below
from cskd_data.guesses import FolderNames, Folders, best, disputed, folder_names
from cskd_data.image_files import common_folder
from cskd_data.images import SUFFIXES
from cskd_data.names import counted

_HEAD = 1 << 10  # bytes of a label file in which its first row is

_Hit = tuple[Path, bool]
"""A label file, and whether it is a guess that it is an image's."""


class Labels:
    """The label files of a set.

    Args:
        root: its folder.
        images: of all splits.
        elsewhere: the folder of the images, where they do not lie in the set: label files are looked for in all of the
            set by name, and those that lie with the images count only where the set has none.
        others: text files of the set that hold no labels.
    """

    def __init__(
        self, root: Path, images: Sequence[Path], elsewhere: Path | None = None, others: Iterable[Path] = ()
    ) -> None:
        self._root = root
        self._top = os.path.abspath(root)
        self._images = images
        self._elsewhere = elsewhere
        self._others = {os.path.abspath(file) for file in others}
        self._folders: dict[Path, list[Path]] = {}
        self._found: dict[Path, list[_Hit]] = {}
        self._takers: dict[str, list[tuple[str, str, bool]]] = {}
        self._guesses: list[str] = []
        self._unused: list[str] = []
        self._refused: set[Path] = set()

    def of(self, image: Path) -> Path | None:
        """The file of an image: in `labels` for the last `images` of its path, or beside it; else one of its name.

        That is one in `labels`, or where the images lie elsewhere anywhere in the set, whose folders do not speak
        against those of the image. None where there is none.

        Raises:
            DataError: it is unclear which of several label files is the image's, or whose a label file is.
        """
        found = self._hits(image)
        if self._elsewhere and self._has_own:
            self._unused += [os.path.relpath(path, self._start) for path in self._places(image) if not self._owns(path)]
        if not found:
            self._refused.update(self._named(image))
            return None
        if len(found) > 1:
            raise DataError(
                f"several folders below {self._root} have a label file {image.stem}.txt: it is unclear whose"
            )
        ((label, guess),) = found
        if guess:
            takers = [one for one in self._takers_of(image.stem) if one[1] == str(label)]
            if str(image.with_suffix("")) in disputed(takers):
                if not all(unsure for _, _, unsure in takers):
                    return None
                names = " and of ".join(sorted(os.path.relpath(name, self._start) for name, _, _ in takers)[:2])
                raise DataError(f"{label} may be of {names}: it is unclear whose")
            self._guesses.append(f"{os.path.relpath(image, self._start)} has {os.path.relpath(label, self._root)}")
        return label

    def notes(self) -> list[Note]:
        """What is odd about the label files of the images that were asked for."""
        kinds = (
            (self._guesses, "image", "whose label file is not in a folder of the same name, found by its own name"),
            (self._unused, "label file", "beside the images not used: the set has its own"),
        )
        return [Note.of(f"{counted(len(found), noun)} {what}", found) for found, noun, what in kinds if found]

    def _hits(self, image: Path) -> list[_Hit]:
        """The label files that an image may have."""
        if image not in self._found:
            found = self._own(image)
            if not found and self._elsewhere and not self._has_own:
                found = [(path, False) for path in self._places(image)[:1]]
            self._found[image] = found
        return self._found[image]

    def _own(self, image: Path) -> list[_Hit]:
        """In the set; where the images lie in it, also wherever they lie."""
        there = next((path for path in self._places(image) if not self._elsewhere or self._owns(path)), None)
        if there is not None:
            return [(there, False)]
        files = self._named(image) if os.path.isfile(image) else []
        own = self._image_folders(image.parent) if files else ()
        agreed = [self._asked.agree(own, self._tree, self._label_folders(path.parent)) for path in files]
        return [(files[place], bool(one and one[1])) for place in best(agreed) for one in [agreed[place]]]

    @cached_property
    def _has_own(self) -> bool:
        return any(self._own(image) for image in self._images)

    def _places(self, image: Path) -> list[Path]:
        """The files in `labels` for `images`, and beside an image; first beside it where `images` holds the set."""
        place = image.parent
        if place not in self._folders:
            folders = [*_swapped(place, "images", "labels"), place]
            if len(folders) > 1 and Path(self._top).is_relative_to(os.path.abspath(_up_to(place, "images"))):
                folders.reverse()
            self._folders[place] = folders
        return [path for folder in self._folders[place] if os.path.isfile(path := folder / f"{image.stem}.txt")]

    def _owns(self, path: Path) -> bool:
        return Path(os.path.abspath(path)).is_relative_to(self._top)

    def _named(self, image: Path) -> list[Path]:
        """The label files of an image's name, of those that may be found by it."""
        if not self._elsewhere:
            path = self._root / "labels" / f"{image.stem}.txt"
            return [path] if os.path.isfile(path) else []
        last = self._image_folders(image.parent)[-1:]
        return self._by_name.get((image.stem, last)) or self._by_name.get((image.stem, None), [])

    @cached_property
    def _files(self) -> list[Path]:
        """Those that may be found by their names."""
        files = files_below(self._root if self._elsewhere else self._root / "labels", (".txt",))
        return [file for file in files if os.path.abspath(file) not in self._others]

    @cached_property
    def _by_name(self) -> dict[tuple[str, FolderNames | None], list[Path]]:
        """By stem alone, and with the last folder, without which names of frames would mean very many files."""
        found: dict[tuple[str, FolderNames | None], list[Path]] = {}
        for path in self._files:
            for last in (None, self._label_folders(path.parent)[-1:]):
                if last != ():
                    found.setdefault((path.stem, last), []).append(path)
        return found

    @cached_property
    def _start(self) -> str:
        return os.path.abspath(self._elsewhere or common_folder(self._images, self._root))

    @cached_property
    def _asked(self) -> Folders:
        return Folders(self._image_folders(folder) for folder in {image.parent for image in self._images})

    @cached_property
    def _tree(self) -> Folders:
        return Folders(self._label_folders(folder) for folder in {file.parent for file in self._files})

    def _image_folders(self, folder: Path) -> FolderNames:
        """By the folder of an image."""
        return folder_names((os.path.basename(self._start), *os.path.relpath(folder, self._start).split(os.sep)))

    def _label_folders(self, folder: Path) -> FolderNames:
        return folder_names(os.path.relpath(folder, self._root).split(os.sep))

    def _takers_of(self, stem: str) -> list[tuple[str, str, bool]]:
        """The images of a stem, without their endings, with the label file of each and whether it is a guess."""
        if stem not in self._takers:
            self._takers[stem] = [
                (str(image.with_suffix("")), str(label), guess)
                for image in self._by_stem.get(stem, [])
                for label, guess in self._hits(image)
            ]
        return self._takers[stem]

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for image in self._images:
            found.setdefault(image.stem, []).append(image)
        return found

    def without_image(self, used: Iterable[Path]) -> list[Path]:
        """The label files, in the folders of those that are used, beside which no image of their name is.

        Those too that have the name of an image, but folders that speak against it.

        Args:
            used: the label files of images that are read.
        """
        images = self._images
        taken = set(used)
        everywhere = {image.parent for image in images}
        stems: dict[Path, set[str]] = {}
        found = []
        for folder in sorted({label.parent for label in taken}):
            places = {folder, *_swapped(folder, "labels", "images")}
            if self._elsewhere or folder == self._root / "labels":
                places |= everywhere
            for place in places - stems.keys():
                stems[place] = {name for name, suffix in _entries(place) if suffix.lower() in SUFFIXES}
            for name, suffix in sorted(_entries(folder)):
                label = folder / f"{name}{suffix}"
                if suffix == ".txt" and label not in taken and not any(name in stems[place] for place in places):
                    found += [label] if _holds_rows(label) else []
        refused = sorted(self._refused - taken - set(found))
        return found + [one for one in refused if all(file != str(one) for _, file, _ in self._takers_of(one.stem))]


def _swapped(folder: Path, name: str, other: str) -> list[Path]:
    """The folder with `other` in place of the last `name` of its path; nothing where it has none."""
    if name not in folder.parts:
        return []
    above = _up_to(folder, name)
    return [above.parent / other / folder.relative_to(above)]


def _up_to(folder: Path, name: str) -> Path:
    """A path up to the last of its folders that has a name."""
    parts = folder.parts
    return Path(*parts[: len(parts) - parts[::-1].index(name)])


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
