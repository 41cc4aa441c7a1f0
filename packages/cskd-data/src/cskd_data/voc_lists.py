"""The lists of images in VOC's `ImageSets/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cskd_data.dataset import Note, together
from cskd_data.errors import SHOWN, DataError, refuse
from cskd_data.image_files import shared_end
from cskd_data.images import SUFFIXES
from cskd_data.names import counted
from cskd_data.split import SPLIT_NAMES

_FLAGS = ("-1", "0", "1")


def listed(root: Path, base: Path, files: Sequence[Path], split: str | None) -> tuple[set[Path], list[Note]]:
    """The XML files of a split: those that a list names, or where there are no lists those in the split's folder.

    Args:
        base: the folder of the annotations; an XML file is named by its way from there, `cam1/0`, or by its last name
            where no other has it.
        files: all XML files.
        split: the list's name without `.txt`; None takes the only list where there is one, else every file.

    Raises:
        DataError: there is no such list, or it names a file that is not there or is one of several (the line is named).
    """
    lists = lists_of(root)
    folders = {} if lists else folders_of(root, files)
    if split in folders:
        return folders[split], []
    asked = split is not None
    if split is None:
        if len(lists) != 1:
            return set(files), together(list(folders) or splits_of_lists(lists))
        (split,) = lists
    if split not in lists:
        there = ", ".join(folders or sorted(lists)) or "none"
        raise DataError(f"split {split!r}: {root / 'ImageSets' / 'Main' / split}.txt does not exist; splits: {there}")
    by_stem: dict[str, list[Path]] = {}
    for file in files:
        by_stem.setdefault(file.stem, []).append(file)
    found, faults = set(), []
    try:
        lines = lists[split].read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    except OSError as error:
        raise DataError(f"{lists[split]} cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        way = next((way for way in _ways(line) if way[-1] in by_stem), None)
        if way is not None:
            meant = _meant(way, by_stem[way[-1]], base)
            found.update(meant[:1])
            if len(meant) > 1:
                names = ", ".join(file.relative_to(base).as_posix() for file in meant[:SHOWN])
                faults.append(f"line {number}: it is unclear which of {names} is {line.strip()[:80]}: name its folder")
        elif line.strip():
            faults.append(f"line {number}: there is no {line.strip()[:80]}.xml")
    refuse(lists[split], faults, "Correct these lines, take them out, or copy the XML files")
    if not found:
        raise DataError(f"{lists[split]} names no image")
    left = len(files) - len(found)
    note = Note(f"{counted(left, 'XML file')} not in {lists[split].relative_to(root)}, left out", left)
    return found, [note] if left and not asked else []


def lists_of(root: Path) -> dict[str, Path]:
    """By name; those of `Main` go before others, which are of segmentation and actions."""
    main = sorted((root / "ImageSets" / "Main").glob("*.txt"))
    return {path.stem: path for path in main or sorted((root / "ImageSets").glob("*.txt"))}


def folders_of(root: Path, files: Sequence[Path]) -> dict[str, set[Path]]:
    """The XML files in folders named as splits, by split, as Roboflow has them: in `root`, or in its `Annotations`."""
    splits = {name: split for split, names in SPLIT_NAMES.items() for name in names}
    found: dict[str, set[Path]] = {}
    for file in files:
        ways = [file.relative_to(base).parts for base in (root / "Annotations", root) if file.is_relative_to(base)]
        if ways and len(ways[0]) > 1 and ways[0][0] in splits:
            found.setdefault(splits[ways[0][0]], set()).add(file)
    return {split: found[split] for split in SPLIT_NAMES if split in found}


def splits_of_lists(lists: Mapping[str, Path]) -> list[str]:
    """The lists that are splits: VOC has one for each class too, `cat_train` ..."""
    return [name for name in ("train", "val", "trainval", "test") if name in lists] or list(lists)


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


def _meant(way: Sequence[str], files: Sequence[Path], base: Path) -> list[Path]:
    """Which of files of one last name a line's way means: one, or several where it cannot be told."""
    names = [file.relative_to(base).with_suffix("").parts for file in files]
    whole = [file for file, name in zip(files, names, strict=True) if tuple(way[-len(name) :]) == name]
    if whole:  # of `cam1/0`, rather than of `0`
        return [max(whole, key=lambda file: len(file.parts))]
    shared = [shared_end(name, way) for name in names]
    return [file for file, count in zip(files, shared, strict=True) if count == max(shared)]
