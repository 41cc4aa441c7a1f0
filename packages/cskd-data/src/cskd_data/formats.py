"""Which format lies at a path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cskd_data.coco import read_coco
from cskd_data.dataset import Dataset
from cskd_data.errors import DataError
from cskd_data.yolo_layout import find_yaml

Reader = Callable[..., Dataset]
"""Called with the path and the image folder; takes `skip_missing` too."""


def format_of(path: Path) -> str:
    """`coco`, `voc` or `yolo`.

    Raises:
        DataError: nothing is there, or a folder of none of these.
    """
    if not path.exists():
        raise DataError(f"annotation file {path} does not exist: give a COCO file, a VOC folder or a YOLO data.yaml")
    suffix = path.suffix.lower()
    if path.is_file():
        return "yolo" if suffix in (".yaml", ".yml") else "voc" if suffix == ".xml" else "coco"
    if find_yaml(path) is not None:
        return "yolo"
    if (path / "Annotations").is_dir() or any(path.glob("*.xml")) or any(path.glob("*/*.xml")):
        return "voc"
    if _coco_file(path) is not None:
        return "coco"
    if (path / "labels").is_dir() or any(path.glob("*/labels")) or any(path.glob("obj.names")):
        return "yolo"
    raise DataError(
        f"the folder {path} holds no data set: expected XML files (Pascal VOC), a data.yaml (YOLO), or give a COCO file"
    )


def reader_of(path: Path) -> Reader:
    """The function that reads what lies at a path.

    Raises:
        DataError: as `format_of`.
    """
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
        from cskd_data.yolo_layout import layout_of

        layout = layout_of(path, None if images is None else Path(images))
        return [name for name in layout.all_splits if name]
    if kind == "voc" and path.is_dir():
        from cskd_data.voc_lists import lists_of

        lists = lists_of(path)  # VOC has one for each class too: cat_train ...
        return [name for name in ("train", "val", "trainval", "test") if name in lists] or list(lists)
    return []


def _read_coco(path: Path | str, images: Path | str | None, *, skip_missing: bool = False) -> Dataset:
    path = Path(path)
    return read_coco((_coco_file(path) or path) if path.is_dir() else path, images, skip_missing=skip_missing)


def _coco_file(folder: Path) -> Path | None:
    """The one JSON file of a folder, as Roboflow leaves it beside the images."""
    files = sorted(folder.glob("*.json"))
    return files[0] if len(files) == 1 else None
