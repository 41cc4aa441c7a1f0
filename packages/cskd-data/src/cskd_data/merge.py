"""Several data sets of the same classes as one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from cskd_data.dataset import Dataset, Note
from cskd_data.errors import DataError
from cskd_data.ids import Key
from cskd_data.image_files import common_folder
from cskd_data.names import counted


def merge(datasets: Sequence[Dataset]) -> Dataset:
    """The images of all, one data set after the other. One alone is given back as it is.

    An image that several have, in one size, is one with the boxes of all, each box once, with a note. File names start
    from the folder that holds all images. The user's ids of images stay where no other image has them too; else the
    annotation file's name is put before them, with a note. Categories keep the ids and the order of the first.

    Raises:
        DataError: their classes are not the same (`same_classes`); the images of one were not found.
    """
    if len(datasets) == 1:
        return datasets[0]
    datasets = same_classes(datasets, [str(dataset.source) for dataset in datasets])
    first = datasets[0]
    paths = [_files(dataset) for dataset in datasets]
    root = common_folder((Path(path) for own in paths for path in own.values()), Path(os.sep))
    owners: dict[Key, set[object]] = {}
    for dataset, own in zip(datasets, paths, strict=True):
        for number, key in dataset.image_keys.items():
            owners.setdefault(key, set()).add(own[number])
        for key, fault in dataset.left_out.items():
            owners.setdefault(key, set()).add((dataset.image_root, fault))
    images: list[dict[str, Any]] = []
    keys: dict[int, Key] = {}
    annotations: list[dict[str, Any]] = []
    left_out: dict[Key, str] = {}
    there: dict[tuple[str, int, int], int] = {}  # file and size -> id of its image
    renamed = []
    both = _shared(paths)
    shared: dict[int, str] = {}
    seen: set[tuple[Any, ...]] = set()
    repeated = 0
    for dataset, own, name in zip(datasets, paths, _names(datasets), strict=True):
        numbers: dict[int, int] = {}
        before = dict(there) if both else {}
        for image in dataset.images:
            path = own[image["id"]]
            sized = path, image["width"], image["height"]
            if sized in before:
                numbers[image["id"]] = before[sized]
                shared[before[sized]] = images[before[sized] - 1]["file_name"]
                continue
            key = dataset.image_keys[image["id"]]
            if len(owners[key]) > 1:
                renamed.append(key := f"{name}/{key}")
            numbers[image["id"]] = there[sized] = len(images) + 1
            keys[len(images) + 1] = key
            images.append({**image, "id": len(images) + 1, "file_name": os.path.relpath(path, root)})
        left_out |= {f"{name}/{key}" if len(owners[key]) > 1 else key: fault for key, fault in dataset.left_out.items()}
        fresh = set()
        for one in dataset.annotations:
            number = numbers[one["image_id"]]
            if own[one["image_id"]] in both:
                box = (number, one["category_id"], one["iscrowd"], *one["bbox"])
                if box in seen:
                    repeated += 1
                    continue
                fresh.add(box)
            annotations.append({**one, "id": len(annotations) + 1, "image_id": number})
        seen |= fresh
    notes = [note for dataset in datasets for note in dataset.notes]
    if renamed:
        notes.append(Note.of("image ids that several files have are written with the file's name before them", renamed))
    if shared:
        once = f", {counted(repeated, 'box')} that stand there again once" if repeated else ""
        what = f"{counted(len(shared), 'image')} in several files, read as one with the boxes of all{once}"
        notes.append(Note.of(what, list(shared.values())))
    return replace(
        first,
        data={**first.data, "images": images, "annotations": annotations},
        image_root=root,
        image_keys=keys,
        notes=tuple(notes),
        annotated=any(dataset.annotated for dataset in datasets),
        left_out=left_out,
        pseudo_labels=next((one.pseudo_labels for one in datasets if one.pseudo_labels is not None), None),
    )


def in_several(datasets: Sequence[Dataset]) -> list[str]:
    """The files of the images that several data sets have, by name.

    Raises:
        DataError: the images of one were not found.
    """
    return sorted(_shared([_files(dataset) for dataset in datasets]))


def _shared(files: Iterable[Mapping[int, str]]) -> set[str]:
    """Those that two have."""
    uses = Counter(file for own in files for file in {*own.values()})
    return {file for file, count in uses.items() if count > 1}


def _files(dataset: Dataset) -> dict[int, str]:
    """The file of each image, by its id."""
    return {image["id"]: os.path.abspath(dataset.path(image)) for image in dataset.images}


def same_classes(
    datasets: Sequence[Dataset], names: Sequence[str], way_out: str = "Give both the same class names"
) -> list[Dataset]:
    """Data sets that belong together with the same classes in one order: that of the first that has most of them.

    The root of the categories, which is no class where it has no boxes (`Dataset.roots`), is one in all where it has
    some in one.

    Args:
        names: of the data sets, for the message.

    Raises:
        DataError: two have other classes; both lists are in the message. Another order of the same is no fault.
    """
    for (one, first), (other, second) in combinations(zip(names, datasets, strict=True), 2):
        if any({*a.classes} - {*b.classes} - b.roots for a, b in ((first, second), (second, first))):
            raise DataError(
                f"{one} and {other} have different classes.\n  {one}: {', '.join(first.classes)}\n  {other}: "
                f"{', '.join(second.classes)}\n{way_out}"
            )
    most = max(datasets, key=lambda dataset: len(dataset.classes)).classes
    classes = dict.fromkeys([*most, *(name for dataset in datasets for name in dataset.classes)])
    return [dataset.select(list(classes)) for dataset in datasets]


def _names(datasets: Sequence[Dataset]) -> list[str]:
    """A name of each by its file, numbered where two have the same."""
    stems = [dataset.source.stem for dataset in datasets]
    return [
        stem if stems.count(stem) == 1 else f"{stem}-{stems[: index + 1].count(stem)}"
        for index, stem in enumerate(stems)
    ]
