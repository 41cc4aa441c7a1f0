"""Check the image files of a data set: there, whole, and of the size that the annotations give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cskd_data.dataset import GIVE_IMAGES, Dataset, Note
from cskd_data.errors import WITHOUT_THEM, ImageFault
from cskd_data.header import Header, read_header
from cskd_data.images import MOST_LOST, picture
from cskd_data.many import DECODERS, READERS, in_threads
from cskd_data.names import counted

_REPLACE = f"Replace these images, {WITHOUT_THEM}"
_TURNED = (
    "Boxes drawn on the raw picture need the EXIF orientation taken out of the file; else draw them on the picture as "
    f"viewers show it, {WITHOUT_THEM}"
)


@dataclass(frozen=True)
class ImageFindings:
    """What is wrong with image files, and what is odd."""

    faults: tuple[str, ...] = ()
    way_out: str = ""
    notes: tuple[Note, ...] = ()

    def to_data(self) -> list[Any]:
        """The notes as plain data."""
        return [[note.message, note.count, list(note.examples)] for note in self.notes]

    @classmethod
    def from_data(cls, notes: list[Any]) -> ImageFindings:
        """Of a check without faults."""
        return cls(notes=tuple(Note(message, count, tuple(examples)) for message, count, examples in notes))


def check_images(dataset: Dataset, decode: bool, progress: Callable[[int, int], None] | None = None) -> ImageFindings:
    """Open every image of a data set.

    Args:
        decode: decode each in full.
        progress: called with (images done, images in all).
    """
    if dataset.image_root is None:
        return ImageFindings((f"no image of {dataset.source} was found beside it: {GIVE_IMAGES}",))
    faults: list[str] = []
    cut: list[str] = []
    odd: list[str] = []
    quiet: list[str] = []
    turned = False
    done_before: set[str] = set()

    def look(image: Mapping[str, Any]) -> tuple[Header, tuple[str, ...]] | ImageFault:
        try:
            return _look(dataset.path(image), decode)
        except ImageFault as fault:
            return fault

    seen = in_threads(look, dataset.images, DECODERS if decode else READERS)
    for done, (image, found) in enumerate(zip(dataset.images, seen, strict=True), start=1):
        name = image["file_name"]
        if isinstance(found, ImageFault):
            faults.append(f"image {name} {found}")
        else:
            header, warnings = found
            if name not in done_before:
                cut += [name] if header.kind == "JPEG" and warnings else []
                odd += [f"{name} {warning}" for warning in warnings if header.kind != "JPEG"]
                quiet += [name] if _is_turned_in_silence(header) else []
            if (header.width, header.height) != (image["width"], image["height"]):
                faults.append(f"image {name} {_size_fault(header, image)}")
                turned = turned or header.turned
        done_before.add(name)
        if progress is not None:
            progress(done, len(dataset.images))
    notes = []
    if cut:
        what = f"without the last bytes, used all the same: at most {MOST_LOST:.0%} of the pixels are missing"
        notes.append(Note.of(f"{counted(len(cut), 'image')} {what}", cut))
    if odd:
        notes.append(Note.of(f"{counted(len(odd), 'image')} that may not be what was meant", odd))
    if quiet:
        what = "turned or mirrored by EXIF without a change of size: boxes must fit the picture that viewers show"
        notes.append(Note.of(f"{counted(len(quiet), 'image')} {what}", quiet))
    where = f"Images are looked for in {dataset.image_root}. {_TURNED if turned else _REPLACE}"
    return ImageFindings(tuple(faults), where if faults else "", tuple(notes))


def _look(path: Path, decode: bool) -> tuple[Header, tuple[str, ...]]:
    """The header of an image, and what is odd about it; decoded where asked for, or where the header does not tell."""
    header = read_header(path)
    has_an_end = header.kind in ("JPEG", "PNG", "WebP")
    oddly_turned = header.orientation != 1 and header.kind == "WebP"
    if not (decode or not (header.whole and has_an_end) or header.bits > 8 or oddly_turned):
        return header, ()
    found = picture(path)
    height, width = found.pixels.shape[:2]
    return replace(header, width=width, height=height), found.warnings


def _is_turned_in_silence(header: Header) -> bool:
    same = not header.turned or header.width == header.height
    return header.orientation != 1 and header.kind != "WebP" and same


def _size_fault(header: Header, image: Mapping[str, Any]) -> str:
    stated = f"the annotations say {image['width']} x {image['height']}"
    if header.turned and (header.height, header.width) == (image["width"], image["height"]):
        return f"is {header.width} x {header.height} pixels as its EXIF orientation turns it, but {stated}"
    return f"is {header.width} x {header.height} pixels, but {stated}: its boxes would not fit"
