"""The images of a COCO file: numbered from 1, with whole sizes and the names of files that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cskd_data.boxes import number
from cskd_data.dataset import Note
from cskd_data.errors import WITHOUT_THEM, ImageFault, refuse
from cskd_data.ids import Key, key_of, with_aliases
from cskd_data.image_names import find_images
from cskd_data.images import image_size
from cskd_data.names import counted

_WAY_OUT = "Correct the file, or export it again"


@dataclass(frozen=True)
class Images:
    """The images of a data set."""

    entries: list[dict[str, Any]]
    root: Path | None
    ids: Mapping[Any, int]  # the file's id, as a number or as text, -> image id of the normal form
    keys: dict[int, Key]  # and back
    sizes: dict[int, tuple[int, int]]  # width and height by image id
    names: dict[int, str]  # file names by image id
    left_out: dict[Key, str]  # images without a file, by the file's id: what is wrong, as `image NAME FAULT`
    notes: list[Note] = field(default_factory=list)


def normal_images(
    raw: Sequence[Any], source: Path, images: Path | None, skip_missing: bool, searched: bool = False
) -> Images:
    """The images of a COCO file.

    Integer ids keep their order, by which pycocotools breaks ties between equal scores. Arguments as for
    `cskd_data.normalise.normalise`.

    Raises:
        DataError: an image without id or name, two of one id, none at all; a file that is not there, or that does not
            tell a size which the COCO file lacks.
    """
    refuse(source, _shape_faults(raw), _WAY_OUT)
    entries: dict[Key, dict[str, Any]] = {}
    faults, repeated = [], []
    for image in raw:
        key = key_of(image["id"])
        assert key is not None  # looked at in _shape_faults
        before = entries.setdefault(key, image)
        if before is not image:
            if before == image:
                repeated.append(str(image["file_name"]))
            else:
                faults.append(f"images have the id {key!r} twice: {before['file_name']} and {image['file_name']}")
    refuse(source, faults, "Give each image an id of its own")
    root, files, notes = find_images([str(image["file_name"]) for image in entries.values()], source, images, searched)
    if repeated:
        notes.append(Note.of(f"{counted(len(repeated), 'image')} listed twice with the same id, taken once", repeated))

    sized: dict[Key, tuple[str, int, int]] = {}
    missing, unsized = [], []
    for (key, image), file in zip(entries.items(), files, strict=True):
        if file is None and root is not None:
            missing.append((key, f"image {image['file_name']} does not exist"))
            continue
        try:
            width, height = _size(image, None if root is None or file is None else root / file)
            sized[key] = (file or image["file_name"], width, height)
        except ImageFault as fault:
            unsized.append((key, f"image {image['file_name']} {fault}"))
    if skip_missing and sized:
        lost = [fault for _, fault in missing + unsized]
        if lost:
            notes.append(Note.of(f"{len(lost)} of {counted(len(entries), 'image')} left out, with their boxes", lost))
    else:
        where = f"Images are looked for in {root}: give the folder that the file names start from, {WITHOUT_THEM}"
        refuse(source, [fault for _, fault in missing], where)
        refuse(source, [fault for _, fault in unsized], f"Replace these images, {WITHOUT_THEM}")

    order = sorted(sized) if all(isinstance(key, int) for key in sized) else list(sized)
    numbers: dict[Key, int] = {key: place for place, key in enumerate(order, start=1)}
    twice = _same_file(sized)
    if twice:
        notes.append(Note.of(f"{counted(len(twice), 'image')} listed more than once, under several ids", twice))
    return Images(
        entries=[
            {**entries[key], "id": numbers[key], "file_name": name, "width": width, "height": height}
            for key, (name, width, height) in sized.items()
        ],
        root=root,
        ids=with_aliases(numbers),
        keys={place: key for key, place in numbers.items()},
        sizes={numbers[key]: (width, height) for key, (_, width, height) in sized.items()},
        names={numbers[key]: name for key, (name, _, _) in sized.items()},
        left_out=dict(missing + unsized),
        notes=notes,
    )


def _shape_faults(raw: Sequence[Any]) -> list[str]:
    faults = [] if raw else ["images is an empty list"]
    for position, entry in enumerate(raw):
        if not isinstance(entry, dict):
            faults.append(f"images[{position}] is a {type(entry).__name__}, expected an object")
            continue
        if key_of(entry.get("id")) is None:
            wrong = f"id {entry['id']!r} (expected a number or text)" if "id" in entry else "no id"
            faults.append(f"images[{position}] has {wrong}")
            continue
        if not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
            wrong = f"file_name {entry['file_name']!r} (expected text)" if "file_name" in entry else "no file_name"
            faults.append(f"image {entry['id']} has {wrong}")
        for key in ("width", "height"):
            value = entry.get(key)
            pixels = 0.0 if value is None else number(value)
            if pixels is None or not 0 <= pixels < 1 << 31:
                faults.append(f"image {entry['id']} has {key} {value!r} (expected pixels)")
    return faults


def _size(image: Mapping[str, Any], path: Path | None) -> tuple[int, int]:
    """Width and height as the entry says; from the file where it does not, or says zero.

    Raises:
        ImageFault: the file does not tell.
    """
    width, height = (round(number(image.get(key)) or 0) for key in ("width", "height"))
    if width and height:
        return width, height
    if path is None:
        raise ImageFault("has no width and height, and its file was not found beside the annotations: give its folder")
    return image_size(path)


def _same_file(sized: Mapping[Key, tuple[str, int, int]]) -> list[str]:
    seen: dict[str, int] = {}
    for name, _, _ in sized.values():
        seen[name] = seen.get(name, 0) + 1
    return [name for name, count in seen.items() if count > 1]
