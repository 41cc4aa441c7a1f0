"""Read a YOLO data set into the normal form."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cskd_data.dataset import GIVE_IMAGES, Dataset, Note, together
from cskd_data.errors import DataError, ImageFault, NoImages, refuse
from cskd_data.folders import check_folder
from cskd_data.image_files import common_folder
from cskd_data.images import SUFFIXES, image_size
from cskd_data.names import counted
from cskd_data.normalise import normalise
from cskd_data.split import meant, no_such_split, without_images
from cskd_data.yolo_kinds import LongRows, kind_of
from cskd_data.yolo_labels import Labels
from cskd_data.yolo_layout import Layout, layout_of, names_file

_MOST_BYTES = 1 << 22  # of a label file
_OVER = 0.01  # how far a fraction may leave 0 to 1 by rounding, or by a box over the edge
_TEXT_ONLY = "(`class x y width height` in fractions of the image, or `class` and the points of a polygon)"

_Row = tuple[int, tuple[float, float, float, float], float | None]


def read_yolo(
    path: Path | str,
    images: Path | str | None = None,
    split: str | None = None,
    *,
    skip_missing: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """The data set of a YOLO folder or `data.yaml`, as Ultralytics, Roboflow, Label Studio and CVAT write them.

    File names start from the folder that holds the images of all splits, so that the splits share it.

    A row `class x y width height` in fractions of the image (its centre and size) becomes a box in pixels; the points
    of a segmentation or of a turned box become the box around them. An image without a label file, or with an empty
    one, has no objects. A sixth number is a detector's score where the numbers are such: the boxes are pseudo-labels.

    Args:
        path: the folder, or its YAML file. Without one, `classes.txt` names the classes, and `obj.data` or `train.txt`
            the images of the splits.
        images: folder of the images, where they are not where `path` says; matched with the label files by name.
        split: `train`, `val` or `test`; None takes all together.
        skip_missing: leave images out whose file is not there, or whose size cannot be read, with a note.
        progress: called with (images done, images in all).

    Raises:
        DataError: the first few faults, their count and the way out: nothing names the classes, rows that are none
            (file and line are named), class numbers without a name, images missing.
    """
    path = Path(path)
    elsewhere = None if images is None else check_folder(Path(images), path)
    layout = layout_of(path, elsewhere)
    chosen = _chosen(layout, split, path)
    root = path.parent if path.is_file() else path
    every = list(dict.fromkeys(image for part in layout.all_splits.values() for image in part))
    lists = [file for files in layout.lists.values() for file in files]
    labels = Labels(root, every, elsewhere, [*lists, *filter(None, [names_file(root)])])
    faults, entries, annotations, rows = [], [], [], _Rows(layout)
    folder = common_folder(every, root)
    folder = folder if folder.is_dir() else elsewhere or root  # where no image is there
    used: list[Path] = []
    unclear: dict[str, None] = {}
    for number, image in enumerate(chosen, start=1):
        entry = {"id": number, "file_name": os.path.relpath(os.path.abspath(image), folder)}
        size = None
        try:
            size = image_size(image)
            entry |= {"width": size[0], "height": size[1]}
        except ImageFault:
            pass  # normalise says so, or leaves the image out
        entries.append(entry)
        found: list[_Row] = []
        try:
            label = labels.of(image)
            used += [] if label is None else [label]
        except DataError as error:
            unclear[str(error)], label = None, None
        try:
            found = [] if label is None else rows.read(label)
        except DataError as error:
            faults.append(str(error))
        annotations += [{"image_id": number, **one} for one in _in_pixels(found, size or (1, 1))]
        if progress is not None:
            progress(number, len(chosen))
    refuse(path, list(unclear), "Give each label file the folders of its image, from `labels` on")
    if not used and any(map(os.path.isfile, chosen)):
        raise DataError(
            f"no label file of {counted(len(chosen), 'image')} of {path} was found: expected labels/NAME.txt where "
            "images/NAME.jpg is, or NAME.txt beside the image"
        )
    refuse(path, [*faults, *rows.faults, *rows.long.faults()], f"Correct these rows {_TEXT_ONLY}, or take them out")
    if not rows.are_scores:
        for one in annotations:
            one.pop("score", None)
    raw = {
        "images": entries,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(layout.classes, start=1)],
    }
    notes = [*layout.notes, *rows.notes(), *labels.notes()]
    alone = labels.without_image(used)
    if alone:
        names = [os.path.relpath(label, root) for label in alone]
        notes.append(Note.of(f"{counted(len(alone), 'label file')} without an image, not used", names))
    if split is None:
        notes += together([name for name, found in layout.images.items() if found])
        empty = [name for name, found in layout.images.items() if name and not found]
        notes += without_images(empty)
    if split is None and layout.unnamed:
        what = "that data.yaml does not name, read only when asked for"
        notes.append(Note.of(f"{counted(len(layout.unnamed), 'split')} {what}", list(layout.unnamed)))
    return normalise(raw, path, folder, notes, skip_missing=skip_missing, searched=True)


def _chosen(layout: Layout, split: str | None, path: Path) -> list[Path]:
    """The images to read, each once."""
    if split is None:
        chosen = list(dict.fromkeys(image for images in layout.images.values() for image in images))
    else:
        splits = layout.all_splits
        name = meant(split, splits)
        if name is None:
            raise no_such_split(path, split, splits)
        chosen = splits[name]
    if not chosen and split is not None:
        raise NoImages(
            f"the split {split} of {path} has no image ({', '.join(SUFFIXES)}): copy its images there, or take it out "
            "of what names it"
        )
    if not chosen:
        raise DataError(f"{path} has no image ({', '.join(SUFFIXES)}): {GIVE_IMAGES}")
    return chosen


@dataclass
class _Rows:
    """Reads label files, and keeps count of what is odd in them."""

    layout: Layout
    faults: list[str] = field(default_factory=list)
    polygons: list[str] = field(default_factory=list)
    scored: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    long: LongRows = field(default_factory=LongRows)

    def read(self, label: Path) -> list[_Row]:
        """Class, box (left, top, width, height in fractions) and sixth number of each row.

        Raises:
            DataError: the file cannot be read.
        """
        found: dict[tuple[Any, ...], _Row] = {}
        for number, line in enumerate(_lines(label), start=1):
            words = line.split()
            if not words:
                continue
            where = f"{label}, line {number}"
            values = [_number(word) for word in words]
            fault = self._fault(values, words)
            if fault:
                self.faults.append(f"{where}: {fault}")
                continue
            key = tuple(values)
            if key in found:
                self.repeated.append(where)
                continue
            if len(values) > 6 and not self.layout.keypoints:
                self.long.add(values, where)
            sixth = values[5] if len(values) == 6 and not self.layout.keypoints else None
            if sixth is not None:
                self.scored.append(where)
                self.scores.append(sixth)
            found[key] = int(values[0]), self._box(values[1:], where), sixth
        return list(found.values())

    @property
    def are_scores(self) -> bool:
        """Whether the sixth numbers are a detector's scores: from 0 to 1, and not flags or the numbers of tracks."""
        return all(0 <= one <= 1 for one in self.scores) and any(one not in (0, 1) for one in self.scores)

    def notes(self) -> list[Note]:
        """What is odd, and was read."""
        kinds = (
            (self.polygons, "row", "of points read as the box around them"),
            (
                self.scored,
                "row",
                "with a sixth number, " + ("a score: a detector found them" if self.are_scores else "not used"),
            ),
            (self.repeated, "row", "that are written twice, taken once"),
        )
        return [Note.of(f"{counted(len(found), noun)} {what}", found) for found, noun, what in kinds if found]

    def _fault(self, values: Sequence[float], words: Sequence[str]) -> str:
        classes = self.layout.classes
        shown = " ".join(words)[:60]
        if any(map(math.isnan, values)):
            return f"{shown!r} holds what is no number"
        if len(values) not in (5, 6) and not self.layout.keypoints and (len(values) < 7 or len(values) % 2 == 0):
            what = f"{counted(len(values), 'number')} in {shown!r}, expected 5, or the points of a polygon"
            return self._other(values, shown) or what
        if len(values) < 5:
            return f"{counted(len(values), 'number')} in {shown!r}, expected 5 or more"
        if values[0] != int(values[0]) or not 0 <= values[0] < len(classes):
            return f"class {words[0][:20]} has no name: the classes are 0 to {len(classes) - 1}"
        fractions = values[1:5] if len(values) == 6 or self.layout.keypoints else values[1:]
        if any(not -_OVER <= value <= 1 + _OVER for value in fractions):
            what = f"{shown!r} leaves the image: expected fractions of its width and height, from 0 to 1"
            return self._other(values, shown) or what
        return ""

    def _other(self, values: Sequence[float], shown: str) -> str:
        """What a row is that can be no polygon, where that is likely."""
        kind, likely = kind_of(values)
        return f"{shown!r} {kind}" if likely and not self.layout.keypoints else ""

    def _box(self, values: Sequence[float], where: str) -> tuple[float, float, float, float]:
        if len(values) <= 5 or self.layout.keypoints:
            x, y, width, height = values[:4]
            return x - width / 2, y - height / 2, width, height
        self.polygons.append(where)
        xs, ys = values[0::2], values[1::2]
        return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def _in_pixels(found: Sequence[_Row], size: tuple[int, int]) -> list[dict[str, Any]]:
    width, height = size
    return [
        {"category_id": label + 1, "bbox": [x * width, y * height, w * width, h * height]}
        | ({} if sixth is None else {"score": sixth})
        for label, (x, y, w, h), sixth in found
    ]


def _lines(label: Path) -> list[str]:
    try:
        with label.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise DataError(f"{label} cannot be read: {error.strerror}") from error
    if len(content) > _MOST_BYTES:
        raise DataError(f"{label} is larger than {_MOST_BYTES >> 20} MiB, expected the objects of one image")
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    return content.decode(encoding, errors="replace").splitlines()


def _number(word: str) -> float:
    """Not a number where it is none, or too large for one."""
    try:
        value = float(word)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
