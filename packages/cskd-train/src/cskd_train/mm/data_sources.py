"""The annotation files that a dataset config names, each read once, and its classes."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdet.datasets import DATASETS, CocoDataset

import cskd_data
from cskd_data.clean import usable
from cskd_data.folders import walk
from cskd_data.formats import format_of, split_of
from cskd_data.ids import Key
from cskd_data.names import plain_name
from cskd_train.errors import TrainError
from cskd_train.files.checkpoints import sha256
from cskd_train.files.class_names import names_of_text

Files = tuple[str, str | None, Any]  # annotation file, image folder, and a mark of their state

_LABELS = (".json", ".txt", ".xml", ".yaml", ".yml", ".data", ".names")

WRAPPERS = ("ConcatDataset", "RepeatDataset", "ClassBalancedDataset", "MultiImageMixDataset")


@dataclass(frozen=True)
class Source:
    """One annotation file of a dataset config, or one folder of another format."""

    ann_file: str
    images: str | None  # folder; None looks for it beside the file
    classes: tuple[str, ...]
    skip_broken: bool = False  # leave out images that cannot be used

    def read(self, classes: Sequence[str] = ()) -> cskd_data.Dataset:
        """The data set of the file, with the source's classes, in the order of `classes` if they are given.

        Raises:
            TrainError: `classes` are other ones; both lists are in the message.
            DataError: as `cskd_data.read`; the file lacks one of the classes; none of its images can be used.
        """
        own = [plain_name(name) for name in self.classes]
        wanted = [plain_name(name) for name in classes] or own
        if sorted(own) != sorted(wanted):
            raise TrainError(
                f"the config's classes for {self.ann_file} are {', '.join(own)}, expected those of the model and of "
                f"the training data: {', '.join(wanted)}. Give data.train, data.val and data.test the same `classes`"
            )
        return _read(self.files, tuple(wanted), self.skip_broken)

    def sha256(self, classes: Sequence[str] = ()) -> str:
        """Equal for equal annotations, wherever they lie: of a COCO file its SHA-256, of a folder what is read there.

        Raises:
            TrainError, DataError: as `read`.
        """
        if _is_coco(self.ann_file):
            return sha256(self.ann_file)
        data = self.read(classes).data
        digest = hashlib.sha256(repr([category["name"] for category in data["categories"]]).encode())
        for one in data["images"]:
            name = os.path.basename(one["file_name"]) if os.path.isabs(one["file_name"]) else one["file_name"]
            digest.update(f"{one['id']} {name!r} {one['width']} {one['height']}\n".encode())
        for one in data["annotations"]:
            digest.update(f"{one['image_id']} {one['category_id']} {one['bbox']} {one['iscrowd']}\n".encode())
        return digest.hexdigest()

    @property
    def label_files(self) -> list[Path]:
        """The annotation file, or all files of labels in the data set's folder."""
        return _label_files(Path(self.ann_file))

    def left_out(self) -> Mapping[Key, str]:
        """The images that are left out as broken: the user's id -> what is wrong."""
        return self.read().left_out

    def leave_out(self, faults: Mapping[Key, str]) -> None:
        """From here on `read` leaves out these images, and decides nothing of its own."""
        if _broken.get(self.files) != faults:
            _broken[self.files] = faults
            _read.cache_clear()

    @property
    def files(self) -> Files:
        """What is read, and a mark of its state."""
        images = self.images and os.path.abspath(self.images)  # mmdet joins relative ones to data_root, once more
        return self.ann_file, images, _stamp(Path(self.ann_file))


def _label_files(path: Path) -> list[Path]:
    """A COCO file, or all files of labels in the folder of another data set."""
    if _is_coco(str(path)):
        return [path]
    part = split_of(path)
    root = part[0] if part is not None else path if path.is_dir() else path.parent
    return [file for file in walk(root) if file.suffix.lower() in _LABELS]


def _stamp(path: Path) -> Any:
    """Changes when annotations do: the latest time and the sizes of all `_label_files`."""
    try:
        states = [os.stat(file) for file in _label_files(path)]
    except OSError:
        return None
    return len(states), max((one.st_mtime_ns for one in states), default=0), sum(one.st_size for one in states)


_broken: dict[Files, Mapping[Key, str]] = {}
"""What is left out of each source: decided once in a process, or by all processes of a run together."""


@functools.lru_cache(maxsize=4)  # a large file takes a minute: the check and what is built after it share one reading
def _read(files: Files, classes: tuple[str, ...], skip_broken: bool) -> cskd_data.Dataset:
    ann_file, images, _ = files
    if not skip_broken:
        return cskd_data.read(ann_file, images).select(classes)
    dataset = cskd_data.read(ann_file, images, skip_missing=True)
    if files not in _broken:
        found = usable(dataset, use_memory=True).dataset
        _broken[files] = found.left_out
    else:
        found = dataset.without(_broken[files])
    return found.select(classes)


def sources(cfg: Any, skip_broken: bool = False) -> Iterator[Source]:
    """The annotation files of a dataset config, inside mmdet's wrappers and lists too.

    Args:
        skip_broken: leave out images that cannot be used.

    Raises:
        TrainError: a dataset type that is not supported; as `classes_of`; `skip_broken` in the config of one dataset.
    """
    if isinstance(cfg, (list, tuple)):
        for member in cfg:
            yield from sources(member, skip_broken)
        return
    if "skip_broken" in cfg:
        raise TrainError("skip_broken stands in the config's `data`, for all splits alike: data.skip_broken=True")
    if cfg.get("type") in WRAPPERS:
        yield from sources(cfg.get("dataset") or cfg.get("datasets") or (), skip_broken)
    elif cfg.get("type") not in ("CocoDataset", CocoDataset):
        raise TrainError(
            f"dataset type {cfg.get('type')!r} is not supported: give type='CocoDataset', or "
            f"{', '.join(WRAPPERS)} around it; its ann_file may be a COCO file, a folder of COCO, VOC or YOLO, or one "
            "split (a list in VOC's ImageSets/Main, the folder that holds it alone)"
        )
    else:
        files, prefixes = cfg.get("ann_file") or "", cfg.get("img_prefix", "")
        several = isinstance(files, (list, tuple))
        for index, ann_file in enumerate(files if several else [files]):
            prefix = prefixes[index] if isinstance(prefixes, (list, tuple)) else prefixes
            root = cfg.get("data_root") or ""
            path = os.path.join(root, ann_file)
            # As in mmdet an empty img_prefix is data_root, but other formats tell where their images are.
            images = os.path.join(root, prefix) if prefix or (prefix == "" and _is_coco(path)) else None
            yield Source(path, images or None, classes_of(cfg), skip_broken)


def _is_coco(path: str) -> bool:
    file = Path(path)
    return not file.exists() or (file.is_file() and format_of(file) == "coco")


def classes_of(cfg: Any) -> tuple[str, ...]:
    """The class names of a dataset config, in the order of its labels; () where nothing says them.

    Text is read as `names_of_text` says. A dataset that names none has those of its type (`CocoDataset`: COCO's 80);
    several datasets have the first one's. Wrappers are looked into.

    Raises:
        TrainError: a file of classes that cannot be read, or `classes` that are no names.
    """
    if isinstance(cfg, (list, tuple)):
        return next((found for member in cfg if (found := classes_of(member))), ())
    if not isinstance(cfg, Mapping):
        return ()
    if cfg.get("type") in WRAPPERS:
        return classes_of(cfg.get("dataset") or cfg.get("datasets"))
    names = cfg.get("classes")
    if names is None:
        kind = cfg.get("type")
        return tuple(getattr(DATASETS.get(kind) if isinstance(kind, str) else kind, "CLASSES", None) or ())
    if isinstance(names, str):
        return names_of_text(names)
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise TrainError(f"the config's data has classes = {names!r}: expected a list of names or a file of them")
    return tuple(names)
