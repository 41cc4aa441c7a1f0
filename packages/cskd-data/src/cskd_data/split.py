"""Cut a data set into training, validation and test images."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cskd_data.dataset import Dataset, Note
from cskd_data.errors import DataError
from cskd_data.files import sha256_of_file
from cskd_data.names import counted

PARTS = ("train", "val", "test")

SPLIT_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""Split -> what data sets call it, in the names of folders, of files, and in YAML."""

SPLIT_CALLED = {name: split for split, names in SPLIT_NAMES.items() for name in names}
"""What data sets call a split -> the split."""


def meant(split: str, there: Iterable[str]) -> str | None:
    """Which of the splits that are there is asked for, `valid` and `validation` being `val`; None where it is none."""
    names = list(there)
    if split in names:
        return split
    return next((name for name in names if SPLIT_CALLED.get(name, name) == SPLIT_CALLED.get(split, split)), None)


def without_training(names: Iterable[str]) -> bool:
    """Whether the splits that a data set names are val or test alone: all that is in neither is for training."""
    splits = {*names}
    return bool(splits) and splits <= {"val", "test"}


def for_training(noun: str, rest: Sequence[str], names: Iterable[str]) -> Note:
    """The note on what is for training because no split has it: see `without_training`."""
    return Note.of(f"{counted(len(rest), noun)} in no split ({', '.join(names)}), for training", rest)


def without_images(names: Sequence[str]) -> list[Note]:
    """The note on splits that are there, and are left out because they have no image; none where there are none."""
    return [Note.of(f"{counted(len(names), 'split')} without images left out", names)] if names else []


def no_such_split(source: object, split: str, there: Iterable[str]) -> DataError:
    """What to raise for a split that a data set has not."""
    return DataError(f"{source} has no split {split!r}; splits: {', '.join(filter(None, there)) or 'none'}")


@dataclass(frozen=True)
class Split:
    """The parts of a data set: every image is in one of them."""

    source: str
    parts: Mapping[str, Dataset]
    seed: int
    notes: tuple[Note, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {
            "source": self.source,
            "seed": self.seed,
            "images": {name: len(part.images) for name, part in self.parts.items()},
            "boxes_per_class": {name: part.boxes_per_class for name, part in self.parts.items()},
            "warnings": [str(note) for note in self.notes],
        }

    def __str__(self) -> str:
        boxes = {name: part.boxes_per_class for name, part in self.parts.items()}
        classes = next(iter(self.parts.values())).classes
        width = max(6, *map(len, classes))
        lines = [f"  {'':<{width}}" + "".join(f"  {name:>12}" for name in boxes)]
        lines.append(f"  {'images':<{width}}" + "".join(f"  {len(part.images):>12}" for part in self.parts.values()))
        for name in classes:
            total = sum(counts[name] for counts in boxes.values())
            cells = (f"{counts[name]} ({counts[name] / max(total, 1):>4.0%})" for counts in boxes.values())
            lines.append(f"  {name:<{width}}" + "".join(f"  {cell:>12}" for cell in cells))
        return "\n".join([f"{self.source} (seed {self.seed})", *lines, *(f"  warning: {note}" for note in self.notes)])


def split(
    dataset: Dataset,
    val: float = 0.2,
    test: float = 0.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Split:
    """Cut a data set so that each class has its share in each part.

    Images that are one file, or files of the same bytes, stay together. Iterative stratification (Sechidis, Tsoumakas,
    Vlahavas 2011): the class with the fewest images left goes first, each of its images to the part that lacks most
    boxes of that class. The same data set and seed give the same parts, in whatever order the images are listed.

    Args:
        val, test: the shares of the images, above 0 (`test` may be 0) and together below 1.
        progress: called with (images looked at, images in all).

    Raises:
        DataError: shares without sense, fewer different images than parts, or an image that cannot be read.
    """
    if not (0 < val < 1 and 0 <= test < 1 and val + test < 1):
        raise DataError(f"val {val:g} and test {test:g}: give shares of the images, above 0 and together below 1")
    shares = {"train": 1 - val - test, "val": val, "test": test} if test else {"train": 1 - val, "val": val}
    groups, twice = _same_pictures(dataset, progress)
    if len(groups) < len(shares):
        raise DataError(
            f"{dataset.source} has {counted(len(groups), 'different image')}, too few for {' and '.join(shares)}"
        )
    random.Random(seed).shuffle(groups)
    sizes = _sizes(len(dataset.images), shares)
    assigned = _stratified(groups, _boxes_in(dataset), sizes)
    _fill(assigned, groups)
    parts = {name: replace(dataset.subset(assigned[name]), notes=(), source=dataset.source) for name in shares}
    notes = [Note.of(f"{counted(len(twice), 'image')} the same as another: in one part", twice)] if twice else []
    for name, part in parts.items():
        boxes = part.boxes_per_class
        absent = [one for one, count in dataset.boxes_per_class.items() if count and not boxes[one]]
        if absent:
            notes.append(Note.of(f"no box in {name} of {counted(len(absent), 'class')}", absent))
    return Split(str(dataset.source), parts, seed, tuple(notes))


def _sizes(images: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Images of each part: at least one, the rest is for training."""
    sizes = {name: max(1, round(images * share)) for name, share in shares.items()}
    sizes["train"] = images - sum(size for name, size in sizes.items() if name != "train")
    while sizes["train"] < 1:  # where the others were rounded up
        sizes[max(sizes, key=lambda name: sizes[name] - images * shares[name] if sizes[name] > 1 else -1)] -= 1
        sizes["train"] += 1
    return sizes


def _fill(assigned: dict[str, set[int]], groups: Sequence[list[int]]) -> None:
    """Give each part without an image a group of the part that has most of them: groups may be larger than a part."""
    for part in assigned.values():
        if not part:
            within = {one: [group for group in groups if group[0] in there] for one, there in assigned.items()}
            giver = max(within, key=lambda one: len(within[one]))
            moved = min(within[giver], key=len)
            assigned[giver] -= {*moved}
            part |= {*moved}


def _same_pictures(dataset: Dataset, progress: Callable[[int, int], None] | None) -> tuple[list[list[int]], list[str]]:
    """Image ids, those of the same picture together, in an order that only the pictures give; the names of repeats."""
    by_size: dict[int, list[dict[str, Any]]] = {}
    for image in dataset.images:
        path = dataset.path(image)
        try:
            by_size.setdefault(path.stat().st_size, []).append(image)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"image {path} cannot be read ({reason}): `cskd-train data check` names all") from error
    groups: dict[str, list[dict[str, Any]]] = {}
    done = 0
    for images in by_size.values():
        for image in images:
            alone = len(images) == 1
            groups.setdefault(_mark(dataset.path(image), image["file_name"], alone), []).append(image)
            done += 1
            if progress is not None:
                progress(done, len(dataset.images))
    named = sorted(sorted((image["file_name"], image["id"]) for image in group) for group in groups.values())
    return [[number for _, number in group] for group in named], [name for group in named for name, _ in group[1:]]


def _mark(path: Path, name: str, alone: bool) -> str:
    """Equal for equal pictures; one that is alone with its number of bytes need not be read."""
    if alone:
        return name
    try:
        return sha256_of_file(path)
    except OSError as error:
        raise DataError(f"image {path} cannot be read ({error.strerror})") from error


def _boxes_in(dataset: Dataset) -> dict[int, Counter[int]]:
    """Image id -> how many boxes of each class are in it."""
    found: dict[int, Counter[int]] = {image["id"]: Counter() for image in dataset.images}
    for one in dataset.annotations:
        found[one["image_id"]][one["category_id"]] += 1
    return found


def _lack(boxes: float, room: int, size: int) -> tuple[float, float]:
    """How much a part lacks for its size: boxes of a class first, images where that is equal."""
    return boxes / size, room / size


def _stratified(
    groups: Sequence[list[int]], boxes: Mapping[int, Counter[int]], sizes: Mapping[str, int]
) -> dict[str, set[int]]:
    """Part -> image ids."""
    total = sum(sizes.values())
    within = [sum((boxes[number] for number in group), Counter()) for group in groups]
    left: dict[int, dict[int, None]] = {}  # class -> groups that have it and are in no part yet, in their order
    for index, found in enumerate(within):
        for one in found:
            left.setdefault(one, {})[index] = None
    overall = sum(within, Counter())
    wanted = {part: {one: count * size / total for one, count in overall.items()} for part, size in sizes.items()}
    room = dict(sizes)
    assigned: dict[str, set[int]] = {part: set() for part in sizes}

    def assign(index: int, first: int | None) -> None:
        size = len(groups[index])
        parts = [part for part in sizes if room[part] >= size] or [max(room, key=lambda part: room[part])]
        part = max(parts, key=lambda part: _lack(wanted[part][first] if first else 0.0, room[part], sizes[part]))
        assigned[part].update(groups[index])
        room[part] -= size
        for one, count in within[index].items():
            wanted[part][one] -= count
            del left[one][index]

    while any(left.values()):
        rarest = min((one for one in left if left[one]), key=lambda one: (len(left[one]), one))
        for index in sorted(left[rarest], key=lambda index: -within[index][rarest]):  # the many first, as in packing
            assign(index, rarest)
    for index, found in enumerate(within):
        if not found:
            assign(index, None)
    return assigned
