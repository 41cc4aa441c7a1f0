"""`cskd-train data check`: what it prints, its exit codes, and one message for each set that it refuses."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

COCO = {
    "images": [{"id": 7, "file_name": "a.jpg", "width": 64, "height": 48}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 12, "bbox": [2.0, 3.0, 20.0, 10.0], "area": 200.0, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 5, "bbox": [10.0, 8.0, 40.0, 0.0], "area": 0.0, "iscrowd": 0},
    ],
    "categories": [{"id": 12, "name": "cat"}, {"id": 5, "name": "dog"}],
}


@pytest.fixture
def coco_set(tmp_path):
    """An annotation file and its image folder."""
    (folder := tmp_path / "images").mkdir()
    cv2.imwrite(str(folder / "a.jpg"), np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    (file := tmp_path / "coco.json").write_text(json.dumps(COCO))
    return file, folder


def test_a_set_that_can_be_used_is_reported_with_its_warnings(coco_set, command_line):
    file, folder = coco_set
    code, out, _ = command_line("data", "check", file, "--images", folder, "--decode", "--json")
    report = json.loads(out)
    assert code == 0
    assert (report["images"], report["boxes"], report["decoded"]) == (1, 1, True)
    assert report["boxes_per_class"] == {"cat": 1, "dog": 0}
    assert report["warnings"] == [
        "1 box kept out of training and evaluation alike: annotation 2 of a.jpg: its box [10, 8, 40, 0] has no area",
        "no box of class: dog",
    ]
    code, out, _ = command_line("data", "check", file, "--images", folder)
    assert code == 0
    assert all(f"warning: {warning}" in out for warning in report["warnings"])


def test_classes_are_listed_in_the_order_asked_for(coco_set, command_line):
    file, folder = coco_set
    code, out, _ = command_line("data", "check", file, "--images", folder, "--classes", "dog,cat")
    assert code == 0
    assert [line.split() for line in out.splitlines()[3:5]] == [["0", "dog", "5", "0"], ["1", "cat", "12", "1"]]


@pytest.mark.parametrize(
    ("spoil", "options", "said"),
    [
        (lambda file, folder: file.unlink(), [], "does not exist"),
        (lambda file, folder: file.write_text("[1, 2]"), [], "found a list"),
        (lambda file, folder: (folder / "a.jpg").unlink(), [], "image a.jpg does not exist"),
        (lambda file, folder: (folder / "a.jpg").write_bytes(b""), [], "image a.jpg is empty (0 bytes)"),
        (lambda file, folder: None, ["--classes", "cat,cow"], "has no class 'cow'"),
    ],
)
def test_a_set_that_cannot_be_used_is_one_message_and_exit_code_2(coco_set, command_line, spoil, options, said):
    file, folder = coco_set
    spoil(file, folder)
    code, out, err = command_line("data", "check", file, "--images", folder, *options)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert "Traceback" not in err


def test_the_two_boxes_without_area_of_bccd_are_found_by_name(bccd_root, command_line):
    named = {}
    for split, boxes in (("train", 2804), ("val", 1137), ("test", 945)):
        file = bccd_root / "annotations" / f"{split}.json"
        code, out, _ = command_line("data", "check", file, "--images", bccd_root / "images", "--json")
        report = json.loads(out)
        assert (code, report["boxes"]) == (0, boxes)
        named[split] = [warning.split(": ")[1] for warning in report["warnings"] if "kept out" in warning]
    assert named == {
        "train": ["annotation 2288 of BloodImage_00343.jpg"],
        "val": ["annotation 887 of BloodImage_00338.jpg"],
        "test": [],
    }
