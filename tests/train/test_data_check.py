"""`data check`, and the check that begins every run: each bad input ends in one message that names the fault."""

from __future__ import annotations

import copy
import json

import cv2
import numpy as np
import pytest

from cskd_train.data.check import check_annotations
from cskd_train.errors import TrainError

COCO = {
    "images": [
        {"id": 7, "file_name": "a.jpg", "width": 64, "height": 48},
        {"id": 3, "file_name": "b.png", "width": 40, "height": 56},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 12, "bbox": [2.0, 3.0, 20.0, 10.0], "area": 200.0, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 5, "bbox": [10.0, 8.0, 40.0, 40.0], "area": 1600.0, "iscrowd": 0},
    ],
    "categories": [{"id": 12, "name": "cat"}, {"id": 5, "name": "dog"}],
}


@pytest.fixture
def coco_set(tmp_path):
    """A set of two images as (annotation file, image folder, function that writes changed annotations)."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    cv2.imwrite(str(folder / "a.jpg"), rng.integers(0, 256, (48, 64, 3), np.uint8))
    cv2.imwrite(str(folder / "b.png"), rng.integers(0, 256, (56, 40, 3), np.uint8))
    file = tmp_path / "coco.json"

    def write(change=None):
        data = copy.deepcopy(COCO)
        if change is not None:
            change(data)
        file.write_text(json.dumps(data))

    write()
    return file, folder, write


def refused(command_line, file, folder, *options) -> str:
    """What `data check` says on standard error when it refuses the set."""
    code, out, err = command_line("data", "check", file, "--images", folder, *options)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert "Traceback" not in err
    return err


def test_a_sound_set_is_reported_with_its_numbers(coco_set, command_line):
    file, folder, _ = coco_set
    code, out, _ = command_line("data", "check", file, "--images", folder, "--decode", "--json")
    report = json.loads(out)
    assert code == 0
    assert (report["images"], report["boxes"], report["images_without_boxes"]) == (2, 2, 1)
    assert report["boxes_per_class"] == {"cat": 1, "dog": 1}
    assert report["box_sizes"] == {"small": 1, "medium": 1, "large": 0}
    assert report["warnings"] == []
    assert report["decoded"] is True


def test_category_ids_with_gaps_are_mapped_to_labels_in_the_order_of_the_classes(coco_set, command_line):
    file, folder, _ = coco_set
    report = check_annotations(file, folder, classes=("dog", "cat"))
    assert list(report.category_ids.items()) == [("dog", 5), ("cat", 12)]
    code, out, _ = command_line("data", "check", file, "--images", folder, "--classes", "dog,cat")
    assert code == 0
    assert [line.split() for line in out.splitlines()[3:5]] == [["0", "dog", "5", "1"], ["1", "cat", "12", "1"]]


def test_a_missing_annotation_file_is_named(coco_set, command_line):
    file, folder, _ = coco_set
    file.unlink()
    assert f"annotation file {file} does not exist" in refused(command_line, file, folder)


def test_broken_json_is_reported_with_line_and_column(coco_set, command_line):
    file, folder, _ = coco_set
    file.write_text('{"images": [],\n "annotations": [}')
    assert "line 2, column 18" in refused(command_line, file, folder)


def test_a_file_that_is_not_coco_is_told_what_it_lacks(coco_set, command_line):
    file, folder, write = coco_set
    write(lambda data: data.pop("annotations"))
    assert "it has no list 'annotations' (found: 'images', 'categories')" in refused(command_line, file, folder)
    file.write_text("[1, 2]")
    assert "expected an object with images, annotations, categories, found a list" in refused(
        command_line, file, folder
    )
    file.write_bytes(b"\xff\xd8\xff\xe0")
    assert "is not JSON: it is not text" in refused(command_line, file, folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["annotations"][1].pop("area"), "annotation 2 has no area"),
        (lambda d: d["images"][0].pop("height"), "image 7 has no height"),
        (lambda d: d["annotations"].append(5), "annotations[2] is a int, expected an object"),
        (
            lambda d: d["annotations"][0].update(bbox=[1, 2, 3]),
            "annotation 1 has bbox [1, 2, 3] (expected four numbers",
        ),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, float("nan"), 4]), "annotation 1 has bbox [1, 2, nan, 4]"),
        (lambda d: d["annotations"][0].update(image_id=99), "annotation 1 names image id 99, which is not listed"),
        (lambda d: d["annotations"][0].update(category_id=1), "annotation 1 names category id 1, which is not listed"),
        (lambda d: d["annotations"][0].update(id=2), "annotations have the id 2 2 times"),
        (lambda d: d["images"][0].update(id=3), "images have the id 3 2 times"),
        (lambda d: d["categories"][0].update(name="dog"), "categories have the name 'dog' 2 times"),
        (lambda d: d["images"].clear(), "images is an empty list"),
        (lambda d: d["annotations"].clear(), "there is nothing to learn or to find"),
        (lambda d: d["images"][0].update(file_name="gone.jpg"), "image gone.jpg does not exist"),
        (lambda d: d["images"][0].update(width=65), "image a.jpg is 64 x 48 pixels, but the annotations say 65 x 48"),
    ],
)
def test_a_fatal_fault_is_named(coco_set, command_line, change, said):
    file, folder, write = coco_set
    write(change)
    assert said in refused(command_line, file, folder)


def test_many_faults_are_counted_and_the_first_five_shown(coco_set):
    file, folder, write = coco_set
    write(
        lambda data: data["images"].extend(
            {**data["images"][0], "id": n, "file_name": f"{n}.jpg"} for n in range(10, 17)
        )
    )
    with pytest.raises(TrainError) as error:
        check_annotations(file, folder)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{file} cannot be used, 7 faults (images are looked for in {folder}):"
    assert lines[1:] == [f"  image {n}.jpg does not exist" for n in range(10, 15)] + ["  ... and 2 more"]


def test_a_class_that_the_file_lacks_is_refused_with_both_lists(coco_set, command_line):
    file, folder, _ = coco_set
    message = refused(command_line, file, folder, "--classes", "cat,cow")
    assert "has no category 'cow'" in message
    assert "the config's classes: 'cat', 'cow'" in message
    assert "the file's categories: 'cat', 'dog'" in message


def test_a_missing_image_folder_is_one_fault(coco_set, command_line):
    file, folder, _ = coco_set
    assert f"the image folder {folder}x of {file} does not exist" in refused(command_line, file, f"{folder}x")


def test_a_truncated_or_empty_image_is_named_without_decoding(coco_set, command_line):
    file, folder, _ = coco_set
    whole = (folder / "a.jpg").read_bytes()
    (folder / "a.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "b.png").write_bytes(b"")
    message = refused(command_line, file, folder)
    assert "image a.jpg is truncated (the JPEG has no end marker)" in message
    assert "image b.png is empty (0 bytes)" in message


def test_an_image_that_ends_inside_its_header_or_png_data_is_truncated(coco_set):
    file, folder, _ = coco_set
    for name, length, fault in (("a.jpg", 100, "ends inside its header"), ("b.png", 1000, "the PNG has no end chunk")):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:length])
        with pytest.raises(TrainError, match=fault):
            check_annotations(file, folder)
        (folder / name).write_bytes(whole)


def test_bytes_behind_the_end_of_a_jpeg_are_no_fault(coco_set):
    file, folder, _ = coco_set
    with (folder / "a.jpg").open("ab") as image:
        image.write(b"\0" * 40)
    assert check_annotations(file, folder).images == 2


def test_decoding_finds_what_a_glance_does_not(coco_set, command_line):
    file, folder, _ = coco_set
    whole = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(whole[:60] + b"\0" * 2000 + whole[2060:])
    assert check_annotations(file, folder).images == 2
    assert "image b.png cannot be decoded as an image" in refused(command_line, file, folder, "--decode")


def test_the_size_of_a_photograph_that_exif_turns_is_the_turned_one(coco_set):
    file, folder, write = coco_set
    jpeg = (folder / "a.jpg").read_bytes()
    tiff = b"MM\0\x2a\0\0\0\x08" + b"\0\x01" + b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0" + b"\0\0\0\0"
    exif = b"Exif\0\0" + tiff
    (folder / "a.jpg").write_bytes(jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:])
    assert cv2.imread(str(folder / "a.jpg")).shape[:2] == (64, 48)  # what training will see
    with pytest.raises(TrainError, match=r"image a.jpg is 48 x 64 pixels, but the annotations say 64 x 48"):
        check_annotations(file, folder)
    write(lambda data: data["images"][0].update(width=48, height=64))
    assert check_annotations(file, folder, decode_images=True).images == 2


@pytest.mark.parametrize(
    ("bbox", "area", "fault"),
    [
        ([30.0, 20.0, 0.0, 0.0], 0.0, "has no area"),
        ([30.0, 20.0, 0.0, 9.0], 9.0, "has no area"),
        ([30.0, 20.0, -5.0, 9.0], 45.0, "is inverted"),
        ([64.0, 20.0, 5.0, 9.0], 45.0, "lies outside the image (64 x 48)"),
        ([-5.0, 20.0, 5.0, 9.0], 45.0, "lies outside the image (64 x 48)"),
        ([5.0, 20.0, 5.0, 9.0], 0.0, "comes with an area of 0"),
    ],
)
def test_a_degenerate_box_is_kept_out_with_a_warning_that_names_it(coco_set, command_line, bbox, area, fault):
    file, folder, write = coco_set
    write(lambda data: data["annotations"][1].update(bbox=bbox, area=area))
    code, out, _ = command_line("data", "check", file, "--images", folder)
    numbers = ", ".join(f"{number:g}" for number in bbox)
    assert code == 0
    assert f"warning: annotation 2 of a.jpg is kept out: its box [{numbers}] {fault}" in out
    assert check_annotations(file, folder).boxes_per_class == {"cat": 1, "dog": 0}


def test_of_many_degenerate_boxes_ten_are_named_and_all_are_in_the_report(coco_set):
    file, folder, write = coco_set
    flat = {**COCO["annotations"][0], "bbox": [1.0, 1.0, 0.0, 0.0], "area": 0.0}
    write(lambda data: data["annotations"].extend({**flat, "id": number} for number in range(10, 23)))
    report = check_annotations(file, folder)
    assert len(report.degenerate) == len(report.to_dict()["degenerate"]) == 13
    assert len(report.warnings) == 11
    assert report.warnings[-1].startswith("3 more boxes are kept out")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.update(category_id=12), "no box of class dog"),
        (lambda a: a.update(bbox=[3.0, 3.0, 0.5, 9.0]), "1 boxes are less than a pixel wide or high"),
        (lambda a: a.update(bbox=[3.0, 3.0, 90.0, 9.0]), "1 of 2 boxes reach over their image's edge"),
        (lambda a: a.update(id=0), "an annotation has the id 0"),
    ],
)
def test_what_is_odd_but_trains_is_a_warning(coco_set, change, said):
    file, folder, write = coco_set
    write(lambda data: change(data["annotations"][1]))
    assert [note for note in check_annotations(file, folder).warnings if said in note]


def test_the_two_boxes_without_area_of_bccd_are_found_by_name(bccd_root, command_line):
    named = {}
    for split, boxes in (("train", 2804), ("val", 1137), ("test", 945)):
        file = bccd_root / "annotations" / f"{split}.json"
        code, out, _ = command_line("data", "check", file, "--images", bccd_root / "images", "--json")
        report = json.loads(out)
        assert (code, report["boxes"]) == (0, boxes)
        named[split] = [(box["annotation_id"], box["image"]) for box in report["degenerate"]]
    assert named == {"train": [(2288, "BloodImage_00343.jpg")], "val": [(887, "BloodImage_00338.jpg")], "test": []}
