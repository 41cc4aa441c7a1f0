"""Check a COCO annotation file and its images before anything is trained or evaluated on them."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cskd_train.data.boxes import category_ids, is_degenerate
from cskd_train.data.image_file import ImageFault, decode, glance
from cskd_train.data.report import MEDIUM_BELOW, SMALL_BELOW, DatasetReport, DegenerateBox
from cskd_train.errors import TrainError

_SECTIONS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
    "categories": ("id", "name"),
}
_SINGULAR = {"images": "image", "annotations": "annotation", "categories": "category"}
_SHOWN_FAULTS = 5


def check_annotations(
    ann_file: str | Path,
    image_root: str | Path,
    classes: Sequence[str] | None = None,
    *,
    decode_images: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetReport:
    """Check everything that could stop a run, or spoil it without a word, after it has begun.

    Every image of the file is opened: it must exist, have its end-of-image marker and the size that the file says
    (JPEG and PNG, from the header; 0.1 to 0.3 s per 1000 images on a local disk). `decode_images` decodes each
    one in full as well (2 to 5 s per 1000 images of 640 x 480).

    Arguments:
        classes: the config's class names; None takes every category of the file, in the file's order.
        progress: called with (images done, images in all).

    Raises:
        TrainError: the first few faults and their count: no such file, broken JSON (line and column), not COCO (what is
            missing), ids that are double or point nowhere, a class without category, images missing, truncated or of
            another size.
    """
    begin = time.monotonic()
    ann_file, image_root = Path(ann_file), Path(image_root)
    data = load_coco(ann_file)
    names = [category["name"] for category in data["categories"]] if classes is None else list(classes)
    ids = dict(zip(names, category_ids(data["categories"], names, ann_file), strict=True))
    _check_images(data["images"], ann_file, image_root, decode_images, progress)

    images = {image["id"]: image for image in data["images"]}
    used = set(ids.values())
    counted, degenerate = [], []
    for annotation in data["annotations"]:
        image = images[annotation["image_id"]]
        if is_degenerate(annotation, image["width"], image["height"]):
            degenerate.append(_degenerate_box(annotation, image))
        elif annotation["category_id"] in used:
            counted.append(annotation)
    if not counted:
        raise TrainError(
            f"{ann_file} has no box of the classes {', '.join(names)}: there is nothing to learn or to find"
        )
    per_category = Counter(annotation["category_id"] for annotation in counted)
    sizes = Counter(_size(annotation["area"]) for annotation in counted)
    return DatasetReport(
        ann_file=str(ann_file),
        image_root=str(image_root),
        images=len(images),
        images_without_boxes=len(images) - len({annotation["image_id"] for annotation in counted}),
        boxes=len(counted),
        boxes_per_class={name: per_category[category] for name, category in ids.items()},
        category_ids=ids,
        box_sizes={size: sizes[size] for size in ("small", "medium", "large")},
        degenerate=tuple(degenerate),
        decoded=decode_images,
        seconds=time.monotonic() - begin,
        notes=_notes(data, images, counted, ids),
    )


def load_coco(ann_file: Path) -> dict[str, list[dict[str, Any]]]:
    """The contents of a COCO detection file, each entry with the keys it needs and ids that are unique and resolve.

    Raises:
        TrainError: the file is missing, is not JSON, or is not COCO.
    """
    try:
        data = json.loads(ann_file.read_bytes())
    except FileNotFoundError:
        raise TrainError(
            f"annotation file {ann_file} does not exist: give a COCO JSON file (`cskd-train data shapes` makes a set, "
            "`cskd-train data from-voc` converts one)"
        ) from None
    except OSError as error:
        raise TrainError(f"annotation file {ann_file} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise TrainError(
            f"annotation file {ann_file} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}. "
            "Is it complete?"
        ) from error
    except UnicodeDecodeError as error:
        raise TrainError(f"annotation file {ann_file} is not JSON: it is not text ({error.reason})") from error
    if not isinstance(data, dict):
        raise TrainError(
            f"annotation file {ann_file} is not COCO: expected an object with {', '.join(_SECTIONS)}, "
            f"found a {type(data).__name__}"
        )
    missing = [section for section in _SECTIONS if not isinstance(data.get(section), list)]
    if missing:
        raise TrainError(
            f"annotation file {ann_file} is not COCO: it has no list {', '.join(map(repr, missing))} "
            f"(found: {', '.join(map(repr, data)) or 'nothing'})"
        )
    _raise_if_any(_shape_faults(data), ann_file)
    _raise_if_any(_reference_faults(data), ann_file)
    return data


def _shape_faults(data: Mapping[str, list[Any]]) -> list[str]:
    """Entries that lack a key or hold something of the wrong kind."""
    faults = []
    for section, keys in _SECTIONS.items():
        for position, entry in enumerate(data[section]):
            if not isinstance(entry, dict):
                faults.append(f"{section}[{position}] is a {type(entry).__name__}, expected an object")
                continue
            wrong = [f"no {key}" for key in keys if key not in entry] or [
                f"{key} {entry[key]!r} (expected {_KINDS[key][0]})" for key in keys if not _KINDS[key][1](entry[key])
            ]
            if wrong:
                name = f"{_SINGULAR[section]} {entry['id']}" if "id" in entry else f"{section}[{position}]"
                faults.append(f"{name} has {', '.join(wrong)}")
    faults += [f"{section} is an empty list" for section in ("images", "categories") if not data[section]]
    return faults


def _reference_faults(data: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """Ids and names that are double, or that point at nothing."""
    faults = []
    for section, key in (("images", "id"), ("categories", "id"), ("categories", "name"), ("annotations", "id")):
        counts = Counter(entry[key] for entry in data[section])
        faults += [f"{section} have the {key} {value!r} {count} times" for value, count in counts.items() if count > 1]
    images = {image["id"] for image in data["images"]}
    categories = {category["id"] for category in data["categories"]}
    for annotation in data["annotations"]:
        if annotation["image_id"] not in images:
            faults.append(
                f"annotation {annotation['id']} names image id {annotation['image_id']!r}, which is not listed"
            )
        if annotation["category_id"] not in categories:
            faults.append(
                f"annotation {annotation['id']} names category id {annotation['category_id']!r}, which is not listed"
            )
    return faults


def _check_images(
    images: Sequence[Mapping[str, Any]],
    ann_file: Path,
    image_root: Path,
    decode_images: bool,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Every image must be there, whole, and of the size that the annotation file gives."""
    if not image_root.is_dir():
        raise TrainError(f"the image folder {image_root} of {ann_file} does not exist")
    faults = []
    for done, image in enumerate(images, start=1):
        try:
            path = image_root / image["file_name"]
            size = glance(path)
            if decode_images or size is None:  # a format whose header is not read here
                size = decode(path)
            if (size.width, size.height) != (image["width"], image["height"]):
                faults.append(
                    f"image {image['file_name']} is {size.width} x {size.height} pixels, but the annotations say "
                    f"{image['width']} x {image['height']}: its boxes would not fit"
                )
        except ImageFault as fault:
            faults.append(f"image {image['file_name']} {fault}")
        if progress is not None:
            progress(done, len(images))
    _raise_if_any(faults, ann_file, f" (images are looked for in {image_root})")


def _notes(
    data: Mapping[str, list[dict[str, Any]]],
    images: Mapping[int, Mapping[str, Any]],
    counted: Sequence[Mapping[str, Any]],
    ids: Mapping[str, int],
) -> tuple[str, ...]:
    """What trains, but may not be what was meant."""
    notes = []
    present = {annotation["category_id"] for annotation in counted}
    absent = [name for name, category in ids.items() if category not in present]
    if absent:
        notes.append(f"no box of class {', '.join(absent)}")
    unused = [category["name"] for category in data["categories"] if category["id"] not in ids.values()]
    if unused:
        notes.append(f"boxes of {len(unused)} categories are not used: {', '.join(unused[:10])}")
    thin = sum(annotation["bbox"][2] < 1 or annotation["bbox"][3] < 1 for annotation in counted)
    if thin:
        notes.append(f"{thin} boxes are less than a pixel wide or high: evaluated, but not trained on (as in mmdet)")
    over = sum(_reaches_over(annotation["bbox"], images[annotation["image_id"]]) for annotation in counted)
    if over:
        notes.append(
            f"{over} of {len(counted)} boxes reach over their image's edge by more than a pixel: are all boxes "
            "[x, y, width, height] in pixels?"
        )
    if any(annotation["id"] == 0 for annotation in counted):
        notes.append("an annotation has the id 0: pycocotools takes whatever finds it for a false alarm; number from 1")
    return tuple(notes)


def _degenerate_box(annotation: Mapping[str, Any], image: Mapping[str, Any]) -> DegenerateBox:
    x, y, w, h = annotation["bbox"]
    if w < 0 or h < 0:
        fault = "is inverted"
    elif w == 0 or h == 0:
        fault = "has no area"
    elif annotation["area"] <= 0:
        fault = f"comes with an area of {annotation['area']:g}"
    else:
        fault = f"lies outside the image ({image['width']} x {image['height']})"
    return DegenerateBox(str(image["file_name"]), annotation["id"], (x, y, w, h), fault)


def _raise_if_any(faults: Sequence[str], ann_file: Path, where: str = "") -> None:
    if faults:
        shown = "".join(f"\n  {fault}" for fault in faults[:_SHOWN_FAULTS])
        more = f"\n  ... and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise TrainError(f"{ann_file} cannot be used, {count}{where}:{shown}{more}")


def _size(area: float) -> str:
    return "small" if area < SMALL_BELOW else "medium" if area < MEDIUM_BELOW else "large"


def _reaches_over(bbox: Sequence[float], image: Mapping[str, Any]) -> bool:
    x, y, w, h = bbox
    return x < -1 or y < -1 or x + w > image["width"] + 1 or y + h > image["height"] + 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "id": ("a number", _is_id),
    "image_id": ("a number", _is_id),
    "category_id": ("a number", _is_id),
    "file_name": ("a file name", _is_text),
    "name": ("a name", _is_text),
    "width": ("pixels", _is_positive),
    "height": ("pixels", _is_positive),
    "bbox": ("four numbers x, y, width, height", _is_box),
    "area": ("a number", _is_number),
    "iscrowd": ("0 or 1", _is_number),
}
