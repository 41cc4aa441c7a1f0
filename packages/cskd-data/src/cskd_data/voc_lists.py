"""The lists of images in VOC's `ImageSets/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cskd_data.dataset import Note, together
from cskd_data.errors import SHOWN, DataError, NoImages, refuse
from cskd_data.folders import files_below, folders_of_splits
from cskd_data.image_files import shared_end
from cskd_data.images import SUFFIXES
from cskd_data.names import counted
from cskd_data.split import for_training, meant, no_such_split, without_training
from cskd_data.voc_xml import is_another

_FLAGS = ("-1", "0", "1")


def listed(root: Path, base: Path, files: Sequence[Path], split: str | None) -> tuple[set[Path], list[Note]]:
    """The XML files of a split: those that a list names, or where there are no lists those in the split's folder.

    Where lists or folders are for val and test alone, all other files are for training.

    Args:
        base: the folder of the annotations; an XML file is named by its way from there, `cam1/0`, or by its last name
            where no other has it.
        files: all XML files.
        split: the list's name without `.txt`; None takes the only list where there is one and it is for training, else
            every file.

    Raises:
        NoImages: the split's list is empty.
        DataError: there is no such split, or its list names a file that is not there or is one of several (the line is
            named).
    """
    lists, folders = lists_of(root), folders_of(root)
    names = [*folders] or splits_of_lists(lists)
    if split is None and (len(lists) != 1 or without_training(names)):
        return set(files), together(splits_of_files(root, base, files))
    name = meant(split, folders or lists) if split is not None else next(iter(lists))
    if name is None and without_training(names) and meant(str(split), ["train"]):
        rest = _rest(root, base, files)
        if not rest:
            raise NoImages(f"{root} has no XML file for training: all are in {', '.join(names)}")
        return rest, [for_training("XML file", [file.relative_to(base).as_posix() for file in sorted(rest)], names)]
    if name is None:
        raise no_such_split(root, str(split), folders or sorted(lists))
    if name in folders:
        return _in_folders(folders[name], files), []
    found = _in_list(lists[name], base, files)
    if not found:
        raise NoImages(f"{lists[name]} names no image")
    left = len(files) - len(found)
    note = Note(f"{counted(left, 'XML file')} not in {lists[name].relative_to(root)}, left out", left)
    return found, [note] if left and split is None else []


def splits_of_files(root: Path, base: Path, files: Sequence[Path]) -> list[str]:
    """The names of the splits of these files: see `listed`."""
    names = [*folders_of(root)] or splits_of_lists(lists_of(root))
    return ["train", *names] if without_training(names) and _rest(root, base, files) else names


def lists_of(root: Path) -> dict[str, Path]:
    """By name; those of `Main` go before others, which are of segmentation and actions."""
    main = sorted((root / "ImageSets" / "Main").glob("*.txt"))
    return {path.stem: path for path in main or sorted((root / "ImageSets").glob("*.txt"))}


def folders_of(root: Path) -> dict[str, list[Path]]:
    """The folders of annotations that are named as splits, by split, as Roboflow has them; none where there are lists.

    They lie in `root`, or in its `Annotations` where it has them.
    """
    if lists_of(root):
        return {}
    there = folders_of_splits(annotations_of(root))
    with_files = {split: [one for one in folders if _holds_annotations(one)] for split, folders in there.items()}
    return {split: folders for split, folders in with_files.items() if folders}


def annotations_of(root: Path) -> Path:
    """The folder that the annotations of a data set are named from."""
    base = root / "Annotations"
    return base if base.is_dir() else root


def splits_of_lists(lists: Mapping[str, Path]) -> list[str]:
    """The lists that are splits: VOC has one for each class too, `cat_train` ..."""
    return [name for name in ("train", "val", "trainval", "test") if meant(name, lists)] or list(lists)


def _holds_annotations(folder: Path) -> bool:
    """Whether an XML file is in a folder, at any depth, that is not another program's."""
    return any(not is_another(file) for file in files_below(folder, (".xml",)))


def _rest(root: Path, base: Path, files: Sequence[Path]) -> set[Path]:
    """The files that are in no split."""
    lists, folders = lists_of(root), folders_of(root)
    rest = set(files)
    for inner in folders.values():
        rest -= _in_folders(inner, files)
    for name in splits_of_lists(lists):
        rest -= _in_list(lists[meant(name, lists) or name], base, files)
    return rest


def _in_folders(folders: Sequence[Path], files: Sequence[Path]) -> set[Path]:
    return {file for file in files if any(file.is_relative_to(folder) for folder in folders)}


def _in_list(listing: Path, base: Path, files: Sequence[Path]) -> set[Path]:
    """The files that a list names.

    Raises:
        DataError: it cannot be read, or names a file that is not there or is one of several (the line is named).
    """
    by_stem: dict[str, list[Path]] = {}
    for file in files:
        by_stem.setdefault(file.stem, []).append(file)
    found, faults = set(), []
    try:
        lines = listing.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    except OSError as error:
        raise DataError(f"{listing} cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        way = next((way for way in _ways(line) if way[-1] in by_stem), None)
        if way is not None:
            of_line = _files_meant(way, by_stem[way[-1]], base)
            found.update(of_line[:1])
            if len(of_line) > 1:
                names = ", ".join(file.relative_to(base).as_posix() for file in of_line[:SHOWN])
                faults.append(f"line {number}: it is unclear which of {names} is {line.strip()[:80]}: name its folder")
        elif line.strip():
            faults.append(f"line {number}: there is no {line.strip()[:80]}.xml")
    refuse(listing, faults, "Correct these lines, take them out, or copy the XML files")
    return found


def _ways(line: str) -> list[list[str]]:
    """What a line may mean: an image's name, its folders before it, with an ending, or with VOC's flag of a class."""
    name = line.strip()
    words = name.rsplit(maxsplit=1)
    ways = [
        one.replace("\\", "/").split("/")
        for one in ([name, words[0]] if len(words) == 2 and words[1] in _FLAGS else [name])
    ]
    for *folders, last in list(ways):
        stem, _, suffix = last.rpartition(".")
        if f".{suffix.lower()}" in (*SUFFIXES, ".xml"):
            ways.append([*folders, stem])
    return ways


def _files_meant(way: Sequence[str], files: Sequence[Path], base: Path) -> list[Path]:
    """Which of files of one last name a line's way means: one, or several where it cannot be told."""
    names = [file.relative_to(base).with_suffix("").parts for file in files]
    whole = [file for file, name in zip(files, names, strict=True) if tuple(way[-len(name) :]) == name]
    if whole:  # of `cam1/0`, rather than of `0`
        return [max(whole, key=lambda file: len(file.parts))]
    shared = [shared_end(name, way) for name in names]
    return [file for file, count in zip(files, shared, strict=True) if count == max(shared)]
