"""Write a data set without the images that cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cskd_data.dataset import Dataset
from cskd_data.errors import DataError, ImageFault
from cskd_data.images import picture
from cskd_data.names import counted

_SHOWN = 20


@dataclass(frozen=True)
class Cleaned:
    """What `clean` left out, and why."""

    source: str
    written: str
    image_root: str
    images: int  # that are left
    boxes: int
    left_out: tuple[str, ...]  # `image NAME FAULT`
    boxes_left_out: int
    warnings: tuple[str, ...]  # of images that are used, and of the data set

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.written}: {counted(self.images, 'image')}, {counted(self.boxes, 'box')}"]
        lines += [f"  warning: {warning}" for warning in self.warnings]
        if self.left_out:
            lost = f"{counted(len(self.left_out), 'image')} with {counted(self.boxes_left_out, 'box')}"
            lines.append(f"  left out: {lost}")
            lines += [f"    {fault}" for fault in self.left_out[:_SHOWN]]
            if len(self.left_out) > _SHOWN:
                lines.append(f"    ... and {len(self.left_out) - _SHOWN} more (--json lists all)")
        else:
            lines.append("  every image can be decoded: none is left out")
        return "\n".join(lines)


@dataclass(frozen=True)
class Usable:
    """A data set without the images that cannot be used."""

    dataset: Dataset
    left_out: tuple[str, ...]  # `image NAME FAULT`
    warnings: tuple[str, ...]  # of images that are used


def usable(dataset: Dataset, progress: Callable[[int, int], None] | None = None) -> Usable:
    """Decode every image, and leave out what cannot be decoded or has another size than the data set says.

    Args:
        progress: called with (images done, images in all).

    Raises:
        DataError: no image is left.
    """
    faults: dict[int, str] = {}
    warnings = []
    for done, image in enumerate(dataset.images, start=1):
        try:
            found = picture(dataset.path(image))
            height, width = found.pixels.shape[:2]
            if (width, height) != (image["width"], image["height"]):
                stated = f"the annotations say {image['width']} x {image['height']}"
                faults[image["id"]] = f"is {width} x {height} pixels, but {stated}"
            warnings += [f"image {image['file_name']} {warning}" for warning in found.warnings]
        except ImageFault as fault:
            faults[image["id"]] = str(fault)
        if progress is not None:
            progress(done, len(dataset.images))
    kept = dataset.subset(image["id"] for image in dataset.images if image["id"] not in faults)
    named = [f"image {one['file_name']} {faults[one['id']]}" for one in dataset.images if one["id"] in faults]
    if not kept.images:
        raise DataError(f"no image of {dataset.source} can be used, such as: {named[0]}")
    return Usable(kept, tuple(named), tuple(warnings))


def clean(dataset: Dataset, out: Path, progress: Callable[[int, int], None] | None = None) -> Cleaned:
    """Write the normal form of the usable part of a data set.

    Args:
        dataset: read with `skip_missing`, so that images without a file are out already; its notes say so.
        progress: called with (images done, images in all).

    Raises:
        DataError: no image is left, or `out` cannot be written.
    """
    found = usable(dataset, progress)
    found.dataset.to_coco(out)
    return Cleaned(
        source=str(dataset.source),
        written=str(out),
        image_root=str(dataset.image_root),
        images=len(found.dataset.images),
        boxes=len(found.dataset.annotations),
        left_out=found.left_out,
        boxes_left_out=len(dataset.annotations) - len(found.dataset.annotations),
        warnings=(*map(str, dataset.notes), *found.warnings),
    )
