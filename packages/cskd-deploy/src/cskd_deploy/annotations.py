"""COCO annotations of an evaluation: read, checked, and mapped to the model's classes by name.

Takes the same files as `cskd-train data check` and keeps the same boxes. The rules stand here a second time so that an
edge box needs neither torch nor mmdet to evaluate.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cskd_deploy.errors import DeployError

_SECTIONS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
    "categories": ("id", "name"),
}
_SHOWN = 5


@dataclass(frozen=True)
class Annotations:
    """An annotation file, cut to what an evaluation of these classes counts."""

    data: dict[str, Any]  # COCO, without the boxes that are kept out
    category_ids: tuple[int, ...]  # of each class, in the order of the model's labels
    warnings: tuple[str, ...]  # boxes kept out, categories without a class

    @property
    def images(self) -> list[dict[str, Any]]:
        images: list[dict[str, Any]] = self.data["images"]
        return images


def load_annotations(path: Path, classes: Sequence[str], limit: int | None = None) -> Annotations:
    """Read a COCO detection file for a model with these class names.

    Args:
        limit: keep the first so many images (by their order in the file) and their boxes.

    Raises:
        DeployError: the file is missing, not JSON or not COCO, or has no category of the name of a class, or no box.
    """
    data = _read_coco(path)
    category_ids = _category_ids(data, classes, path)
    images = data["images"][:limit]
    sizes = {image["id"]: image for image in images}
    boxes = [box for box in data["annotations"] if box["image_id"] in sizes]
    counted, warnings = [], []
    for box in boxes:
        image = sizes[box["image_id"]]
        if _is_degenerate(box, image["width"], image["height"]):
            warnings.append(
                f"{image['file_name']}: annotation {box['id']} with bbox {box['bbox']} and area {box['area']:g} has no "
                "area inside the image: kept out of the evaluation"
            )
        else:
            counted.append(box)
    if not any(box["category_id"] in category_ids for box in counted):
        raise DeployError(
            f"mAP cannot be computed: the {len(images)} images taken from {path} have no box of the model's classes "
            f"({_listed(classes)})"
        )
    unknown = [str(category["name"]) for category in data["categories"] if category["id"] not in category_ids]
    if unknown:
        warnings.append(f"categories of {path.name} that the model does not know are not evaluated: {_listed(unknown)}")
    return Annotations({**data, "images": images, "annotations": counted}, category_ids, tuple(warnings))


def _is_degenerate(box: Mapping[str, Any], width: float, height: float) -> bool:
    """Whether nothing can match the box: no width, height or area is left of it inside the image."""
    x, y, w, h = box["bbox"]
    inside_width = min(x + w, width) - max(x, 0)
    inside_height = min(y + h, height) - max(y, 0)
    return inside_width <= 0 or inside_height <= 0 or box["area"] <= 0


def _category_ids(data: Mapping[str, Any], classes: Sequence[str], path: Path) -> tuple[int, ...]:
    # By name: ids may start anywhere, have gaps and stand in another order than the model's labels.
    ids = {str(category["name"]): category["id"] for category in data["categories"]}
    missing = [name for name in classes if name not in ids]
    if missing:
        raise DeployError(
            f"annotation file {path} has no category {_listed(missing)}, a class of the model "
            f"(the file's categories: {_listed(list(ids))}). Give annotations with the model's class names"
        )
    return tuple(ids[name] for name in classes)


def _read_coco(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DeployError(f"annotation file {path} does not exist") from None
    except OSError as error:
        raise DeployError(f"annotation file {path} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise DeployError(
            f"annotation file {path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}. "
            "Is it complete?"
        ) from error
    except UnicodeDecodeError as error:
        raise DeployError(f"annotation file {path} is not JSON: it is not text") from error
    missing = [name for name in _SECTIONS if not isinstance(data, dict) or not isinstance(data.get(name), list)]
    if missing:
        raise DeployError(
            f"annotation file {path} is not a COCO detection file: it has no list {_listed(missing)}. "
            "Expected an object with images, annotations and categories"
        )
    faults = _shape_faults(data) or _reference_faults(data)
    if faults:
        shown = "".join(f"\n  {fault}" for fault in faults[:_SHOWN])
        more = f"\n  ... and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise DeployError(f"annotation file {path} cannot be used:{shown}{more}")
    return data


def _shape_faults(data: Mapping[str, Any]) -> list[str]:
    faults = []
    for section, keys in _SECTIONS.items():
        for position, entry in enumerate(data[section]):
            if not isinstance(entry, dict) or any(key not in entry for key in keys):
                faults.append(f"{section}[{position}] is not an object with {', '.join(keys)}")
            elif not _is_valid(section, entry):
                shown = {key: entry[key] for key in keys}
                faults.append(f"{section}[{position}] has a value of the wrong kind: {shown}")
    if not data["images"]:
        faults.append("it lists no image")
    return faults


def _is_valid(section: str, entry: Mapping[str, Any]) -> bool:
    if not isinstance(entry["id"], (int, str)):
        return False
    if section == "images":
        sizes = entry["width"], entry["height"]
        return isinstance(entry["file_name"], str) and all(isinstance(size, int) and size > 0 for size in sizes)
    if section == "annotations":
        bbox = entry["bbox"]
        return isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, [*bbox, entry["area"]]))
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _reference_faults(data: Mapping[str, Any]) -> list[str]:
    faults = []
    for section, key in (("images", "id"), ("categories", "id"), ("categories", "name"), ("annotations", "id")):
        counts = Counter(entry[key] for entry in data[section])
        faults += [f"{section}: {key} {value!r} stands {count} times" for value, count in counts.items() if count > 1]
    for target, key in (("images", "image_id"), ("categories", "category_id")):
        known = {entry["id"] for entry in data[target]}
        faults += [
            f"annotation {box['id']} has {key} {box[key]!r}, which is not listed"
            for box in data["annotations"]
            if box[key] not in known
        ]
    return faults


def _listed(names: Sequence[str], limit: int = 20) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in names[:limit]) + more
