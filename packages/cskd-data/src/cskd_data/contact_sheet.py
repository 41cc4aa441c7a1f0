"""A contact sheet: images of a data set with their boxes and class names, on which wrong boxes are seen at once."""

from __future__ import annotations

import colorsys
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cskd_data.boxes import number, reaches_over
from cskd_data.dataset import Dataset
from cskd_data.errors import DataError, ImageFault
from cskd_data.files import write_atomically
from cskd_data.images import picture
from cskd_data.lettering import Colour, fitting, plain, printable, width_of, write
from cskd_data.names import counted

_TILE_AREA = 360 * 480  # pixels
_NARROWEST, _WIDEST = 0.7, 2.0  # width to height of a tile
_MARGIN, _LINE = 12, 22
_PAPER, _INK, _PALE, _ALARM = (250, 250, 250), (40, 40, 40), (130, 130, 130), (40, 40, 220)
_COLOURS = "2a7fff ff7f0e 22a836 e6194b 9b4dff ffd60a 12b5c9 f032e6 9a6324 9ee619 2b2fb0 ff8fa8"  # red, green, blue
_CROWDED = 8  # boxes; in an image of more, those that are small beside their tag have none
_MOST_COVERED = 0.5  # of any box, by the tag of another or its own; else the box has its colour only

Size = tuple[int, int]  # height, width
Place = tuple[int, int, int, int]  # left, top, right, bottom
Placed = tuple[Place, int, bool, str]  # a box in its tile, its label, whether it is a crowd, and what its tag says


@dataclass(frozen=True)
class Sheet:
    """What `contact_sheet` drew."""

    written: str
    shown: tuple[str, ...]  # file names, from left to right and from top to bottom
    faults: tuple[str, ...]  # images that could not be decoded

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {"written": self.written, "shown": list(self.shown), "faults": list(self.faults)}

    def __str__(self) -> str:
        return "\n".join([f"{self.written}: {counted(len(self.shown), 'image')}", *(f"  {one}" for one in self.faults)])


def contact_sheet(
    dataset: Dataset,
    out: Path,
    count: int = 12,
    columns: int = 4,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Sheet:
    """Draw images with their boxes into a PNG file.

    Images are chosen so that every class is to be seen, the rare ones first; those with boxes that leave the image go
    before others. A crowd is drawn with a thin line; a box of a detector has its score after its name. The legend has
    each class with its number of boxes in all images.

    Args:
        count: how many images; all where there are fewer.
        seed: another one chooses other images.
        progress: called with (images done, images in all).

    Raises:
        DataError: nonsensical numbers, no image that can be decoded, or `out` cannot be written.
    """
    if count < 1 or columns < 1 or count > 400:
        raise DataError(f"{count} images in {columns} columns: give 1 to 400 images and at least one column")
    boxes: dict[int, list[Mapping[str, Any]]] = {image["id"]: [] for image in dataset.images}
    for one in dataset.annotations:
        boxes[one["image_id"]].append(one)
    chosen = _choose(dataset, boxes, count, seed)
    colours = [_colour(label) for label in range(len(dataset.classes))]
    names = [printable(name, label) for label, name in enumerate(dataset.classes)]
    columns = min(columns, len(chosen))
    tile = tile_size(chosen)
    tiles, faults = [], []
    for done, image in enumerate(chosen, start=1):
        try:
            found = picture(dataset.path(image))
            tiles.append(_tile(tile, image, found.pixels, boxes[image["id"]], names, colours))
        except ImageFault as fault:
            faults.append(f"image {image['file_name']} {fault}")
            tiles.append(_broken(tile, image, str(fault)))
        if progress is not None:
            progress(done, len(chosen))
    if len(faults) == len(tiles):
        raise DataError(f"no image of {dataset.source} can be drawn: {faults[0]}")
    width = columns * (tile[1] + _MARGIN) + _MARGIN
    sheet = np.vstack([_head(dataset, names, colours, width, len(chosen)), _grid(tiles, columns)])
    written, png = cv2.imencode(".png", sheet)
    if not written:
        raise DataError(f"OpenCV {cv2.__version__} cannot write PNG files")
    write_atomically(out, lambda file: file.write(png.tobytes()))
    return Sheet(str(out), tuple(image["file_name"] for image in chosen), tuple(faults))


def tile_size(images: Sequence[Mapping[str, Any]]) -> Size:
    """Height and width of a tile, in the shape of most images: upright for upright ones."""
    middle = sorted(image["width"] / image["height"] for image in images)[len(images) // 2]
    shape = min(max(middle, _NARROWEST), _WIDEST)
    return round((_TILE_AREA / shape) ** 0.5), round((_TILE_AREA * shape) ** 0.5)


def _choose(
    dataset: Dataset, boxes: Mapping[int, Sequence[Mapping[str, Any]]], count: int, seed: int
) -> list[dict[str, Any]]:
    """Images that show every class, the least shown class first."""
    rest = list(dataset.images)
    random.Random(seed).shuffle(rest)
    rest.sort(
        key=lambda image: (
            not any(reaches_over(one["bbox"], image["width"], image["height"]) for one in boxes[image["id"]])
        )
    )
    classes = {image["id"]: {one["category_id"] for one in boxes[image["id"]]} for image in rest}
    shown: Counter[int] = Counter()
    in_all = Counter(one for found in classes.values() for one in found)
    chosen: list[dict[str, Any]] = []
    while rest and len(chosen) < count:
        wanted = min((one for one in in_all if in_all[one]), key=lambda one: (shown[one], in_all[one]), default=None)
        image = next((image for image in rest if wanted in classes[image["id"]]), rest[0])
        rest.remove(image)
        chosen.append(image)
        shown.update(classes[image["id"]])
        in_all.subtract(classes[image["id"]])
    return chosen


def _tile(
    room: Size,
    image: Mapping[str, Any],
    pixels: np.ndarray,
    boxes: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    colours: Sequence[Colour],
) -> np.ndarray:
    """An image with its boxes over a line with its name. Boxes keep their place on the stated size of the image."""
    tile = np.full((room[0] + _LINE, room[1], 3), 232, np.uint8)
    height, width = pixels.shape[:2]
    scale = min(room[0] / height, room[1] / width, 4)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    shown = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    left, top = (room[1] - size[0]) // 2, (room[0] - size[1]) // 2
    tile[top : top + size[1], left : left + size[0]] = shown
    placed: list[Placed] = []
    for one in boxes:
        x, y, w, h = one["bbox"]
        ends = (left + x * scale, top + y * scale, left + (x + w) * scale, top + (y + h) * scale)
        x1, y1, x2, y2 = (round(min(max(end, -4), 4000)) for end in ends)
        label, score = one["category_id"] - 1, number(one.get("score"))
        name = fitting(names[label], 0.42, 150) + ("" if score is None else f" {score:.2f}")
        placed.append(((x1, y1, x2, y2), label, bool(one["iscrowd"]), name))
    placed.sort(key=lambda one: -(one[0][2] - one[0][0]) * (one[0][3] - one[0][1]))  # the small ones on top
    for (x1, y1, x2, y2), label, crowd, _ in placed:
        if not crowd:
            cv2.rectangle(tile, (x1, y1), (x2, y2), (255, 255, 255), 4, cv2.LINE_AA)
        cv2.rectangle(tile, (x1, y1), (x2, y2), colours[label], 1 if crowd else 2, cv2.LINE_AA)
    _name_boxes(tile, placed, colours)
    tile[room[0] :] = _PAPER
    amount = counted(len(boxes), "box")
    wrong = sum(reaches_over(one["bbox"], image["width"], image["height"]) for one in boxes)
    mismatch = (width, height) != (image["width"], image["height"])
    alarm = f"{wrong} over the edge" if wrong else f"stated {image['width']} x {image['height']}" if mismatch else ""
    right = f"{width} x {height}, {amount}" + (f", {alarm}" if alarm else "")
    taken = width_of(right, 0.4)
    write(tile, right, (room[1] - taken, room[0] + 15), 0.4, _ALARM if alarm else _PALE)
    name = fitting(plain(str(image["file_name"])), 0.4, room[1] - taken - 10)
    write(tile, name, (0, room[0] + 15), 0.4, _INK)
    return tile


def _name_boxes(tile: np.ndarray, placed: Sequence[Placed], colours: Sequence[Colour]) -> None:
    """A tag at each box where it hides no other tag and little of any box; in a crowded image at the large boxes."""
    taken: list[Place] = []
    limits = tile.shape[1], tile.shape[0] - _LINE
    for (x1, y1, x2, y2), label, _, text in placed:
        width, height = width_of(text, 0.42) + 6, 15
        if x2 - x1 < width * (0 if len(placed) <= _CROWDED else 0.5 if len(placed) <= 2 * _CROWDED else 1):
            continue
        around = [(x1 - 1, y1 - height), (x2 - width + 1, y1 - height), (x1 - 1, y2), (x2 - width + 1, y2)]
        around += [(x2, y1 - 1), (x1 - width, y1 - 1), (x1 - 1, y1), (x2 - width + 1, y2 - height)]
        best: tuple[float, Place] | None = None
        for x, y in around:
            x, y = min(max(x, 0), limits[0] - width), min(max(y, 0), limits[1] - height)
            place = (x, y, x + width, y + height)
            if any(_overlap(place, other) for other in taken):
                continue
            covered = max(_overlap(place, box) / max(_area(box), 1) for box, *_ in placed)
            if covered <= _MOST_COVERED and (best is None or covered < best[0]):
                best = covered, place
        if best is None:
            continue
        place = best[1]
        taken.append(place)
        cv2.rectangle(tile, place[:2], (place[2] - 1, place[3] - 1), colours[label], -1)
        light = sum(weight * level for weight, level in zip((0.11, 0.59, 0.3), colours[label], strict=True))
        write(tile, text, (place[0] + 3, place[1] + 11), 0.42, (0, 0, 0) if light > 140 else (255, 255, 255))


def _overlap(one: Place, other: Place) -> int:
    """Pixels that two rectangles share."""
    return max(min(one[2], other[2]) - max(one[0], other[0]), 0) * max(min(one[3], other[3]) - max(one[1], other[1]), 0)


def _area(place: Place) -> int:
    return (place[2] - place[0]) * (place[3] - place[1])


def _broken(room: Size, image: Mapping[str, Any], fault: str) -> np.ndarray:
    tile = np.full((room[0] + _LINE, room[1], 3), 232, np.uint8)
    tile[room[0] :] = _PAPER
    cv2.line(tile, (0, 0), (room[1] - 1, room[0] - 1), (210, 210, 210), 1, cv2.LINE_AA)
    cv2.line(tile, (room[1] - 1, 0), (0, room[0] - 1), (210, 210, 210), 1, cv2.LINE_AA)
    text = fitting(fault, 0.45, room[1] - 20)
    write(tile, text, ((room[1] - width_of(text, 0.45)) // 2, room[0] // 2), 0.45, _ALARM)
    write(tile, fitting(plain(str(image["file_name"])), 0.4, room[1]), (0, room[0] + 15), 0.4, _INK)
    return tile


def _head(dataset: Dataset, names: Sequence[str], colours: Sequence[Colour], width: int, shown: int) -> np.ndarray:
    """The title, and the legend in as many lines as it takes."""
    counts = list(dataset.boxes_per_class.values())
    lines: list[list[tuple[int, str]]] = [[]]
    x = _MARGIN
    for label, name in enumerate(names):
        text = f"{name}  {counts[label]}"
        step = 18 + width_of(text, 0.45) + 22
        if x + step > width and lines[-1]:
            if len(lines) == 6:
                lines[-1].append((-1, f"and {len(names) - label} more"))
                break
            lines.append([])
            x = _MARGIN
        lines[-1].append((label, text))
        x += step
    head = np.full((_MARGIN + 28 + 22 * len(lines) + 8, width, 3), _PAPER, np.uint8)
    total = f"{counted(len(dataset.images), 'image')}, {counted(len(dataset.annotations), 'box')}, {shown} shown"
    write(
        head, fitting(f"{plain(str(dataset.source))}:  {total}", 0.55, width - 2 * _MARGIN), (_MARGIN, 26), 0.55, _INK
    )
    for row, entries in enumerate(lines):
        x, y = _MARGIN, _MARGIN + 28 + 22 * row
        for label, text in entries:
            if label >= 0:
                cv2.rectangle(head, (x, y), (x + 12, y + 12), colours[label], -1)
            write(head, text, (x + 18, y + 11), 0.45, _INK if label < 0 or counts[label] else _ALARM)
            x += 18 + width_of(text, 0.45) + 22
    return head


def _grid(tiles: Sequence[np.ndarray], columns: int) -> np.ndarray:
    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // columns)
    grid = np.full((rows * (height + _MARGIN), columns * (width + _MARGIN) + _MARGIN, 3), _PAPER, np.uint8)
    for index, tile in enumerate(tiles):
        y, x = index // columns * (height + _MARGIN), _MARGIN + index % columns * (width + _MARGIN)
        grid[y : y + height, x : x + width] = tile
    return grid


def _colour(label: int) -> Colour:
    """Twelve colours that are easy to distinguish; then hues between them, darker."""
    listed = _COLOURS.split()
    if label < len(listed):
        red, green, blue = bytes.fromhex(listed[label])
        return blue, green, red
    red, green, blue = (round(255 * level) for level in colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.8, 0.6))
    return blue, green, red
