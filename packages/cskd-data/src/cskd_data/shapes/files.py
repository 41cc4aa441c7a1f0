"""A generated COCO detection set: the same files for the same parameters, on any number of processes."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cskd_data.errors import DataError
from cskd_data.shapes.scene import CLASSES, draw_scene

RECORD = "shapes.json"
VERSION = 2  # of the pictures: raised whenever the same parameters draw something else
_SPLITS = ("train", "val")
_MIN_SIDE = 32  # mmdet drops smaller images from training


@dataclass(frozen=True)
class ShapesSet:
    """A complete set on disk: `root/images/*.jpg`, `root/annotations/{train,val}.json`, `root/shapes.json`."""

    root: str
    images: dict[str, int]  # per split
    boxes: dict[str, int]  # per split
    created: bool  # False: it was there already

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {**asdict(self), "classes": list(CLASSES)}

    def __str__(self) -> str:
        splits = ", ".join(f"{split} {self.images[split]} images with {self.boxes[split]} boxes" for split in _SPLITS)
        state = "generated" if self.created else "is complete already, nothing was generated"
        return f"{self.root}: {splits}; {state}\n  classes: {', '.join(CLASSES)}"


def generate(
    root: str | Path,
    images: int = 320,
    val_images: int = 80,
    size: tuple[int, int] = (160, 160),
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ShapesSet:
    """Write a detection set in COCO format, all of it or nothing.

    Figures of six classes (some alike: circle and ring, star and cross) lie over cluttered backgrounds, turned,
    stretched, covered in part, in three scales. A box is tight around the visible part; `area` is
    the box's. Figures hidden for the most part are not annotated. Image `i` of a split depends on `seed` and `i` only.

    Arguments:
        root: the set's folder. It is filled under a temporary name and renamed when complete; a complete set of the
            same parameters is left as it is.
        size: (height, width) in pixels.
        progress: called with (images done, images in all).

    Raises:
        DataError: `root` holds something else, or the parameters make no sense.
    """
    root = Path(root)
    if images < 1 or val_images < 1:
        raise DataError(f"{images} training and {val_images} validation images: give at least one of each")
    if min(size) < _MIN_SIDE:
        raise DataError(f"images of {size[0]} x {size[1]} pixels: the shorter side must be {_MIN_SIDE} or more")
    if seed < 0:
        raise DataError(f"seed {seed} is negative: give 0 or more")
    parameters = {"version": VERSION, "images": images, "val_images": val_images, "size": list(size), "seed": seed}
    if _is_there(root, parameters):
        return _summary(root, created=False)

    root.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}."))
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # on images this small its threads only wait for each other, for long on a busy machine
    try:
        (draft / "images").mkdir()
        (draft / "annotations").mkdir()
        done = 0
        for number, (split, count) in enumerate(zip(_SPLITS, (images, val_images), strict=True)):
            entries = []
            for index in range(count):
                entries.append(_write_image(draft / "images", split, index, size, (seed, number, index)))
                done += 1
                if progress is not None:
                    progress(done, images + val_images)
            (draft / "annotations" / f"{split}.json").write_text(json.dumps(_coco(entries)))
        (draft / RECORD).write_text(json.dumps(parameters, indent=2) + "\n")
        draft.chmod(0o755)  # mkdtemp makes it private
        draft.replace(root)
    finally:
        cv2.setNumThreads(threads)
        shutil.rmtree(draft, ignore_errors=True)
    return _summary(root, created=True)


def _is_there(root: Path, parameters: dict[str, Any]) -> bool:
    """Whether the very set is complete in `root`; False when `root` is free.

    Raises:
        DataError: `root` holds something else, a set of other parameters, or one with files missing.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        recorded = json.loads((root / RECORD).read_text())
    except (OSError, ValueError):
        raise DataError(
            f"{root} exists and is not a generated set (it has no {RECORD}): nothing was changed. "
            "Give a folder that is new or empty"
        ) from None
    if recorded != parameters:
        recorded = recorded if isinstance(recorded, dict) else {}
        differing = sorted(key for key in parameters if recorded.get(key) != parameters[key])
        changes = ", ".join(f"{key} {recorded.get(key)} there, {parameters[key]} asked for" for key in differing)
        raise DataError(f"{root} holds a set of other parameters ({changes}): nothing was changed. Give another folder")
    missing = _missing_files(root, parameters)
    if missing:
        raise DataError(
            f"{root} holds this set with {len(missing)} files missing ({missing[0]}, ...): nothing was changed. "
            "Delete the folder and run again"
        )
    return True


def _missing_files(root: Path, parameters: dict[str, Any]) -> list[str]:
    counts = zip(_SPLITS, (parameters["images"], parameters["val_images"]), strict=True)
    names = [f"annotations/{split}.json" for split in _SPLITS]
    names += [f"images/{_file_name(split, index)}" for split, count in counts for index in range(count)]
    return [name for name in names if not (root / name).is_file()]


def _file_name(split: str, index: int) -> str:
    return f"{split}_{index:05d}.jpg"


def _write_image(
    folder: Path, split: str, index: int, size: tuple[int, int], entropy: tuple[int, int, int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Draw and write one image; its COCO entry, and those of its boxes without ids."""
    rng = np.random.default_rng(np.random.SeedSequence(entropy))
    scene = draw_scene(rng, *size)
    name = _file_name(split, index)
    quality = int(rng.integers(80, 96))
    written, jpeg = cv2.imencode(".jpg", scene.image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not written:
        raise DataError(f"OpenCV {cv2.__version__} cannot write JPEG files")
    (folder / name).write_bytes(jpeg.tobytes())
    boxes = [
        {
            "category_id": CLASSES.index(figure.name) + 1,
            "bbox": [float(value) for value in figure.bbox],
            "area": float(figure.bbox[2] * figure.bbox[3]),
            "iscrowd": 0,
            "scale": figure.scale,
        }
        for figure in scene.figures
    ]
    return {"file_name": name, "height": size[0], "width": size[1]}, boxes


def _coco(entries: list[tuple[dict[str, Any], list[dict[str, Any]]]]) -> dict[str, Any]:
    """Number images and boxes from one, as pycocotools needs it."""
    images, annotations = [], []
    for image_id, (image, boxes) in enumerate(entries, start=1):
        images.append({"id": image_id, **image})
        annotations += [{"image_id": image_id, **box} for box in boxes]
    return {
        "info": {"description": "Generated shapes (cskd-train data shapes)"},
        "images": images,
        "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations, start=1)],
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)],
    }


def _summary(root: Path, created: bool) -> ShapesSet:
    data = {split: json.loads((root / "annotations" / f"{split}.json").read_text()) for split in _SPLITS}
    return ShapesSet(
        root=str(root),
        images={split: len(coco["images"]) for split, coco in data.items()},
        boxes={split: len(coco["annotations"]) for split, coco in data.items()},
        created=created,
    )
