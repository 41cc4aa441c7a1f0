"""The splits of a project, from one data set or several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cskd_data.check import check
from cskd_data.dataset import Dataset
from cskd_data.errors import DataError
from cskd_data.formats import format_of, read_filled, reader_of, splits_of
from cskd_data.merge import same_classes
from cskd_data.split import PARTS, split
from cskd_data.together import check_together
from cskd_data.unlabelled import read_unlabelled
from cskd_train.errors import TrainError
from cskd_train.mm.data_sources import Source, sources

Progress = Callable[[str, int, int], None]
"""Called with what is done, how much of it is done, and how much there is."""

VAL, TEST = 0.15, 0.15
"""Shares of the images where one data set is cut in three."""


def read_splits(
    paths: Sequence[Path], images: Path | None, progress: Progress
) -> tuple[dict[str, Dataset], str, list[str]]:
    """The data sets for training, validation and, where there is one, test, with the same classes in one order.

    Args:
        paths: one data set, which is cut where it has no splits of its own; or two or three files: training,
            validation, test.
        images: folder that the file names start from.

    Returns:
        split -> data set, a sentence on where they come from, and warnings.

    Raises:
        DataError: a data set that cannot be used, splits of different classes, too few images, a pseudo-labelled file
            to validate or test on.
    """
    if len(paths) > len(PARTS):
        raise DataError(f"{len(paths)} data sets: give one, or those for {', '.join(PARTS)}")
    warnings: list[str] = []
    if len(paths) > 1:
        parts = {name: reader_of(path)(path, images) for name, path in zip(PARTS, paths, strict=False)}
        if all(path.is_dir() and format_of(path) == "voc" for path in paths):
            parts = _of_all_classes(parts)
        how = "the files that were given"
    else:
        parts, how, warnings = _own_splits(paths[0], images)
    for name, part in parts.items():
        if name != "train" or "val" not in parts:
            part.refuse_as_truth()
    parts = dict(zip(parts, same_classes(list(parts.values()), list(parts)), strict=True))
    warnings += _checked(parts, progress)
    if "val" not in parts:
        name = next(iter(parts))
        test = 0.0 if "test" in parts else TEST
        cut = split(parts[name], VAL, test, progress=lambda done, of: progress("comparing pictures", done, of))
        parts = {**parts, **cut.parts}
        warnings += [str(note) for note in cut.notes]
        how = f"{how}, cut: {VAL:.0%} for val{f' and {TEST:.0%} for test' if test else ''}, each class with its share"
    parts = {name: parts[name] for name in PARTS if name in parts}
    if "test" in parts and not parts["test"].annotated:
        del parts["test"]
        warnings.append("the test images have no annotations and are left out")
    if "test" not in parts:
        warnings.append("there are no test images: the test split is the validation split")
    warnings += [str(note) for note in check_together(parts)]
    for name, part in parts.items():
        if not part.countable:
            raise DataError(f"{name}: {part.nothing_counts()}")
    return parts, how, warnings


def read_pictures(path: Path, parts: Mapping[str, Dataset], progress: Progress) -> tuple[Dataset, list[str]]:
    """Pictures without labels, looked at one by one, and warnings: of those that validation or test has too.

    Args:
        parts: the splits.

    Raises:
        DataError: there are none, or one cannot be used.
    """
    pictures = read_unlabelled(path, parts["train"].classes)
    report = check(pictures, progress=lambda done, of: progress("checking images: unlabeled", done, of))
    report.raise_for_errors()
    shared = [
        note
        for name in ("val", "test")
        if name in parts
        for note in check_together({"unlabeled": pictures, name: parts[name]})
    ]
    return pictures, list(map(str, shared))


def _of_all_classes(parts: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """The same parts, each with the classes of all: in a format whose classes are those that are labelled."""
    classes = sorted({name for part in parts.values() for name in part.classes})
    found = {}
    for name, part in parts.items():
        lacked = [one for one in classes if one not in part.classes]
        more = {one: len(part.classes) + number for number, one in enumerate(lacked, start=1)}
        found[name] = replace(part, unused={**part.unused, **more}).select(classes)
    return found


def _own_splits(path: Path, images: Path | None) -> tuple[dict[str, Dataset], str, list[str]]:
    """The splits that a data set says it has, and what to say about them; all of it as `train` where there are none to
    train and validate on."""
    names = splits_of(path, images)
    if {"train", "val"} <= {*names}:
        taken = {name: name for name in PARTS if name in names}
    elif base := next((name for name in ("trainval", "train") if name in names), None):
        taken = {"train": base, **({"test": "test"} if "test" in names else {})}
    else:
        return {"train": reader_of(path)(path, images)}, f"{path}", []
    read = reader_of(path)
    parts, notes = read_filled(taken, lambda name: read(path, images, split=taken[name]), needed=("train",))
    return parts, f"the splits {', '.join(taken[name] for name in parts)} of {path}", list(map(str, notes))


def _checked(parts: dict[str, Dataset], progress: Progress) -> list[str]:
    """Look at every image of every data set; gives the warnings.

    Raises:
        DataError: one cannot be used.
    """
    warnings = []
    for name, part in parts.items():
        report = check(part, progress=lambda done, of, name=name: progress(f"checking images: {name}", done, of))  # type: ignore[misc]
        report.raise_for_errors()
        warnings += [f"{name}: {warning}" for warning in report.warnings]
    return warnings


def test_source(cfg: Any) -> Source:
    """The annotation file of the test split of a config.

    Raises:
        TrainError: there is none, or several.
    """
    found = list(sources(cfg.data.get("test") or ()))
    if len(found) != 1:
        raise TrainError(
            f"dataset.py: data.test has {len(found)} annotation files, and the exported file is evaluated on one: "
            "name one there (without test images, that of data.val)"
        )
    return found[0]


def untaught_labels(pictures: str, classes: Sequence[str], folder: Path) -> Path:
    """Write a file of pictures without labels as if a teacher had found one box on each: a step on it costs as much."""
    dataset = read_unlabelled(pictures, classes)
    boxes = [
        {"id": one["id"], "image_id": one["id"], "category_id": 1, "iscrowd": 0, "score": 1.0}
        | {"bbox": [0, 0, one["width"], one["height"]], "area": one["width"] * one["height"]}
        for one in dataset.images
    ]
    file, found = folder / "unlabeled.json", {**dataset.data, "annotations": boxes}
    replace(dataset, data=found, annotated=True, pseudo_labels={"threshold": 1.0}).to_coco(file)
    return file
