"""Read a COCO detection file into the normal form."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cskd_data.dataset import IMAGE_ROOT, PSEUDO_LABELLED, Dataset
from cskd_data.errors import DataError
from cskd_data.image_names import SAMPLE
from cskd_data.json_file import load_json
from cskd_data.many import paused_garbage_collection
from cskd_data.normalise import normalise

SECTIONS = ("images", "annotations", "categories")

EXPORT_AS_COCO = "export the whole set as COCO there"


def read_coco(
    path: Path | str, images: Path | str | None = None, *, skip_missing: bool = False, content: Any = None
) -> Dataset:
    """The data set of a COCO JSON file, in any of JSON's encodings, gzipped or not.

    Args:
        images: folder that the file names start from; None takes the one that the file names, where the images are
            there, or looks for it beside the file.
        skip_missing: leave images out whose file is not there, or whose size cannot be read, with a note.
        content: of the file, where it was read before.

    Raises:
        DataError: the first few faults, their count and the way out: no such file, broken JSON (line and column), not
            COCO, ids that are double or point nowhere, boxes that are no boxes, images missing.
    """
    path = Path(path)
    with paused_garbage_collection():
        content = load_json(path, "annotation file") if content is None else content
        _check_sections(content, path)
        folder = _named_root(content, path) if images is None else Path(images)
        dataset = normalise(content, path, folder, skip_missing=skip_missing)
        said = _info(content).get(PSEUDO_LABELLED)
        return replace(dataset, pseudo_labels=said if isinstance(said, dict) else {}) if said else dataset


def _info(content: Mapping[str, Any]) -> dict[str, Any]:
    info = content.get("info")
    return info if isinstance(info, dict) else {}


def _named_root(content: Mapping[str, Any], path: Path) -> Path | None:
    """The image folder that `Dataset.to_coco` has named in the file, if one of the first images is there."""
    name = _info(content).get(IMAGE_ROOT)
    if not isinstance(name, str):
        return None
    folder = os.path.normpath(os.path.join(os.path.dirname(os.path.realpath(path)), name))
    images = [image.get("file_name") for image in content["images"][:SAMPLE] if isinstance(image, dict)]
    there = any(os.path.isfile(os.path.join(folder, image)) for image in images if isinstance(image, str))
    return Path(folder) if there else None


def _check_sections(content: Any, path: Path) -> None:
    """Refuse what is JSON but no COCO detection file, by what it seems to be."""
    name = f"annotation file {path}"
    expected = f"expected an object with {', '.join(SECTIONS)}"
    if isinstance(content, list):
        first = content[0] if content else None
        if isinstance(first, dict) and "score" in first and "image_id" in first:
            raise DataError(
                f"{name} holds detections (COCO's results format), no annotations: give the annotation file that they "
                "belong to, and this one as the predictions (`cskd-deploy eval --predictions`)"
            )
        raise DataError(f"{name} is not COCO: {expected}, found a list")
    if not isinstance(content, dict):
        raise DataError(f"{name} is not COCO: {expected}, found a {type(content).__name__}")
    missing = [section for section in ("images", "categories") if not isinstance(content.get(section), list)]
    if not isinstance(content.get("annotations", []), list):
        missing.append("annotations")
    if not missing:
        return
    if "imagePath" in content and "shapes" in content:
        raise DataError(f"{name} is LabelMe's, one file an image: {EXPORT_AS_COCO}")
    if "_via_img_metadata" in content:
        raise DataError(f"{name} is a project of the VGG Image Annotator: {EXPORT_AS_COCO}")
    raise DataError(
        f"{name} is not COCO: it has no list {', '.join(map(repr, missing))} "
        f"(found: {', '.join(map(repr, list(content)[:20])) or 'nothing'}); {expected}"
    )
