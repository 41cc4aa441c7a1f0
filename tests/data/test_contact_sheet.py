"""A contact sheet shows boxes where they are, every class, and what cannot be drawn."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from cskd_data import DataError, read
from cskd_data.contact_sheet import contact_sheet, tile_size

from .factories import write

TILE = (360, 480)  # of images of 240 x 180


@pytest.fixture
def plain(tmp_path):
    """Eight white images of 240 x 180 with a black rectangle, its box around it; `dog` in one of them only."""
    images, annotations = [], []
    for number in range(1, 9):
        pixels = np.full((180, 240, 3), 255, np.uint8)
        pixels[60:120, 80:180] = 0
        write(tmp_path / "images" / f"{number}.png", cv2.imencode(".png", pixels)[1].tobytes())
        images.append({"id": number, "file_name": f"{number}.png", "width": 240, "height": 180})
        label = 2 if number == 5 else 1
        annotations.append({"image_id": number, "category_id": label, "bbox": [80, 60, 100, 60]})
    categories = [{"id": 1, "name": "café"}, {"id": 2, "name": "狗"}]
    data = {"images": images, "annotations": annotations, "categories": categories}
    return write(tmp_path / "a.json", json.dumps(data)), data


def tiles(path):
    """The pictures of a sheet of one row, without head and captions."""
    sheet = cv2.imread(str(path))
    top = sheet.shape[0] - TILE[0] - 22 - 12
    return [sheet[top : top + TILE[0], left : left + TILE[1]] for left in range(12, sheet.shape[1] - 12, TILE[1] + 12)]


def test_boxes_are_drawn_around_what_they_are_of(plain, tmp_path):
    sheet = contact_sheet(read(plain[0]), tmp_path / "sheet.png", count=2)
    assert len(sheet.shown) == 2
    first, second = tiles(tmp_path / "sheet.png")
    for tile in (first, second):  # twice the size of the image
        colour = np.ptp(tile.astype(int), axis=2) > 60
        for y, x in ((120, 260), (240, 260), (180, 160), (180, 360)):
            assert colour[y - 2 : y + 3, x - 2 : x + 3].any()
        inside = tile[130:230, 170:350]
        assert (inside == 0).mean() > 0.85  # but for a tag
        assert not colour[260:].any()
    assert (first != second).any(axis=2).sum() > 500  # two classes, two colours


def test_every_class_is_shown_and_another_seed_shows_other_images(plain, tmp_path):
    dataset = read(plain[0])
    shown = [contact_sheet(dataset, tmp_path / "a.png", count=3, seed=seed).shown for seed in range(4)]
    assert all("5.png" in names for names in shown)
    assert len(set(shown)) > 1
    assert contact_sheet(dataset, tmp_path / "a.png", count=3, seed=2).shown == shown[2]
    assert len(contact_sheet(dataset, tmp_path / "a.png", count=50).shown) == 8


def test_a_box_that_leaves_its_image_comes_first_and_its_caption_is_red(plain, tmp_path):
    file, data = plain
    data["annotations"][6]["bbox"] = [80, 60, 300, 60]
    file.write_text(json.dumps(data))
    sheet = contact_sheet(read(file), tmp_path / "sheet.png", count=2, seed=1)
    assert "7.png" in sheet.shown
    drawn = cv2.imread(str(tmp_path / "sheet.png"))[-32:].astype(int)
    assert ((drawn[..., 2] - drawn[..., 0] > 100) & (drawn[..., 2] > 150)).sum() > 50


def test_a_broken_image_is_a_crossed_tile_with_its_fault(plain, tmp_path):
    (tmp_path / "images" / "5.png").write_bytes(b"")
    sheet = contact_sheet(read(plain[0]), tmp_path / "sheet.png", count=2)
    assert sheet.faults == ("image 5.png is empty (0 bytes)",)
    for number in range(1, 9):
        (tmp_path / "images" / f"{number}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"no image of .* can be drawn: image .* is empty"):
        contact_sheet(read(plain[0]), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize("shape", [(1, 1), (3, 4000), (4000, 3), (33, 32)])
def test_any_shape_of_image_is_drawn(tmp_path, shape):
    height, width = shape
    write(tmp_path / "a.png", cv2.imencode(".png", np.zeros((*shape, 3), np.uint8))[1].tobytes())
    data = {
        "images": [{"id": 1, "file_name": "a.png", "width": width, "height": height}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, width, height]}],
        "categories": [{"id": 1, "name": "x" * 300}],
    }
    contact_sheet(read(write(tmp_path / "a.json", json.dumps(data))), tmp_path / "sheet.png")
    assert cv2.imread(str(tmp_path / "sheet.png")).shape[1] == tile_size(data["images"])[1] + 24


@pytest.mark.parametrize(
    ("sizes", "tile"),
    [
        ([(640, 480)], (360, 480)),
        ([(480, 640), (480, 640), (640, 480)], (480, 360)),
        ([(640, 640)], (416, 416)),
        ([(8000, 100)], (294, 588)),
        ([(100, 8000)], (497, 348)),
    ],
)
def test_tiles_have_the_shape_of_most_images_within_bounds(sizes, tile):
    assert tile_size([{"width": width, "height": height} for width, height in sizes]) == tile


def test_no_tag_hides_another_box(tmp_path):
    pixels = np.full((180, 240, 3), 255, np.uint8)
    write(tmp_path / "a.png", cv2.imencode(".png", pixels)[1].tobytes())
    boxes = [[80, 60, 60, 60], [82, 46, 14, 12], [78, 122, 20, 9]]  # one where a tag is usual, above, and one below
    data = {
        "images": [{"id": 1, "file_name": "a.png", "width": 240, "height": 180}],
        "annotations": [{"image_id": 1, "category_id": n, "bbox": box} for n, box in enumerate(boxes, start=1)],
        "categories": [{"id": n, "name": name} for n, name in enumerate(("wide", "up", "low"), start=1)],
    }
    contact_sheet(read(write(tmp_path / "a.json", json.dumps(data))), tmp_path / "sheet.png")
    (tile,) = tiles(tmp_path / "sheet.png")
    for x, y, w, h in boxes:
        inside = tile[2 * y + 5 : 2 * (y + h) - 5, 2 * x + 5 : 2 * (x + w) - 5]
        assert (inside == 255).all(axis=2).mean() > 0.9


def test_numbers_without_sense_are_refused(plain, tmp_path):
    for count, columns in ((0, 4), (5, 0), (1000, 4)):
        with pytest.raises(DataError, match="give 1 to 400 images and at least one column"):
            contact_sheet(read(plain[0]), tmp_path / "a.png", count, columns)


def test_the_score_of_a_detection_is_drawn_at_its_box(plain, tmp_path, monkeypatch):
    from cskd_data import contact_sheet as module

    file, data = plain
    data["annotations"][0]["score"] = 0.8765
    file.write_text(json.dumps(data))
    written, draw = [], module.write
    monkeypatch.setattr(
        module, "write", lambda picture, text, *rest: [written.append(text), draw(picture, text, *rest)]
    )
    contact_sheet(read(file), tmp_path / "sheet.png")
    assert len([text for text in written if text.endswith(" 0.88")]) == 1
