"""Cleaning leaves out what cannot be used, lists it, and what is left passes the check."""

from __future__ import annotations

import json

import pytest

from cskd_data import DataError
from cskd_data.clean import clean
from cskd_data.coco import read_coco

from .factories import encoded, photo, write, write_photo


@pytest.fixture
def broken(tmp_path):
    """Five images: whole, half a JPEG, a JPEG without its last bytes, another size, missing; two boxes in each."""
    folder = tmp_path / "images"
    whole = encoded("JPEG", photo(240, 320), quality=85)
    write(folder / "whole.jpg", whole)
    write(folder / "half.jpg", whole[: len(whole) // 2])
    write(folder / "cut.jpg", whole[:-60])
    write_photo(folder / "small.jpg", height=24, width=32)
    files = ("whole", "half", "cut", "small", "missing")
    data = {
        "images": [{"id": f"id {name}", "file_name": f"{name}.jpg", "width": 320, "height": 240} for name in files],
        "annotations": [
            {"image_id": f"id {name}", "category_id": 9, "bbox": [x, 5, 20, 20]} for name in files for x in (1, 50)
        ],
        "categories": [{"id": 9, "name": "cat"}],
    }
    return write(tmp_path / "a.json", json.dumps(data))


def test_what_cannot_be_used_is_left_out_by_name_and_the_rest_is_fit_for_use(broken, tmp_path):
    with pytest.raises(DataError):
        read_coco(broken)
    cleaned = clean(read_coco(broken, skip_missing=True), tmp_path / "clean.json")
    assert cleaned.left_out == (
        "image half.jpg is truncated (the JPEG breaks off, 52% of its pixels are missing)",
        "image small.jpg is 32 x 24 pixels, but the annotations say 320 x 240",
    )
    assert (cleaned.images, cleaned.boxes, cleaned.boxes_left_out) == (2, 4, 4)
    assert "missing.jpg does not exist" in cleaned.warnings[0]
    assert cleaned.warnings[1].startswith("image cut.jpg is truncated: 0.")
    again = read_coco(tmp_path / "clean.json")
    assert list(again.image_keys.values()) == ["id whole", "id cut"]
    assert list(again.category_keys.values()) == [9]
    report = again.check(decode=True)
    assert report.errors == ()
    for line in ("left out: 2 images with 4 boxes", "    image half.jpg is truncated"):
        assert line in str(cleaned)


def test_where_nothing_would_be_left_nothing_is_written(broken, tmp_path):
    for name in ("whole", "cut"):
        (tmp_path / "images" / f"{name}.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"no image of .* can be used, such as: image .*"):
        clean(read_coco(broken, tmp_path / "images", skip_missing=True), tmp_path / "clean.json")
    assert not (tmp_path / "clean.json").exists()
