"""The normal form of a detection data set: one COCO dict in memory, whatever the files were."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cskd_data.errors import SHOWN, DataError
from cskd_data.ids import Key
from cskd_data.names import counted, plain_name

if TYPE_CHECKING:
    from cskd_data.check import Report


_MOST_EXAMPLES = 100
IMAGE_ROOT = "image_root"
"""The key in the `info` of a COCO file that `Dataset.to_coco` has written."""
PSEUDO_LABELLED = "pseudo_labelled"
"""The key in the `info` of a COCO file whose boxes a detector has found: which one, and from which score on."""
NO_CLASS = "the root of the categories has no boxes and is no class"
"""The note on a category that is in `Dataset.unused`."""
GIVE_IMAGES = "give the folder of the images (`--images FOLDER`; `img_prefix` in a config)"


@dataclass(frozen=True)
class Note:
    """Something that changes the meaning of a data set or could surprise; said once, with its count."""

    message: str
    count: int = 1
    examples: tuple[str, ...] = ()  # the first hundred

    @classmethod
    def of(cls, message: str, entries: Sequence[str]) -> Note:
        """A note on these entries; `message` begins with their count."""
        return cls(message, len(entries), tuple(entries[:_MOST_EXAMPLES]))

    def __str__(self) -> str:
        if not self.examples:
            return self.message
        more = ", ..." if self.count > SHOWN else ""
        return f"{self.message}: {', '.join(self.examples[:SHOWN])}{more}"


def together(splits: Sequence[str]) -> list[Note]:
    """What to say of a data set that is read as a whole, although it has splits."""
    if len(splits) < 2:
        return []
    return [Note.of(f"{len(splits)} splits read as one (the folder or list of a split names it alone)", splits)]


@dataclass(frozen=True)
class Dataset:
    """Images with boxes and classes, as every part of CSKD reads them.

    `data` is COCO: `images` (id, file_name, width, height), `annotations` (id, image_id, category_id, bbox as x, y,
    width, height in pixels, area, iscrowd) and `categories` (id, name). Ids are integers from 1; category `i + 1` is
    label `i`, the class `classes[i]`. The ids of the user's own file are in `image_keys` and `category_keys`, and
    results are written with those. No box is degenerate: each has some area inside its image. Not to be changed.
    """

    data: dict[str, list[dict[str, Any]]]
    source: Path
    image_root: Path | None  # file names start here; None: no folder was given, and no image found
    image_keys: Mapping[int, Key]
    category_keys: Mapping[int, Key]
    notes: tuple[Note, ...] = ()
    annotated: bool = True  # False: the source holds images only, as a test set does
    unused: Mapping[str, Key] = field(default_factory=dict)  # categories that are no classes: name -> the user's id
    roots: frozenset[str] = frozenset()  # those of `unused` that are classes where another file has boxes of them
    left_out: Mapping[Key, str] = field(default_factory=dict)  # images of the source: the user's id -> what is wrong
    pseudo_labels: Mapping[str, Any] | None = None  # of boxes that a detector found: what the file says about them

    @property
    def images(self) -> list[dict[str, Any]]:
        return self.data["images"]

    @property
    def annotations(self) -> list[dict[str, Any]]:
        return self.data["annotations"]

    @property
    def classes(self) -> tuple[str, ...]:
        """The class of each label, in the order of the user's file."""
        return tuple(category["name"] for category in self.data["categories"])

    @property
    def boxes_per_class(self) -> dict[str, int]:
        """How many boxes there are of each class, crowds among them, in the order of the labels."""
        counts = Counter(one["category_id"] for one in self.annotations)
        return {name: counts[number] for number, name in enumerate(self.classes, start=1)}

    @property
    def countable(self) -> int:
        """How many boxes are learnt and counted: those that are no crowds."""
        return sum(not one["iscrowd"] for one in self.annotations)

    def nothing_counts(self) -> str:
        """Why there is nothing to learn or to find, where `countable` is 0."""
        if not self.annotated:
            return f"{self.source} holds no annotations: detecting on it works, training and scoring do not"
        if self.annotations:
            return (
                f"all {len(self.annotations)} boxes of {self.source} are crowds (iscrowd 1), which are neither learnt "
                "nor counted: there is nothing to learn or to find. Write iscrowd 0 for single objects"
            )
        return f"{self.source} has no box of the classes {_listed(self.classes)}: there is nothing to learn or to find"

    def refuse_as_truth(self) -> None:
        """Refuse to measure a detector by pseudo-labels; training may take them.

        Raises:
            DataError: the boxes are a detector's.
        """
        if self.pseudo_labels is not None:
            raise DataError(
                f"{self.source} is pseudo-labelled: a detector found its boxes, and scores on them would say how alike "
                "two detectors are. Validate and test on boxes drawn by people; to train on these, name the file in "
                "data.unlabeled"
            )

    def path(self, image: Mapping[str, Any]) -> Path:
        """The file of an entry of `images`.

        Raises:
            DataError: there is no image folder.
        """
        if self.image_root is None:
            raise DataError(f"no image of {self.source} was found beside it: {GIVE_IMAGES}")
        return self.image_root / image["file_name"]

    def select(self, classes: Sequence[str]) -> Dataset:
        """The same images with these classes only, in this order: classes are matched by name.

        Raises:
            DataError: the data set lacks one of them; both lists are in the message.
        """
        wanted = [plain_name(name) for name in classes]
        if wanted == list(self.classes):
            return self
        ids = {category["name"]: category["id"] for category in self.data["categories"]}
        missing = [name for name in wanted if name not in ids and name not in self.unused]
        if missing or len(set(wanted)) < len(wanted):
            what = f"has no class {_listed(missing)}" if missing else "was asked for a class twice"
            raise DataError(
                f"{self.source} {what}.\n  classes asked for: {_listed(wanted)}\n  its own classes: "
                f"{_listed(self.classes)}\nGive its own names as the classes, or another data set"
            )
        new_ids = {ids[name]: number for number, name in enumerate(wanted, start=1) if name in ids}
        annotations = [
            {**annotation, "category_id": new_ids[annotation["category_id"]]}
            for annotation in self.annotations
            if annotation["category_id"] in new_ids
        ]
        entries = {category["name"]: category for category in self.data["categories"]}
        keys = {name: self.category_keys[number] for name, number in ids.items()}
        notes = tuple(one for one in self.notes if one.message != NO_CLASS or not {*one.examples} & {*wanted})
        rest = [name for name in self.classes if name not in wanted]
        if rest:
            left = len(self.annotations) - len(annotations)
            notes += (Note.of(f"{counted(len(rest), 'class')} not used, with {counted(left, 'box')}", rest),)
        return replace(
            self,
            data={
                "images": self.images,
                "annotations": annotations,
                "categories": [
                    {**entries.get(name, {}), "id": number, "name": name} for number, name in enumerate(wanted, start=1)
                ],
            },
            category_keys={
                number: keys[name] if name in keys else self.unused[name] for number, name in enumerate(wanted, start=1)
            },
            notes=notes,
            unused={
                **{name: key for name, key in self.unused.items() if name not in wanted},
                **{name: keys[name] for name in rest},
            },
            roots=self.roots - {*wanted},
        )

    def subset(self, image_ids: Iterable[int]) -> Dataset:
        """The same classes with these images (their integer ids) and their boxes only; what was left out before is
        forgotten."""
        kept = set(image_ids)
        return replace(
            self,
            data={
                **self.data,
                "images": [image for image in self.images if image["id"] in kept],
                "annotations": [one for one in self.annotations if one["image_id"] in kept],
            },
            image_keys={number: key for number, key in self.image_keys.items() if number in kept},
            left_out={},
        )

    def without(self, faults: Mapping[Key, str]) -> Dataset:
        """The same but for images that cannot be used, with a note.

        Args:
            faults: the user's id of an image -> what is wrong with it, as `image NAME FAULT`.

        Raises:
            DataError: no image is left.
        """
        gone = {number for number, key in self.image_keys.items() if key in faults}
        if not gone:
            return self
        kept = self.subset(self.image_keys.keys() - gone)
        named = [faults[self.image_keys[image["id"]]] for image in self.images if image["id"] in gone]
        if not kept.images:
            raise DataError(f"no image of {self.source} can be used, such as: {named[0]}")
        what = f"{len(named)} of {counted(len(self.images), 'image')} left out, with their boxes"
        left_out = {**self.left_out, **{self.image_keys[number]: faults[self.image_keys[number]] for number in gone}}
        return replace(kept, left_out=left_out, notes=(*self.notes, Note.of(what, named)))

    def check(self, *, decode: bool = False, progress: Callable[[int, int], None] | None = None) -> Report:
        """Look at every image file and all that could stop or spoil a run; see `cskd_data.check.check`."""
        from cskd_data.check import check

        return check(self, decode=decode, progress=progress)

    def to_coco(self, path: Path | str) -> None:
        """Write the normal form as a COCO file, with the user's own image and category ids.

        File names start from `image_root`, as other tools expect; where that is, seen from the file, stands in its
        `info`, and `read` goes by it. Pseudo-labels stay marked as such there.

        Raises:
            DataError: the file cannot be written.
        """
        from cskd_data.files import write_atomically

        info: dict[str, Any] = {}
        if self.image_root is not None:
            info[IMAGE_ROOT] = _way(Path(path).parent, self.image_root)
        if self.pseudo_labels is not None:
            info[PSEUDO_LABELLED] = dict(self.pseudo_labels)
        content = json.dumps({**({"info": info} if info else {}), **self.with_keys()}).encode()
        write_atomically(Path(path), lambda file: file.write(content))

    def with_keys(self) -> dict[str, list[dict[str, Any]]]:
        """`data` with the user's own image and category ids. Without `annotations` where the source has none."""
        images, categories = self.image_keys, self.category_keys
        data = {
            "images": [{**one, "id": images[one["id"]]} for one in self.images],
            "annotations": [
                {**one, "image_id": images[one["image_id"]], "category_id": categories[one["category_id"]]}
                for one in self.annotations
            ],
            "categories": [{**one, "id": categories[one["id"]]} for one in self.data["categories"]],
        }
        if not self.annotated and not data["annotations"]:
            del data["annotations"]
        return data

    def split(self, *args: Any, **kwargs: Any) -> Any:
        """Cut into parts; see `cskd_data.split.split`."""
        from cskd_data.split import split

        return split(self, *args, **kwargs)


def _way(start: Path, folder: Path) -> str:
    """A folder's path from another one; symbolic links are followed first, as the system follows them before `..`."""
    return os.path.relpath(os.path.realpath(folder), os.path.realpath(start))


def _listed(names: Sequence[str], limit: int = 20) -> str:
    """`'a', 'b'`, cut at `limit` names."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(map(repr, names[:limit])) or "none") + more
