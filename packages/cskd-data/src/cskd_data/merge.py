"""Several data sets of the same classes as one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from cskd_data.dataset import Dataset, Note
from cskd_data.errors import DataError
from cskd_data.ids import Key
from cskd_data.image_files import common_folder


def merge(datasets: Sequence[Dataset]) -> Dataset:
    """The images of all, one data set after the other. One alone is given back as it is.

    File names start from the folder that holds all images. The user's ids of images stay where no other data set has
    them too; else the annotation file's name is put before them, with a note. Categories keep the ids and the order of
    the first.

    Raises:
        DataError: their classes are not the same (`same_classes`); the images of one were not found.
    """
    if len(datasets) == 1:
        return datasets[0]
    datasets = same_classes(datasets, [str(dataset.source) for dataset in datasets])
    first = datasets[0]
    root = common_folder((dataset.path(image) for dataset in datasets for image in dataset.images), Path(os.sep))
    uses = Counter(key for dataset in datasets for key in (*dataset.image_keys.values(), *dataset.left_out))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    keys: dict[int, Key] = {}
    left_out: dict[Key, str] = {}
    renamed = []
    for dataset, name in zip(datasets, _names(datasets), strict=True):
        start = len(images)
        for image in dataset.images:
            key = dataset.image_keys[image["id"]]
            if uses[key] > 1:
                key = f"{name}/{key}"
                renamed.append(key)
            path = os.path.relpath(os.path.abspath(dataset.path(image)), root)
            images.append({**image, "id": start + image["id"], "file_name": path})
            keys[start + image["id"]] = key
        left_out |= {f"{name}/{key}" if uses[key] > 1 else key: fault for key, fault in dataset.left_out.items()}
        for one in dataset.annotations:
            annotations.append({**one, "id": len(annotations) + 1, "image_id": start + one["image_id"]})
    notes = [note for dataset in datasets for note in dataset.notes]
    if renamed:
        notes.append(Note.of("image ids that several files have are written with the file's name before them", renamed))
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
