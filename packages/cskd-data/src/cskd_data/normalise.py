"""From COCO as tools write it to the normal form: one pass over each section, faults collected by section."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cskd_data.boxes import Box, are_corners, are_fractions, box_of, degenerate, number
from cskd_data.categories import Categories, normal_categories
from cskd_data.dataset import Dataset, Note
from cskd_data.errors import DataError, refuse
from cskd_data.ids import with_aliases
from cskd_data.image_entries import Images, normal_images
from cskd_data.names import counted

_WAY_OUT = "Correct the file, or export it again"
_KEYS = (int, float, str)  # what an id may be


def normalise(
    raw: Mapping[str, Any],
    source: Path,
    images: Path | None = None,
    notes: Sequence[Note] = (),
    *,
    skip_missing: bool = False,
    searched: bool = False,
) -> Dataset:
    """The normal form of a COCO dict, however freely written; readers of other formats build such a dict and end here.

    Args:
        raw: lists `images` and `categories`, and `annotations` unless it is a test set. A `score` of an annotation says
            that a detector has found it, whatever the format. Only `id` and `file_name` of an
            image, `image_id`, `category_id` and `bbox` (or `segmentation`) of an annotation, and `id` and `name` of a
            category must be there. It is not changed.
        source: what the user named, for messages.
        images: folder that the file names start from; None looks for it beside `source`.
        notes: what the reader has to say already.
        skip_missing: leave images out whose file is not there, or whose size cannot be read, with a note.
        searched: the reader has looked for the images: a file is where its name says, or is missing.

    Raises:
        DataError: as `cskd_data.coco.read_coco`.
    """
    pictures = normal_images(raw["images"], source, images, skip_missing, searched)
    entries = raw.get("annotations") or []
    faults, boxes = _read_boxes(entries)
    refuse(source, faults, _WAY_OUT)
    categories = normal_categories(raw["categories"], source, {entry["category_id"] for entry in entries})
    annotations, own = _annotations(entries, boxes, pictures, categories, source)
    return Dataset(
        data={"images": pictures.entries, "annotations": annotations, "categories": categories.entries},
        source=source,
        image_root=pictures.root,
        image_keys=pictures.keys,
        category_keys=categories.keys,
        notes=(*notes, *pictures.notes, *categories.notes, *own),
        annotated=bool(entries),
        pseudo_labels={} if any(number(entry.get("score")) is not None for entry in entries) else None,
        unused=categories.unused,
        roots=frozenset(categories.unused),
        left_out=pictures.left_out,
    )


def _read_boxes(entries: Sequence[Any]) -> tuple[list[str], list[Box]]:
    """The box of each annotation; or what lacks a key, or holds something of the wrong kind."""
    faults: list[str] = []
    boxes: list[Box] = []
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            faults.append(f"annotations[{position}] is a {type(entry).__name__}, expected an object")
            continue
        box = box_of(entry)
        keys = isinstance(entry.get("image_id"), _KEYS) and isinstance(entry.get("category_id"), _KEYS)
        if box is not None and keys:
            boxes.append(box)
        else:
            faults += _faults(entry, _name(entry, position), box)
    return faults, boxes


def _faults(entry: Mapping[str, Any], name: str, box: Box | None) -> Iterator[str]:
    for key in ("image_id", "category_id"):
        if entry.get(key) is None:
            yield f"{name} has no {key}"
        elif not isinstance(entry[key], _KEYS):
            yield f"{name} has {key} {entry[key]!r} (expected a number or text)"
    if box is None and entry.get("bbox") in (None, []):
        what = "captions" if "caption" in entry else "no bbox, nor a segmentation to take it from"
        yield f"{name} has {what}"
    elif box is None:
        yield f"{name} has bbox {entry['bbox']!r} (expected four numbers: x, y, width, height)"


def _annotations(
    entries: Sequence[Mapping[str, Any]],
    boxes_read: Sequence[Box],
    pictures: Images,
    categories: Categories,
    source: Path,
) -> tuple[list[dict[str, Any]], list[Note]]:
    """The boxes that count, and what is to be said about the others."""
    kept: list[tuple[Mapping[str, Any], int, int, Box]] = []
    faults, repeated = [], []
    seen: set[Any] = set()
    left_out_images = with_aliases(dict.fromkeys(pictures.left_out, 0))
    for position, (entry, box) in enumerate(zip(entries, boxes_read, strict=True)):
        image_id = pictures.ids.get(entry["image_id"])
        category_id = categories.ids.get(entry["category_id"])
        if image_id is None or category_id is None:
            key = "category_id" if image_id is not None else "image_id"
            if key == "category_id" or entry[key] not in left_out_images:
                what = f"{key.replace('_', ' ')} {entry[key]!r}"
                faults.append(f"{_name(entry, position)} names {what}, which is not listed")
            continue
        if isinstance(entry.get("id"), (int, str)):
            count = len(seen)
            seen.add((entry["id"], image_id, category_id, box))
            if len(seen) == count:
                repeated.append(f"annotation {entry['id']}")
                continue
        kept.append((entry, image_id, category_id, box))
    refuse(source, faults, "List what is named, or take these annotations out of the file")
    sizes = pictures.sizes
    boxes = [one[3] for one in kept]
    box_sizes = [sizes[one[1]] for one in kept]
    areas = [number(one[0].get("area")) for one in kept]
    _check_meaning(boxes, areas, box_sizes, source)
    notes = []
    if repeated:
        notes.append(
            Note.of(f"{counted(len(repeated), 'annotation')} listed twice with the same id, taken once", repeated)
        )
    if _is_placeholder(areas, boxes):
        notes.append(
            Note(f"every area is {areas[0]:g}, whatever the box: width x height is used in its place", len(areas))
        )
        areas = [None] * len(areas)
    found: list[dict[str, Any]] = []
    left_out = []
    for (entry, image_id, category_id, box), area in zip(kept, areas, strict=True):
        size = abs(box[2] * box[3]) if area is None else area
        fault = degenerate(box, size, *sizes[image_id])
        if fault is not None:
            numbers = ", ".join(f"{value:g}" for value in box)
            named = f"annotation {entry['id']}" if "id" in entry else "an annotation"
            left_out.append(f"{named} of {pictures.names[image_id]}: its box [{numbers}] {fault}")
            continue
        found.append(
            {
                **entry,
                "id": len(found) + 1,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": list(box),
                "area": size,
                "iscrowd": int(entry.get("iscrowd") is True or bool(number(entry.get("iscrowd")))),
            }
        )
    if left_out:
        notes.append(Note.of(f"{counted(len(left_out), 'box')} kept out of training and evaluation alike", left_out))
    crowds = sum(one["iscrowd"] for one in found)
    if crowds:
        notes.append(
            Note(
                f"{crowds} of {counted(len(found), 'box')} marked as crowds (iscrowd 1): neither learnt nor counted",
                crowds,
            )
        )
    return found, notes


def _check_meaning(
    boxes: Sequence[Box], areas: Sequence[float | None], sizes: Sequence[tuple[int, int]], source: Path
) -> None:
    """Refuse boxes whose four numbers are something else than x, y, width and height in pixels."""
    if are_fractions(boxes, sizes):
        raise DataError(
            f"the boxes of {source} are fractions of the image, such as {list(boxes[0])}, expected x, y, width and "
            "height in pixels: multiply x and width by the image's width, y and height by its height"
        )
    if are_corners(boxes, areas, sizes):
        raise DataError(
            f"the boxes of {source} are corners (x1, y1, x2, y2), such as {list(boxes[0])}, expected x, y, width and "
            "height: read as such most reach over the edge of their image, or no area fits. Write every bbox as "
            "[x1, y1, x2 - x1, y2 - y1]"
        )


def _is_placeholder(areas: Sequence[float | None], boxes: Sequence[Box]) -> bool:
    """Whether all areas are one number that cannot be true of these boxes."""
    if len(set(areas)) != 1 or areas[0] is None:
        return False
    sizes = [abs(w * h) for _, _, w, h in boxes]
    return max(sizes) > 1.05 * min(sizes) or (areas[0] in (0, 1) and min(sizes) > 4)


def _name(entry: Mapping[str, Any], position: int) -> str:
    return f"annotation {entry['id']}" if "id" in entry else f"annotations[{position}]"
