"""A set is checked before anything is built on it: image files, box counts, and what is odd but trains."""

from __future__ import annotations

import json
import re
import shutil
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from cskd_data import DataError, fingerprint, read
from cskd_data.check import check
from cskd_data.header import read_header
from cskd_data.together import check_together

from .conftest import COCO


def refused(file, folder, **settings) -> str:
    """What the check says when it refuses the set."""
    with pytest.raises(DataError) as error:
        read(file, folder).check(**settings).raise_for_errors()
    return str(error.value)


def exif(orientation, order=">"):
    start = b"MM\0\x2a" if order == ">" else b"II\x2a\0"
    return start + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def turn_jpeg(path, orientation):
    jpeg, block = path.read_bytes(), b"Exif\0\0" + exif(orientation)
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:])


def turn_png(path, orientation):
    png, block = path.read_bytes(), b"eXIf" + exif(orientation, "<")
    chunk = struct.pack(">I", len(block) - 4) + block + struct.pack(">I", zlib.crc32(block))
    path.write_bytes(png[:33] + chunk + png[33:])


def test_a_sound_set_is_reported_with_its_numbers(coco_set):
    file, folder, _ = coco_set
    report = read(file, folder).check(decode=True)
    assert (report.images, report.boxes, report.images_without_boxes) == (2, 2, 1)
    assert report.boxes_per_class == {"cat": 1, "dog": 1}
    assert report.category_ids == {"cat": 12, "dog": 5}
    assert report.box_sizes == {"small": 1, "medium": 1, "large": 0}
    assert (report.notes, report.errors, report.decoded) == ((), (), True)
    assert [line.split() for line in str(report).splitlines()[3:5]] == [["0", "cat", "12", "1"], ["1", "dog", "5", "1"]]
    assert json.loads(json.dumps(report.to_dict()))["boxes"] == 2


@pytest.mark.parametrize("decode", [False, True])
def test_an_image_of_another_size_is_named(coco_set, decode):
    file, folder, write = coco_set
    write(lambda data: data["images"][0].update(width=65))
    message = refused(file, folder, decode=decode)
    assert "image a.jpg is 64 x 48 pixels, but the annotations say 65 x 48: its boxes would not fit" in message


def test_a_truncated_or_empty_image_is_named_without_decoding(coco_set):
    file, folder, _ = coco_set
    whole = (folder / "a.jpg").read_bytes()
    (folder / "a.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "b.png").write_bytes(b"")
    message = refused(file, folder)
    assert "image a.jpg is truncated" in message
    assert "image b.png is empty (0 bytes)" in message


def test_an_image_that_ends_inside_its_header_or_png_data_is_truncated(coco_set):
    file, folder, _ = coco_set
    for name, length, fault in (("a.jpg", 100, "ends inside its header"), ("b.png", 1000, "the PNG has no end chunk")):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:length])
        assert fault in refused(file, folder)
        (folder / name).write_bytes(whole)


def test_bytes_behind_the_end_of_an_image_are_no_fault(coco_set):
    file, folder, _ = coco_set
    for name in ("a.jpg", "b.png"):
        with (folder / name).open("ab") as image:
            image.write(b"\0" * 4096)
    assert read(file, folder).check(decode=True).errors == ()


def test_decoding_finds_what_a_look_at_the_header_does_not(coco_set):
    file, folder, _ = coco_set
    whole = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(whole[:60] + b"\0" * 2000 + whole[2060:])
    assert read(file, folder).check().errors == ()
    assert "image b.png cannot be decoded as an image" in refused(file, folder, decode=True)


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize(("turn", "name"), [(turn_jpeg, "a.jpg"), (turn_png, "b.png")])
def test_the_size_of_a_picture_that_exif_turns_is_the_turned_one(coco_set, turn, name, decode):
    file, folder, write = coco_set
    turn(folder / name, 6)
    height, width = cv2.imread(str(folder / name)).shape[:2]  # what training will see
    assert f"image {name} is {width} x {height} pixels as its EXIF orientation turns it" in refused(
        file, folder, decode=decode
    )

    def turned(data):
        (image,) = (image for image in data["images"] if image["file_name"] == name)
        image.update(width=width, height=height)
        data["annotations"][1].update(bbox=[4.0, 4.0, 40.0, 40.0])

    write(turned)
    report = read(file, folder).check(decode=decode)
    assert (report.errors, report.warnings) == ((), ())


def test_a_turn_that_changes_no_size_is_noted(coco_set):
    file, folder, _ = coco_set
    turn_jpeg(folder / "a.jpg", 3)
    assert read_header(folder / "a.jpg").orientation == 3
    (warning,) = read(file, folder).check().warnings
    assert "1 image turned or mirrored by EXIF without a change of size" in warning
    assert warning.endswith(": a.jpg")


def test_a_header_that_claims_more_pixels_than_are_decoded_is_one_fault(coco_set):
    file, folder, write = coco_set
    png = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(png[:16] + struct.pack(">II", 40000, 40000) + png[24:])
    write(lambda data: data["images"][1].update(width=40000, height=40000))
    message = refused(file, folder, decode=True)
    assert "image b.png has 40000 x 40000 pixels by its header, more than are decoded" in message


@pytest.mark.parametrize("ending", ["bmp", "tif", "ppm"])
def test_a_format_without_an_end_marker_is_decoded(coco_set, ending):
    file, folder, write = coco_set
    picture = folder / f"a.{ending}"
    cv2.imwrite(str(picture), np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    write(lambda data: data["images"][0].update(file_name=picture.name))
    assert read(file, folder).check().errors == ()
    whole = picture.read_bytes()
    picture.write_bytes(whole[: -len(whole) // 4])
    assert re.search(rf"image {picture.name} (cannot be decoded|is truncated)", refused(file, folder))


def test_a_size_that_the_file_lacks_is_read_from_images_of_any_format(coco_set, tmp_path):
    file, folder, write = coco_set
    for ending in ("bmp", "webp", "tif"):
        cv2.imwrite(str(folder / f"c.{ending}"), np.zeros((21, 34, 3), np.uint8))
        write(lambda data, ending=ending: data["images"].append({"id": 9, "file_name": f"c.{ending}"}))
        (image,) = (image for image in read(file, folder).images if image["file_name"] == f"c.{ending}")
        assert (image["width"], image["height"]) == (34, 21)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["annotations"][1].update(category_id=12), "no box of class: dog"),
        (lambda d: d["annotations"][1].update(bbox=[3.0, 3.0, 0.5, 9.0]), "1 box less than a pixel wide or high"),
        (lambda d: d["annotations"][1].update(bbox=[3.0, 3.0, 90.0, 9.0]), "1 of 2 boxes over the edge of the image"),
        (lambda d: d["annotations"][1].update(ignore=1), "1 box with ignore 1"),
        (lambda d: d["annotations"][1].update(iscrowd=1), "1 of 2 boxes marked as crowds (iscrowd 1)"),
        (lambda d: d["images"].append({**d["images"][0], "id": 8}), "1 image listed more than once, under several ids"),
        (lambda d: d.pop("annotations"), "there are no annotations"),
        (lambda d: d["annotations"].clear(), "there are no annotations"),
    ],
)
def test_what_is_odd_but_can_be_used_is_a_warning(coco_set, change, said):
    file, folder, write = coco_set
    write(change)
    report = read(file, folder).check()
    assert report.errors == ()
    assert [warning for warning in report.warnings if said in warning]


def test_boxes_that_are_all_crowds_are_refused_with_their_number(coco_set):
    file, folder, write = coco_set
    write(lambda data: [one.update(iscrowd=1) for one in data["annotations"]])
    message = refused(file, folder)
    assert message.startswith(f"all 2 boxes of {file} are crowds (iscrowd 1), which are neither learnt nor counted")
    assert "Write iscrowd 0 for single objects" in message


def test_a_set_without_images_beside_it_is_read_but_not_fit_for_use(coco_set):
    file, folder, _ = coco_set
    for name in ("a.jpg", "b.png"):
        (folder / name).unlink()
    way_out = "give the folder of the images (`--images FOLDER`; `img_prefix` in a config)"
    assert refused(file, None) == f"no image of {file} was found beside it: {way_out}"


def test_a_clean_check_is_remembered_until_a_file_changes(coco_set, monkeypatch):
    file, folder, _ = coco_set
    assert not [check(read(file, folder), use_memory=True) for _ in range(2)][1].remembered  # not worth it
    monkeypatch.setattr("cskd_data.fingerprint.REMEMBERED_FROM", 2)
    turn_jpeg(folder / "a.jpg", 3)
    first = check(read(file, folder), use_memory=True)
    assert not first.remembered
    opened = []
    with monkeypatch.context() as patch:
        patch.setattr("cskd_data.image_check._look", lambda path, decode: opened.append(path.name))
        again = check(read(file, folder), use_memory=True)
    assert (again.remembered, opened) == (True, [])
    assert again.notes == first.notes
    assert "was checked before and has not changed since" in str(again)
    assert not check(read(file, folder), decode=True, use_memory=True).remembered  # a deeper check
    assert check(read(file, folder), use_memory=True).remembered  # which serves for both
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:-20])
    report = check(read(file, folder), use_memory=True)
    assert not report.remembered
    assert report.errors == ("image b.png is truncated (the PNG has no end chunk)",)
    assert check(read(file, folder), use_memory=True).errors == report.errors  # faults are never remembered


def test_a_check_that_is_asked_for_opens_every_image_and_is_remembered_for_others(coco_set, monkeypatch):
    file, folder, _ = coco_set
    monkeypatch.setattr("cskd_data.fingerprint.REMEMBERED_FROM", 1)
    assert not check(read(file, folder)).remembered
    assert not check(read(file, folder), use_memory=True).remembered  # one without any wish left nothing
    (folder / "a.jpg").touch()
    for _ in range(2):
        assert not check(read(file, folder), remember=True).remembered
    assert check(read(file, folder), use_memory=True).remembered


def test_a_clean_check_by_other_rules_is_done_again(coco_set, tmp_path, monkeypatch):
    file, folder, _ = coco_set
    monkeypatch.setattr("cskd_data.fingerprint.REMEMBERED_FROM", 2)
    package = shutil.copytree(Path(fingerprint.__file__).parent, tmp_path / "package")
    monkeypatch.setattr(fingerprint, "__file__", str(package / "fingerprint.py"))

    def is_remembered():
        fingerprint.rules.cache_clear()
        return check(read(file, folder), use_memory=True).remembered

    try:
        assert [is_remembered(), is_remembered()] == [False, True]
        for name in ("decode.py", "image_check.py", "jpeg_cut.py", "header.py", "a_rule_of_tomorrow.py"):
            with (package / name).open("a") as module:
                module.write("# another rule\n")
            assert [is_remembered(), is_remembered()] == [False, True], name
    finally:
        fingerprint.rules.cache_clear()


def test_a_place_that_cannot_be_written_or_read_only_costs_the_memory(coco_set, tmp_path, monkeypatch):
    file, folder, _ = coco_set
    monkeypatch.setattr("cskd_data.fingerprint.REMEMBERED_FROM", 2)
    (tmp_path / "blocked").write_text("a file, no folder")
    monkeypatch.setenv("CSKD_CACHE", str(tmp_path / "blocked" / "cache"))
    for _ in range(2):
        report = check(read(file, folder), use_memory=True)
        assert (report.errors, report.remembered) == ((), False)


def test_the_same_picture_in_two_splits_is_noted_by_its_content(coco_set, tmp_path):
    file, folder, _ = coco_set
    (other := tmp_path / "other").mkdir()
    (other / "copy.png").write_bytes((folder / "b.png").read_bytes())
    image = np.full((48, 64, 3), 200, np.uint8)
    cv2.imwrite(str(other / "own.png"), image)
    data = {**COCO, "images": [{"id": 7, "file_name": "own.png"}, {"id": 3, "file_name": "copy.png"}]}
    (tmp_path / "val.json").write_text(json.dumps(data))
    train, val = read(file, folder), read(tmp_path / "val.json", other)
    (note,) = check_together({"train": train, "val": val})
    assert str(note).startswith("1 picture both in train and in val")
    assert str(note).endswith(": b.png")
    assert check_together({"train": train, "val": val.subset([2])}) == []


def test_class_lists_that_differ_are_refused_with_both_and_another_order_is_not(coco_set):
    file, folder, _ = coco_set
    train = read(file, folder)
    assert len(check_together({"train": train, "val": train.select(["dog", "cat"])})) == 1
    with pytest.raises(DataError) as error:
        check_together({"train": train, "val": train.select(["dog"])})
    assert "train and val have different classes.\n  train: cat, dog\n  val: dog" in str(error.value)
