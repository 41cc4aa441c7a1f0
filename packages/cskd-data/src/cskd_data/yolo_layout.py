"""Where the parts of a YOLO data set lie: its `data.yaml`, its splits, the label file of an image."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cskd_data.dataset import Note
from cskd_data.errors import DataError
from cskd_data.folders import files_below, folders_of_splits
from cskd_data.guesses import disputed, ends_of, guessed
from cskd_data.images import SUFFIXES
from cskd_data.names import counted, plain_name
from cskd_data.split import SPLIT_CALLED, SPLIT_NAMES, for_training, without_training

_NAME_FILES = ("classes.txt", "obj.names", "labels.txt", "labels/classes.txt")
_DARKNETS = "data/"  # what the folder of the set is called in the lists that CVAT writes
_MOST_YAML = 1 << 18  # bytes
_MOST_BRACKETS = 200  # PyYAML's time grows with the square of their nesting


@dataclass(frozen=True)
class Layout:
    """A YOLO data set before its labels are read."""

    classes: tuple[str, ...]
    images: dict[str, list[Path]]  # by split; all under "" where there are no splits
    unnamed: dict[str, list[Path]] = field(default_factory=dict)  # splits that are there, but not in the YAML file
    keypoints: bool = False  # whether a row holds a box and then points
    notes: tuple[Note, ...] = ()
    lists: dict[str, list[Path]] = field(default_factory=dict)  # the files that list the images of a split

    @property
    def all_splits(self) -> dict[str, list[Path]]:
        """Also those that the YAML file does not name."""
        return {**self.images, **self.unnamed}


def layout_of(path: Path, images: Path | None = None) -> Layout:
    """The parts of the set at a path: a `data.yaml`, or a folder with or without one.

    Args:
        images: folder of the images, where they do not lie where `path` says.

    Raises:
        DataError: nothing names the classes, a split is not there, or the YAML file is broken.
    """
    file = path if os.path.isfile(path) else find_yaml(path)
    if file is not None:
        return _of_yaml(file, images)
    named = names_file(path)
    if named is None:
        raise DataError(
            f"nothing names the classes of {path}: expected a data.yaml with `names`, or a classes.txt with one class "
            "a line"
        )
    classes = _names_of_lines(named)
    root = images or (path / "images" if (path / "images").is_dir() else path)
    folders = folders_of_splits(root)
    said = path / "obj.data"
    lists, missing = _lists_of(said) if said.is_file() else ({}, [])
    if not lists and not folders:
        by_name = [(split, path / f"{key}.txt") for split, keys in SPLIT_NAMES.items() for key in keys]
        lists = {split: file for split, file in by_name if file.is_file()}
    notes = [Note.of(f"{counted(len(missing), 'split')} not there", missing)] if missing else []
    if not lists:
        found = {
            split: [file for one in inner for file in files_below(one, SUFFIXES)] for split, inner in folders.items()
        }
        rest = [os.path.relpath(file, root) for file in _outside(found, root)] if found else []
        if rest and without_training(found):
            notes.append(for_training("image", rest, found))
            found = {"train": _outside(found, root), **found}
        elif rest:
            notes.append(Note.of(f"{counted(len(rest), 'image')} not in {', '.join(found)}, left out", rest))
        return Layout(classes, found or {"": files_below(root, SUFFIXES)}, notes=tuple(notes))
    listed, more = _listed(lists.values(), path, images)
    parts = {split: list(dict.fromkeys(listed[file])) for split, file in lists.items()}
    notes += more
    in_lists = {os.path.abspath(image) for part in parts.values() for image in part}
    rest = [file.name for file in files_below(root, SUFFIXES) if os.path.abspath(file) not in in_lists]
    if rest:
        names = ", ".join(file.name for file in lists.values())
        left_out = Note.of(f"{counted(len(rest), 'image')} not in {names}, left out", rest)
        notes.append(for_training("image", rest, lists) if without_training(lists) else left_out)
    if rest and without_training(lists):
        parts = {"train": _outside(parts, root), **parts}
    return Layout(classes, parts, notes=tuple(notes), lists={split: [file] for split, file in lists.items()})


def _outside(parts: Mapping[str, Sequence[Path]], root: Path) -> list[Path]:
    """The images below a folder that are in no split."""
    within = {os.path.abspath(image) for part in parts.values() for image in part}
    return [file for file in files_below(root, SUFFIXES) if os.path.abspath(file) not in within]


def _lists_of(file: Path) -> tuple[dict[str, Path], list[str]]:
    """The lists of images that Darknet's `obj.data` names by split, as CVAT writes it, and those that are not there."""
    hits = []
    for line in _lines_of(file):
        key, _, entry = (word.strip() for word in line.partition("="))
        if key in SPLIT_CALLED:
            hits.append((SPLIT_CALLED[key], entry, _resolve(entry, file.parent, file.parent) if entry else None))
    lost = disputed((entry, str(hit[0]), hit[1]) for _, entry, hit in hits if hit is not None)
    found: dict[str, Path] = {}
    missing = []
    for split, entry, hit in hits:
        if hit is not None and entry not in lost and hit[0].is_file():
            found[split] = hit[0]
        else:
            missing.append(f"{split}: {entry[:200]}")
    return {split: found[split] for split in SPLIT_NAMES if split in found}, missing


def find_yaml(folder: Path) -> Path | None:
    """The YAML file of a folder that names classes; of several `data.yaml`, or the first."""
    found = []
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        try:
            with path.open("rb") as file:
                if re.search(rb"^\s*['\"]?names['\"]?\s*:", file.read(_MOST_YAML), re.MULTILINE):
                    found.append(path)
        except OSError:
            continue
    return next((path for path in found if path.stem == "data"), found[0] if found else None)


def names_file(folder: Path) -> Path | None:
    """The text file of a folder that names classes, one a line; None where there is none."""
    return next((folder / name for name in _NAME_FILES if (folder / name).is_file()), None)


def _of_yaml(file: Path, folder: Path | None) -> Layout:
    data = _load(file)
    names = _names(data.get("names"), file)
    notes: list[Note] = []
    base = file.parent
    if isinstance(data.get("path"), str) and data["path"]:
        named = file.parent / data["path"]
        if os.path.isdir(named):
            base = named
        elif folder is None:
            notes.append(Note(f"path {data['path'][:200]!r} of {file.name} is not there: its own folder is taken"))
    entries: dict[str, Any] = {
        split: next((data[key] for key in keys if data.get(key)), None) for split, keys in SPLIT_NAMES.items()
    }
    found, missing, more = _found(entries, base, file.parent, folder)
    lists = {split: files for split, paths in found.items() if (files := [path for path in paths if path.is_file()])}
    listed, of_lines = _listed([one for files in lists.values() for one in files], base, folder)
    notes += [*more, *of_lines]
    images = {
        split: list(
            dict.fromkeys(image for path in paths for image in listed.get(path, ()) or files_below(path, SUFFIXES))
        )
        for split, paths in found.items()
    }
    beside = folder or file.parent
    unnamed: dict[str, list[Path]] = {}
    for split, keys in SPLIT_NAMES.items():
        if entries[split] is None:
            folders = [beside / key / "images" for key in keys if (beside / key / "images").is_dir()]
            unnamed.update((split, files) for one in folders if (files := files_below(one, SUFFIXES)))
    if not any(images.values()) and folder is not None:
        lost = [*missing, *(f"{split} (no image)" for split in images)]
        if lost:
            what = f"{counted(len(lost), 'split')} not there, all images of {folder} are read as one"
            notes.append(Note.of(what, lost))
        images, lists = {"": files_below(folder, SUFFIXES)}, {}
    elif not images:
        what = "its splits hold no image" if images else "it names neither train nor val"
        what = f"none of its splits is there ({'; '.join(missing)})" if missing else what
        raise DataError(f"{file}: {what}; looked in {base} and {beside}. Correct `path`, `train` and `val`")
    elif missing:
        notes.append(Note.of(f"{counted(len(missing), 'split')} not there", missing))
    return Layout(names, images, unnamed, "kpt_shape" in data, tuple(notes), lists)


def _load(file: Path) -> dict[str, Any]:
    """A YAML file with everything in it as text: YAML takes a class called `no` for a truth value."""
    try:
        with file.open("rb") as stream:
            content = stream.read(_MOST_YAML + 1)
        if len(content) > _MOST_YAML:
            raise DataError(f"{file} is larger than {_MOST_YAML >> 10} KiB, expected the data.yaml of a YOLO data set")
        if content.count(b"[") + content.count(b"{") > _MOST_BRACKETS:
            raise DataError(f"{file} is no data.yaml of a YOLO data set: it holds more than {_MOST_BRACKETS} brackets")
        data = yaml.load(content, Loader=yaml.BaseLoader)  # as safe as safe_load
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except (yaml.YAMLError, RecursionError, LookupError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise DataError(f"{file}{where}: not YAML ({problem[:200]})") from error
    if not isinstance(data, dict):
        raise DataError(f"{file} is no data.yaml of a YOLO data set: expected `names`, `train` and `val`")
    return data


def _names(names: Any, file: Path) -> tuple[str, ...]:
    """`names` as a list, as a mapping of number to name, or as a text of lines."""
    if isinstance(names, dict):
        try:
            numbered = {int(key): value for key, value in names.items()}
        except (TypeError, ValueError):
            raise DataError(f"{file}: `names` has a key that is no number, expected 0: first class, 1: ...") from None
        if sorted(numbered) != list(range(len(numbered))):
            raise DataError(f"{file}: the numbers of `names` are not 0 to {len(numbered) - 1}, each once")
        names = [numbered[number] for number in range(len(numbered))]
    elif isinstance(names, str):
        names = [name.strip() for name in re.split(r"[\n,]", names) if name.strip()]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{file}: `names` is no list of class names: expected names: [cat, dog]")
    return tuple(names)


def _lines_of(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error


def _names_of_lines(file: Path) -> tuple[str, ...]:
    lines = [line.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for line in _lines_of(file)]
    names = [plain_name(line) for line in lines]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise DataError(f"{file} is empty, expected one class a line")
    return tuple(name or f"class {number}" for number, name in enumerate(names))


def _found(
    entries: Mapping[str, Any], base: Path, beside: Path, folder: Path | None
) -> tuple[dict[str, list[Path]], list[str], list[Note]]:
    """The folders and lists of each split, what is not there, and what to say about the others.

    Args:
        entries: split -> what the YAML file says, one entry or several.
        folder: of the images, where they lie elsewhere; lists lie where the YAML file says.
    """
    hits: list[tuple[str, str, tuple[Path, bool] | None]] = []
    for split, value in entries.items():
        for entry in value if isinstance(value, list) else [value] if value else []:
            hit = _resolve(entry, base, beside) if isinstance(entry, str) else None
            if isinstance(entry, str) and folder is not None and (hit is None or not hit[0].is_file()):
                hit = _resolve(entry, folder, folder)
            hits.append((split, str(entry), hit))
    there = [(entry, hit[0], hit[1]) for _, entry, hit in hits if hit is not None]
    lost = disputed((entry, str(path), guess) for entry, path, guess in there)
    holders = {(above, entry) for entry, path, _ in there for above in Path(os.path.abspath(path)).parents}
    lost |= {
        entry
        for entry, path, guess in there
        if guess and any(above == Path(os.path.abspath(path)) and other != entry for above, other in holders)
    }
    found: dict[str, list[Path]] = {}
    missing, guesses = [], {}
    for split, entry, hit in hits:
        if hit is None or entry in lost:
            missing.append(f"{split}: {entry[:200]}")
            continue
        found.setdefault(split, []).append(hit[0])
        if hit[1]:
            guesses[entry[:200]] = os.path.relpath(hit[0], folder or beside)
    return found, missing, guessed(guesses, "split")


def _listed(files: Iterable[Path], base: Path, folder: Path | None) -> tuple[dict[Path, list[Path]], list[Note]]:
    """The images that lists name, by list, and what to say about them; those that are not there are among them.

    Args:
        base: the folder of the data set.
        folder: of the images, where they lie elsewhere.
    """
    hits: list[tuple[Path, str, tuple[Path, bool] | None]] = []
    files = list(files)
    for file in dict.fromkeys(files):
        for name in filter(None, map(str.strip, _lines_of(file))):
            hit = None if folder is None else _resolve(name, folder, folder)
            own = _resolve(name, file.parent, base) if hit is None else None
            hits.append((file, name, own if own is not None and (folder is None or not own[1]) else hit))
    lost = disputed((name, str(hit[0]), hit[1]) for _, name, hit in hits if hit is not None)
    found: dict[Path, list[Path]] = {file: [] for file in files}
    guesses = {}
    for file, name, hit in hits:
        if hit is None or name in lost:
            found[file].append((folder or file.parent) / name.replace("\\", "/"))
            continue
        found[file].append(hit[0])
        if hit[1]:
            guesses[name] = os.path.relpath(hit[0], folder or base)
    return found, guessed(guesses)


def _resolve(entry: str, base: Path, beside: Path) -> tuple[Path, bool] | None:
    """The folder or file that a split or a line names, and whether it is a guess by the end of the name.

    Roboflow writes `../train/images` for what lies beside its data.yaml.
    """
    name = entry.strip().replace("\\", "/")
    inner = re.sub(r"^(\.\./)+", "", name)
    candidates = [beside / inner] if inner != name else []
    candidates += [base / name, beside / name]
    for own in (f"{os.path.basename(os.path.abspath(beside))}/", _DARKNETS):
        candidates += [beside / name.removeprefix(own)] if name.startswith(own) else []
    # Not `Path.exists`, which raises for a name that is too long.
    found = next((path for path in candidates if os.path.exists(path)), None)
    if found is not None:
        return found, False
    ends = (beside / end for end in ends_of(name, str(beside))[0])
    return next(((path, True) for path in ends if os.path.exists(path)), None)
