"""A file found by a part of its name only: no folder speaks against it, no other name means it, and a note says it."""

from __future__ import annotations

import json

import pytest

from cskd_data import DataError, read

from .factories import note_of, write, write_photo

# File names of COCO


def coco(root, names, file="set.json"):
    """A COCO file of these images, with a box on each."""
    images = [{"id": number, "file_name": name, "width": 64, "height": 48} for number, name in enumerate(names)]
    boxes = [{"id": one["id"], "image_id": one["id"], "category_id": 1, "bbox": [5, 5, 20, 20]} for one in images]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    return write(root / file, json.dumps(content))


def pictures(root, *names):
    for number, name in enumerate(names):
        write_photo(root / name, number)
    return root


def files_of(dataset):
    return [image["file_name"] for image in dataset.images]


@pytest.mark.parametrize("prefix", ["", "/mnt/shots/", "C:\\shots\\"])
def test_a_lost_frame_is_not_replaced_by_that_of_another_camera(tmp_path, prefix):
    folder = pictures(tmp_path / "pics", "cam1/0.jpg", "cam2/0.jpg", "cam2/1.jpg", "cam2/2.jpg")
    file = coco(tmp_path, [f"{prefix}cam1/{number}.jpg" for number in range(3)])
    with pytest.raises(DataError, match=r"2 faults:\n  image .*cam1/1\.jpg does not exist"):
        read(file, folder)
    kept = read(file, folder, skip_missing=True)
    assert files_of(kept) == ["cam1/0.jpg"]
    assert note_of(kept, "left out").startswith("2 of 3 images left out")


def test_a_file_in_a_folder_that_other_names_have_is_theirs(tmp_path):
    folder = pictures(tmp_path / "pics", "cam2/0.jpg", "cam2/1.jpg")
    with pytest.raises(DataError, match=r"1 fault:\n  image cam1/1\.jpg does not exist"):
        read(coco(tmp_path, ["cam2/0.jpg", "cam1/1.jpg"]), folder)


def test_names_in_groups_are_not_found_in_a_group_of_another_name(tmp_path):
    folder = pictures(tmp_path / "pics", "x/0.jpg", "y/1.jpg")
    with pytest.raises(DataError, match="2 faults"):
        read(coco(tmp_path, ["cam1/0.jpg", "cam2/1.jpg"]), folder)


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["/mnt/all/0.jpg", "/mnt/all/1.jpg"], ["deep/0.jpg", "deeper/down/1.jpg"]),
        (["cam1/0.jpg", "cam2/1.jpg"], ["0.jpg", "1.jpg"]),
        (["train/0.jpg", "val/1.jpg"], ["all/0.jpg", "all/1.jpg"]),
        (["old/cam1/0.jpg", "old/cam2/0.jpg"], ["2026/cam1/0.jpg", "2026/cam2/0.jpg"]),
        (["images/cam1/0.jpg", "images/cam2/1.jpg"], ["new/cam1/images/0.jpg", "new/cam2/images/1.jpg"]),
    ],
)
def test_a_set_that_was_laid_out_anew_is_found_and_said(tmp_path, names, files):
    folder = pictures(tmp_path / "pics", *files)
    dataset = read(coco(tmp_path, names), folder)
    assert files_of(dataset) == files
    assert note_of(dataset, "rest of the name").startswith("2 file names with folders that are not there")


def test_another_case_of_a_name_is_looked_for_in_its_own_folder(tmp_path):
    folder = pictures(tmp_path / "pics", "cam1/A.JPG", "cam2/a.jpg")
    dataset = read(coco(tmp_path, ["cam1/a.jpg", "cam2/a.jpg"]), folder)
    assert files_of(dataset) == ["cam1/A.JPG", "cam2/a.jpg"]


def test_a_guess_is_no_file_that_another_name_spells_otherwise(tmp_path):
    folder = pictures(tmp_path / "pics", "a.jpg", "sub/b.jpg")
    with pytest.raises(DataError, match=r"1 fault:\n  image C:\\x\\a\.jpg does not exist"):
        read(coco(tmp_path, ["sub/../a.jpg", "C:\\x\\a.jpg"]), folder)
