"""Convert Pascal VOC annotations to one COCO file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cskd_data.errors import ImageFault
from cskd_data.files import write_atomically
from cskd_data.header import decoded, read_header
from cskd_train.data.voc_xml import VocAnnotation, VocObject, read_voc
from cskd_train.errors import TrainError

_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".JPG", ".JPEG", ".PNG")


@dataclass(frozen=True)
class Conversion:
    """What `convert` wrote."""

    ann_file: str
    image_root: str
    images: int
    boxes_per_class: Mapping[str, int]  # difficult ones included
    difficult: int
    left_out: Mapping[str, int]  # objects of classes that were not asked for

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return asdict(self)

    def __str__(self) -> str:
        boxes = ", ".join(f"{count} {name}" for name, count in self.boxes_per_class.items())
        lines = [f"{self.ann_file}: {self.images} images, {sum(self.boxes_per_class.values())} boxes ({boxes})"]
        if self.difficult:
            lines.append(f"  {self.difficult} difficult boxes have iscrowd 1: neither learnt nor counted")
        if self.left_out:
            names = ", ".join(f"{count} {name}" for name, count in self.left_out.items())
            lines.append(f"  left out, not among the classes: {names}")
        return "\n".join([*lines, f"  check it: cskd-train data check {self.ann_file} --images {self.image_root}"])


def convert(
    voc_root: str | Path,
    out: str | Path,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    *,
    zero_based: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Write the COCO detection file of a VOC folder (`Annotations/`, `JPEGImages/`, `ImageSets/Main/`).

    Boxes. VOC counts pixels from one and a box includes both its end pixels, so the box from pixel 1 to pixel 10
    becomes x = 0, width = 10: `x = xmin - 1`, `width = xmax - xmin + 1`. Some tools write VOC files with coordinates
    from zero and the end not included; `zero_based` takes these as `x = xmin`, `width = xmax - xmin`.

    Difficult objects get `iscrowd` 1: mmdet then neither learns them nor takes their surroundings for background, and
    pycocotools counts neither finding nor missing them. (mmdet skips COCO's `ignore` flag in training only.)

    Arguments:
        split: the name of a list in `ImageSets/Main/` (without `.txt`); None takes every file of `Annotations/`.
        classes: the names to keep, in the order of their category ids; None takes all that occur, sorted. Give them
            when several splits are converted: a class that is rare may occur in one split only.
        progress: called with (files done, files in all).

    Raises:
        TrainError: a folder, file or image is missing, an XML file is broken (file and line are named), `out` exists.
    """
    voc_root, out = Path(voc_root), Path(out)
    if out.exists() and not overwrite:
        raise TrainError(f"{out} exists: nothing was changed. Give another name, or --overwrite")
    image_root = voc_root / "JPEGImages"
    paths = _annotation_files(voc_root, split)
    images: list[dict[str, Any]] = []
    objects: list[list[VocObject]] = []
    for done, path in enumerate(paths, start=1):
        annotation = read_voc(path)
        name = _image_name(annotation, path, image_root)
        width, height = _image_size(annotation, path, image_root / name)
        images.append({"id": done, "file_name": name, "width": width, "height": height})
        objects.append(list(annotation.objects))
        if progress is not None:
            progress(done, len(paths))

    found = Counter(voc_object.name for group in objects for voc_object in group)
    names = sorted(found) if classes is None else list(classes)
    if not any(name in found for name in names):
        raise TrainError(
            f"{voc_root} has no object of the classes {', '.join(names) or '(none)'}; "
            f"found: {', '.join(found) or 'none'}"
        )
    ids = {name: number for number, name in enumerate(names, start=1)}
    annotations = [
        {"image_id": image["id"], "category_id": ids[voc_object.name], **_box(voc_object, zero_based)}
        for image, group in zip(images, objects, strict=True)
        for voc_object in group
        if voc_object.name in ids
    ]
    coco = {
        "images": images,
        "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations, start=1)],
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
    }

    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, lambda file: file.write(json.dumps(coco).encode()) and None)
    return Conversion(
        ann_file=str(out),
        image_root=str(image_root),
        images=len(images),
        boxes_per_class={name: found[name] for name in names},
        difficult=sum(annotation["iscrowd"] for annotation in annotations),
        left_out={name: count for name, count in found.items() if name not in ids},
    )


def _annotation_files(voc_root: Path, split: str | None) -> list[Path]:
    folder = voc_root / "Annotations"
    if not folder.is_dir():
        raise TrainError(f"{voc_root} has no folder Annotations: give the folder that holds Annotations and JPEGImages")
    if split is None:
        paths = sorted(folder.glob("*.xml"))
        if not paths:
            raise TrainError(f"{folder} has no XML file")
        return paths
    listing = voc_root / "ImageSets" / "Main" / f"{split}.txt"
    if not listing.is_file():
        there = ", ".join(sorted(path.stem for path in listing.parent.glob("*.txt"))) or "none"
        raise TrainError(f"split {split!r}: {listing} does not exist; splits there: {there}")
    lines = listing.read_text().splitlines()
    paths = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        path = folder / f"{line.split()[0]}.xml"
        if not path.is_file():
            raise TrainError(f"{listing}, line {number}: {path} does not exist")
        paths.append(path)
    if not paths:
        raise TrainError(f"{listing} names no image")
    return paths


def _image_name(annotation: VocAnnotation, path: Path, image_root: Path) -> str:
    """The image's name under `JPEGImages`: what the XML says, or its own name with an image's ending."""
    candidates = [annotation.filename] if annotation.filename else []
    candidates += [path.stem + ending for ending in _IMAGE_ENDINGS]
    for name in candidates:
        if (image_root / name).is_file():
            return name
    raise TrainError(f"{path}: its image {candidates[0]} is not in {image_root}")


def _image_size(annotation: VocAnnotation, path: Path, image: Path) -> tuple[int, int]:
    """Width and height as the XML says; read from the image where it does not."""
    if annotation.width is not None and annotation.height is not None:
        return annotation.width, annotation.height
    try:
        size = read_header(image) or decoded(image)
    except ImageFault as fault:
        raise TrainError(f"{path} has no size, and its image {image} {fault}") from fault
    return size.width, size.height


def _box(voc_object: VocObject, zero_based: bool) -> dict[str, Any]:
    shift = 0 if zero_based else 1
    width = voc_object.xmax - voc_object.xmin + shift
    height = voc_object.ymax - voc_object.ymin + shift
    return {
        "bbox": [voc_object.xmin - shift, voc_object.ymin - shift, width, height],
        "area": max(width, 0.0) * max(height, 0.0),
        "iscrowd": int(voc_object.difficult),
    }
