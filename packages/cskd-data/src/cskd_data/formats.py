"""Which format lies at a path, and which split of a data set a path names."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from cskd_data.coco import read_coco
from cskd_data.dataset import Dataset
from cskd_data.errors import SHOWN, DataError
from cskd_data.yolo_layout import find_yaml, layout_of, names_file

Reader = Callable[..., Dataset]
"""Called with the path and the image folder; takes `skip_missing` too."""

_LEVELS = 3  # above a split's folder, in which its data.yaml is looked for: `set/images/val/batch_1`


def format_of(path: Path) -> str:
    """`coco`, `voc` or `yolo`.

    Raises:
        DataError: nothing is there, or a folder of none of these.
    """
    if not os.path.exists(path):  # not `path.exists()`, which raises for a name that is too long
        raise DataError(f"annotation file {path} does not exist: give a COCO file, a VOC folder or a YOLO data.yaml")
    suffix = path.suffix.lower()
    if os.path.isfile(path):
        if split_of(path) is not None:
            return "voc"
        return "yolo" if suffix in (".yaml", ".yml") else "voc" if suffix == ".xml" else "coco"
    if find_yaml(path) is not None:
        return "yolo"
    if (path / "Annotations").is_dir() or any(path.glob("*.xml")) or any(path.glob("*/*.xml")):
        return "voc"
    if (path / "labels").is_dir() and names_file(path) is not None:  # before Label Studio's notes.json
        return "yolo"
    if _coco_file(path) is not None:
        return "coco"
    if (path / "labels").is_dir() or any(path.glob("*/labels")) or any(path.glob("obj.names")):
        return "yolo"
    if split_of(path) is not None:
        return "yolo"
    several = [file.name for file in sorted(path.glob("*.json"))]
    if several:
        raise DataError(f"the folder {path} holds {len(several)} JSON files: give one of {', '.join(several[:SHOWN])}")
    raise DataError(
        f"the folder {path} holds no data set: expected XML files (Pascal VOC), a data.yaml (YOLO), or give a COCO file"
    )


def split_of(path: Path) -> tuple[Path, str] | None:
    """The data set and the name of its split, where a path names no more than that; None for any other path.

    A split is named by its list (`VOC2007/ImageSets/Main/train.txt`), or by the folder that holds it: with its data set
    in `aquarium/data.yaml`, `aquarium/valid` and `aquarium/valid/images` are its split val.
    """
    if os.path.isfile(path):
        lists = next((above for above in list(path.parents)[:2] if above.name == "ImageSets"), None)
        return (lists.parent, path.stem) if lists is not None and path.suffix.lower() == ".txt" else None
    if not os.path.isdir(path) or find_yaml(path) is not None or names_file(path) is not None:
        return None
    folder = Path(os.path.abspath(path))
    for above in list(folder.parents)[:_LEVELS]:
        file = find_yaml(above)
        if file is None:
            continue
        with contextlib.suppress(DataError):  # a YAML file of something else
            splits = layout_of(file).all_splits
            within = [
                name
                for name, images in splits.items()
                if images and all(folder in Path(os.path.abspath(image)).parents for image in images)
            ]
            if len(within) == 1 and len(splits) > 1:
                return above, within[0]
        return None
    return None


def reader_of(path: Path) -> Reader:
    """The function that reads what lies at a path.

    Raises:
        DataError: as `format_of`.
    """
    part = split_of(path)
    if part is not None:
        return partial(_read_split, *part)
    kind = format_of(path)
    if kind == "voc":
        from cskd_data.voc import read_voc

        return read_voc
    if kind == "yolo":
        from cskd_data.yolo import read_yolo

        return read_yolo
    return _read_coco


def splits_of(path: Path, images: Path | str | None = None) -> list[str]:
    """The names of the parts that a data set says it has; none for a COCO file.

    Raises:
        DataError: as `format_of`; the YAML file of a YOLO data set cannot be used.
    """
    kind = format_of(path)
    if kind == "yolo":
        layout = layout_of(path, None if images is None else Path(images))
        return [name for name in layout.all_splits if name]
    if kind == "voc" and path.is_dir():
        from cskd_data.voc_lists import lists_of, splits_of_lists

        return splits_of_lists(lists_of(path))
    return []


def _read_split(
    root: Path, split: str, path: Path | str, images: Path | str | None = None, *, skip_missing: bool = False
) -> Dataset:
    dataset = reader_of(root)(root, images, split=split, skip_missing=skip_missing)
    return replace(dataset, source=Path(path))


def _read_coco(path: Path | str, images: Path | str | None, *, skip_missing: bool = False) -> Dataset:
    path = Path(path)
    return read_coco((_coco_file(path) or path) if path.is_dir() else path, images, skip_missing=skip_missing)


def _coco_file(folder: Path) -> Path | None:
    """The one JSON file of a folder, as Roboflow leaves it beside the images."""
    files = sorted(folder.glob("*.json"))
    return files[0] if len(files) == 1 else None
