"""Which format lies at a path, and which split of a data set a path names."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cskd_data.coco import read_coco
from cskd_data.coco_layout import coco_files
from cskd_data.dataset import Dataset, Note, together
from cskd_data.errors import SHOWN, DataError, NoImages
from cskd_data.folders import files_below, folders_of_splits
from cskd_data.ids import key_of
from cskd_data.json_file import load_json
from cskd_data.many import paused_garbage_collection
from cskd_data.merge import merge
from cskd_data.names import counted, plain_name
from cskd_data.split import SPLIT_CALLED, meant, no_such_split, without_images
from cskd_data.voc_lists import folders_of, lists_of
from cskd_data.voc_xml import is_another
from cskd_data.yolo_beside import rows_beside_images
from cskd_data.yolo_layout import find_yaml, layout_of, names_file

Reader = Callable[..., Dataset]
"""Called with the path and the image folder; takes `split` and `skip_missing` too."""

_MOST_INNER = 50
"""Entries of a folder without a data set in which one is looked for."""

_OTHERS = {
    (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar"): (
        "an archive: unpack it, and give the folder that comes out"
    ),
    (".csv", ".tsv", ".parquet", ".arrow", ".xlsx", ".record", ".tfrecord"): (
        "a table, which is not read: export the data set as COCO, Pascal VOC or YOLO where it was made"
    ),
}
"""Endings of files that hold data sets in other ways -> what to do."""

_LEVELS = 3  # above a split's folder, in which its data set is looked for: `set/images/val/batch_1`


def format_of(path: Path) -> str:
    """`coco`, `voc` or `yolo`.

    Raises:
        DataError: nothing is there, an archive or a table, or a folder of none of these.
    """
    if not os.path.exists(path):  # not `path.exists()`, which raises for a name that is too long
        raise DataError(f"annotation file {path} does not exist: give a COCO file, a VOC folder or a YOLO data.yaml")
    suffix = path.suffix.lower()
    part = split_of(path)
    if part is not None:
        return format_of(part[0])
    if os.path.isfile(path):
        for endings, way_out in _OTHERS.items():
            if path.name.lower().endswith(endings):
                raise DataError(f"{path} is {way_out}")
        return "yolo" if suffix in (".yaml", ".yml") else "voc" if suffix == ".xml" else "coco"
    kind = _format_of_folder(path)
    if kind is not None:
        return kind
    inner = [one.name for one in sorted(path.iterdir())[:_MOST_INNER] if one.is_dir() and _format_or_none(one)]
    raise DataError(
        f"the folder {path} holds no data set: expected XML files (Pascal VOC), a data.yaml or classes.txt (YOLO), or "
        "JSON files (COCO), in it, in `annotations` or in a folder for each split"
        + (f"; there is one in {', '.join(inner[:SHOWN])} below it" if inner else "")
    )


def annotation_files(path: Path) -> list[Path]:
    """The files that hold the boxes of what lies at a path; none of a folder of Pascal VOC or YOLO.

    Raises:
        DataError: as `format_of`.
    """
    if not os.path.isdir(path):
        return [path]
    root, split = split_of(path) or (path, None)
    files = coco_files(root) if format_of(root) == "coco" else {}
    return [file for name, file in files.items() if split in (None, name)]


def _format_of_folder(path: Path) -> str | None:
    """As `format_of`; None for a folder of no data set."""
    if find_yaml(path) is not None:
        return "yolo"
    if any(not is_another(file) for file in _xml_files(path)):
        return "voc"
    named = names_file(path) is not None
    if (named and (path / "labels").is_dir()) or (path / "obj.names").is_file():
        return "yolo"  # before Label Studio's notes.json
    if coco_files(path):
        return "coco"
    if named and rows_beside_images(path):
        return "yolo"
    if (path / "Annotations").is_dir():  # maybe COCO's `annotations`, where names have no case
        return "voc"
    if (path / "labels").is_dir() or any((folder / "labels").is_dir() for folder in _folders(path)):
        return "yolo"
    return None


def _folders(path: Path) -> list[Path]:
    """Directly in a folder; without hidden ones: an editor's `.idea` holds XML."""
    return [one for one in sorted(path.glob("*")) if one.is_dir() and not one.name.startswith(".")]


def _xml_files(path: Path) -> Iterator[Path]:
    """In a folder or one further down, or in the `Annotations` of a split's folder."""
    splits = [one for inner in folders_of_splits(path).values() for one in inner]
    for folder in (path, *_folders(path), *(one / "Annotations" for one in splits)):
        names: list[str] = []
        with contextlib.suppress(OSError):  # a folder that may not be read
            names = os.listdir(folder)
        yield from (folder / name for name in names if name.lower().endswith(".xml") and not name.startswith("."))


def split_of(path: Path) -> tuple[Path, str] | None:
    """The data set and the name of its split, where a path names no more than that; None for any other path.

    A split is named by its list (`VOC2007/ImageSets/Main/train.txt`, the `train.txt` of a YOLO set), or by the folder
    that holds it alone, in every format: `aquarium/valid` is the split val of `aquarium`, and in a YOLO set
    `aquarium/valid/images` too. A folder with splits, or with class names, of its own is a data set.
    """
    if os.path.isfile(path):
        if path.suffix.lower() != ".txt":
            return None
        near = list(Path(os.path.abspath(path)).parents)[:2]
        lists = next((above for above in near if above.name == "ImageSets"), None)
        return (lists.parent, path.stem) if lists is not None else _split_of_list(path)
    if not os.path.isdir(path) or _is_whole(path):
        return None
    folder = Path(os.path.abspath(path))
    for above in list(folder.parents)[:_LEVELS]:
        named = any(name.lower() in SPLIT_CALLED for name in folder.relative_to(above).parts)  # data.yaml has others
        if above.name == "Annotations" or not (named or find_yaml(above)):
            continue
        splits = _files_of_splits(above)
        within = [
            name
            for name, files in splits.items()
            if files and all(folder in Path(os.path.abspath(file)).parents for file in files)
        ]
        if len(within) == 1 and len(splits) > 1:
            return above, within[0]
    return None


def whole_of(path: Path, split: str | None = None) -> tuple[Path, str | None]:
    """The data set and the split that a path and the name of a split mean together: see `split_of`.

    Raises:
        DataError: the path is another split.
    """
    part = split_of(path)
    if part is None:
        return path, split
    if split is not None and meant(split, part[1:]) is None:
        raise DataError(f"{path} is the split {part[1]} of {part[0]}: give {part[0]} for its split {split!r}")
    return part


def _is_whole(folder: Path) -> bool:
    """Whether a folder is a data set by itself, whatever lies above it."""
    kind = _format_or_none(folder)
    if kind == "voc":
        return bool(lists_of(folder)) or len(folders_of(folder)) > 1
    if kind == "coco":
        return len(coco_files(folder)) > 1
    return find_yaml(folder) is not None or names_file(folder) is not None


def _format_or_none(folder: Path) -> str | None:
    """As `_format_of_folder`, without what is wrong in it."""
    with contextlib.suppress(DataError):
        return _format_of_folder(folder)
    return None


def _files_of_splits(root: Path) -> Mapping[str, Sequence[Path]]:
    """The files that folders of splits hold: images of YOLO, annotations of others; none of no data set."""
    kind = _format_or_none(root)
    with contextlib.suppress(DataError):
        if kind == "yolo":
            return layout_of(root).all_splits
        if kind == "voc":
            folders = folders_of(root)
            below = {
                split: [file for one in inner for file in files_below(one, (".xml",))]
                for split, inner in folders.items()
            }
            return below if "train" in below else {}
        if kind == "coco":
            return {split: [file] for split, file in coco_files(root).items()}
    return {}


def _split_of_list(path: Path) -> tuple[Path, str] | None:
    """As `split_of`, of a list of images that a YOLO data set beside it, or above, goes by."""
    for above in list(Path(os.path.abspath(path)).parents)[:_LEVELS]:
        if find_yaml(above) is None and names_file(above) is None:
            continue
        with contextlib.suppress(DataError):
            for split, files in layout_of(above).lists.items():
                if any(os.path.samefile(path, file) for file in files):
                    return above, split
        return None
    return None


def reader_of(path: Path) -> Reader:
    """The function that reads what lies at a path.

    Raises:
        DataError: as `format_of`.
    """
    if split_of(path) is not None:
        return _read_split
    kind = format_of(path)
    if kind == "voc":
        from cskd_data.voc import read_voc

        return read_voc
    if kind == "yolo":
        from cskd_data.yolo import read_yolo

        return read_yolo
    return _read_coco


def splits_of(path: Path, images: Path | str | None = None) -> list[str]:
    """The names of the parts that a data set says it has; none of one file, nor of one of these parts.

    Raises:
        DataError: as `format_of`; the YAML file of a YOLO data set cannot be used.
    """
    if split_of(path) is not None:
        return []
    kind = format_of(path)
    if kind == "yolo":
        layout = layout_of(path, None if images is None else Path(images))
        return [name for name in layout.all_splits if name]
    if kind == "voc" and path.is_dir():
        from cskd_data.voc import splits_of_voc

        return splits_of_voc(path)
    return [name for name in coco_files(path) if name] if path.is_dir() else []


def read_filled(
    splits: Iterable[str], read: Callable[[str], Dataset], needed: Container[str] = ()
) -> tuple[dict[str, Dataset], list[Note]]:
    """Those of the splits that have images, and a note on those that have none, which are left out.

    Args:
        read: gives the data set of a split.
        needed: splits that are not left out.

    Raises:
        NoImages: a needed one has none, or all have none.
    """
    parts: dict[str, Dataset] = {}
    empty: dict[str, NoImages] = {}
    for split in splits:
        try:
            parts[split] = read(split)
        except NoImages as error:
            if split in needed:
                raise
            empty[split] = error
    if empty and not parts:
        raise next(iter(empty.values()))
    return parts, without_images(list(empty))


def _read_split(
    path: Path | str, images: Path | str | None = None, split: str | None = None, *, skip_missing: bool = False
) -> Dataset:
    root, own = whole_of(Path(path), split)
    dataset = reader_of(root)(root, images, split=own, skip_missing=skip_missing)
    return dataset if format_of(root) == "coco" else replace(dataset, source=Path(path))  # COCO's is its file


def _read_coco(
    path: Path | str, images: Path | str | None = None, split: str | None = None, *, skip_missing: bool = False
) -> Dataset:
    """A file, or one of a folder, or all of a folder's as one but for those without images, and those without
    annotations beside others."""
    path = Path(path)
    files = coco_files(path) if path.is_dir() else {"": path}
    if split is not None:
        own = meant(split, files)
        if own is None:
            raise no_such_split(path, split, files)
        with paused_garbage_collection():
            content = load_json(files[own], "annotation file")
        if isinstance(content, dict) and content.get("images") == []:
            raise NoImages(f"the split {own} of {path} has no image: write its images into {files[own]}, or delete it")
        part = read_coco(files[own], images, skip_missing=skip_missing, content=content)
        roots = part.roots & _with_boxes(file for name, file in files.items() if name != own) if part.roots else ()
        return part.select([*roots, *part.classes])
    parts: dict[str, Dataset] = {}
    empty = []
    for name, file in files.items():
        with paused_garbage_collection():
            content = load_json(file, "annotation file")
        if len(files) > 1 and isinstance(content, dict) and content.get("images") == []:
            empty.append(name)
        else:
            parts[name] = read_coco(file, images, skip_missing=skip_missing, content=content)
    if not parts:
        raise DataError(f"no split of {path} has images: {', '.join(empty)}")
    kept = {name: part for name, part in parts.items() if part.annotated} or parts
    left = [name for name in parts if name not in kept]
    notes = [Note.of(f"{counted(len(left), 'split')} without annotations left out", left)] if left else []
    notes += without_images(empty)
    if len(files) == 1:
        return next(iter(parts.values()))
    dataset = merge(list(kept.values()))
    return replace(dataset, source=path, notes=(*dataset.notes, *together(list(kept)), *notes))


def _with_boxes(files: Iterable[Path]) -> frozenset[str]:
    """The names of the categories that have boxes in one of these COCO files."""
    found: set[str] = set()
    for file in files:
        with contextlib.suppress(DataError, KeyError, TypeError, AttributeError):  # what is wrong is said by its reader
            with paused_garbage_collection():
                content = load_json(file, "annotation file")
            used = {str(key_of(one["category_id"])) for one in content.get("annotations") or []}
            found |= {plain_name(str(one["name"])) for one in content["categories"] if str(key_of(one["id"])) in used}
    return frozenset(found)
