"""Write a data set without the images that cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cskd_data import fingerprint as memory
from cskd_data.dataset import Dataset
from cskd_data.errors import ImageFault
from cskd_data.images import picture
from cskd_data.many import DECODERS, in_threads
from cskd_data.names import counted

_SHOWN = 20

Progress = Callable[[int, int], None]


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


def usable(dataset: Dataset, progress: Progress | None = None, *, use_memory: bool = False) -> Usable:
    """Decode every image, and leave out what cannot be decoded or has another size than the data set says.

    This is what training, evaluation and `cskd-deploy eval` go by where broken images are skipped.

    Args:
        dataset: read with `skip_missing`, so that images without a file are out already.
        progress: called with (images done, images in all).
        use_memory: decode no image of a large set where this was done before and no file has changed since.

    Raises:
        DataError: no image is left; the images were not found.
    """
    mark = memory.fingerprint(dataset) if use_memory and len(dataset.images) >= memory.REMEMBERED_FROM else ""
    found = memory.remembered(mark, memory.USABLE) if mark else None
    if found is None:
        broken, odd, lasting = _looked_at(dataset, progress)
        if mark and lasting:
            memory.remember(mark, memory.USABLE, [broken, odd])
    else:
        broken, odd = found
    faults = {dataset.image_keys[dataset.images[place]["id"]]: words for place, words in _named(dataset, broken)}
    return Usable(dataset.without(faults), tuple(faults.values()), tuple(words for _, words in _named(dataset, odd)))


def _named(dataset: Dataset, found: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
    """The words on images with their names before them: `image NAME FAULT`."""
    return [(place, f"image {dataset.images[place]['file_name']} {words}") for place, words in found]


def _looked_at(
    dataset: Dataset, progress: Progress | None
) -> tuple[list[tuple[int, str]], list[tuple[int, str]], bool]:
    """What makes images unusable, what is odd about others, and whether all of it lies in the files: reading one may
    succeed another time.

    Images are given by their place in `dataset.images`, which a fingerprint knows. It knows no ids: the same files may
    be listed under others.
    """

    def look(image: Mapping[str, Any]) -> tuple[int, int, tuple[str, ...]] | ImageFault:
        try:
            found = picture(dataset.path(image))
        except ImageFault as fault:
            return fault
        return found.pixels.shape[1], found.pixels.shape[0], found.warnings

    broken: list[tuple[int, str]] = []
    odd: list[tuple[int, str]] = []
    lasting = True
    looked = in_threads(look, dataset.images, DECODERS)
    for place, (image, found) in enumerate(zip(dataset.images, looked, strict=True)):
        if isinstance(found, ImageFault):
            broken.append((place, str(found)))
            lasting = lasting and not isinstance(found.__cause__, OSError)
        else:
            width, height, warnings = found
            if (width, height) != (image["width"], image["height"]):
                stated = f"the annotations say {image['width']} x {image['height']}"
                broken.append((place, f"is {width} x {height} pixels, but {stated}"))
            odd += [(place, warning) for warning in warnings]
        if progress is not None:
            progress(place + 1, len(dataset.images))
    return broken, odd, lasting


def clean(dataset: Dataset, out: Path, progress: Progress | None = None) -> Cleaned:
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
