"""Which files a YOLO set without `data.yaml` has for which split, and label files whose image is not there."""

from __future__ import annotations

import json
import os

import pytest

from cskd_data import DataError, read
from cskd_data.formats import format_of, split_of, splits_of
from cskd_data.yolo import read_yolo

from .factories import boxes_of, note_of, write, write_photo
from .test_yolo import BOX, ROW

OBJ_DATA = "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = backup/\n"


@pytest.fixture
def cvat(tmp_path):
    """YOLO 1.1 as CVAT exports it, with two images for training and one for validation."""
    root = tmp_path / "set"
    for split, images in (("train", ("a", "b")), ("valid", ("c",))):
        for name in images:
            write_photo(root / f"obj_{split}_data" / f"{name}.png", seed=ord(name))
            write(root / f"obj_{split}_data" / f"{name}.txt", ROW)
        write(root / f"{split}.txt", "".join(f"data/obj_{split}_data/{name}.png\n" for name in images))
    write(root / "obj.names", "cat\ndog\n")
    write(root / "obj.data", OBJ_DATA)
    return root


@pytest.mark.parametrize("named", [True, False])
def test_the_lists_of_cvat_are_the_splits(cvat, named):
    if not named:
        (cvat / "obj.data").unlink()
    assert (format_of(cvat), splits_of(cvat)) == ("yolo", ["train", "val"])
    assert boxes_of(read_yolo(cvat, split="val")) == {"c.png": [BOX]}
    assert boxes_of(read(cvat)) == {"a.png": [BOX], "b.png": [BOX], "c.png": [BOX]}
    assert note_of(read(cvat), "read as one").endswith("train, val")


def test_a_project_takes_the_lists_of_cvat(cvat, call, tmp_path):
    code, out, err = call("train", "new", tmp_path / "project", "--data", cvat)
    assert code == 0, err
    assert "the splits train, val of" in " ".join(out.split())


@pytest.mark.parametrize("name", ["valid.txt", "lists/valid.txt"])
def test_a_list_is_the_path_of_its_split(cvat, name):
    if name != "valid.txt":
        write(cvat / name, (cvat / "valid.txt").read_text())
        (cvat / "valid.txt").unlink()
        write(cvat / "obj.data", OBJ_DATA.replace("data/valid.txt", name))
    dataset = read(cvat / name)
    assert (split_of(cvat / name), list(boxes_of(dataset)), dataset.source) == ((cvat, "val"), ["c.png"], cvat / name)
    with pytest.raises(DataError, match="is not JSON"):
        read(cvat / "obj.names")
    with pytest.raises(DataError, match="is not JSON"):
        read(write(cvat / "other.txt", "data/obj_train_data/a.png\n"))


def test_a_list_that_data_yaml_names_is_the_path_of_its_split(cvat):
    write(cvat / "data.yaml", "train: train.txt\nval: [valid.txt]\nnames: [cat, dog]\n")
    assert list(boxes_of(read(cvat / "valid.txt"))) == ["c.png"]


def test_images_in_no_list_and_lists_that_are_not_there_are_said(cvat):
    (cvat / "valid.txt").unlink()
    dataset = read(cvat)
    assert list(boxes_of(dataset)) == ["a.png", "b.png"]
    assert note_of(dataset, "left out") == "1 image not in train.txt, left out: c.png"
    assert note_of(dataset, "not there") == "1 split not there: val: data/valid.txt"


def test_folders_named_as_splits_go_before_lists_that_nothing_names(tmp_path):
    for split, name in (("train", "a"), ("val", "b")):
        write_photo(tmp_path / "images" / split / f"{name}.png", seed=ord(name))
        write(tmp_path / "labels" / split / f"{name}.txt", ROW)
    write(tmp_path / "train.txt", "/from/somewhere/else.png\n")
    write(tmp_path / "classes.txt", "cat\ndog\n")
    assert list(boxes_of(read(tmp_path))) == ["a.png", "b.png"]


def test_a_listed_image_that_is_gone_is_not_replaced_by_one_of_its_name_elsewhere(cvat):
    write_photo(cvat / "obj_valid_data" / "a.png", seed=7)
    (cvat / "obj_train_data" / "a.png").unlink()
    with pytest.raises(DataError, match=r"image .*obj_train_data/a\.png does not exist"):
        read_yolo(cvat, split="train")


def hold_out(root, way, split="test"):
    """Ten images of 96 x 40 of which three are noted, or lie apart, for one split."""
    write(root / "classes.txt", "cat\ndog\n")
    for number in range(10):
        apart = f"{split}/{number}" if way == "folder" and number >= 7 else str(number)
        write_photo(root / "images" / f"{apart}.png", seed=number, height=40, width=96)
        write(root / "labels" / f"{apart}.txt", ROW)
    names = "".join(f"images/{number}.png\n" for number in (7, 8, 9))
    if way == "list":
        write(root / f"{split}.txt", names)
    if way == "obj.data":
        write(root / "lists" / "held.txt", names.replace("images", "../images"))
        write(root / "obj.data", f"train = gone.txt\n{split} = lists/held.txt\n")
    return root


@pytest.mark.parametrize("way", ["list", "obj.data", "folder"])
@pytest.mark.parametrize("split", ["test", "valid"])
def test_without_a_list_or_folder_for_training_all_that_is_in_no_other_is_for_training(way, split, tmp_path):
    root, own = hold_out(tmp_path, way, split), {"valid": "val"}.get(split, split)
    assert splits_of(root) == ["train", own]
    assert len(read(root).images) == 10
    assert list(boxes_of(read_yolo(root, split=split))) == ["7.png", "8.png", "9.png"]
    rest = read_yolo(root, split="train")
    assert list(boxes_of(rest)) == [f"{number}.png" for number in range(7)]
    assert note_of(rest, "for training").startswith(f"7 images in no split ({own}), for training: 0.png, 1.png, ")


def test_a_project_keeps_the_images_of_a_lone_list_for_its_test(call, tmp_path):
    root = hold_out(tmp_path / "set", "list")
    code, out, err = call("train", "new", tmp_path / "project", "--data", root, "--json")
    assert (code, json.loads(out)["splits"]) == (0, {"train": 6, "val": 1, "test": 3}), err
    held = read(tmp_path / "project" / "data" / "test.json")
    assert sorted(boxes_of(held)) == ["7.png", "8.png", "9.png"]


def test_a_lone_list_of_all_images_leaves_none_for_training(tmp_path):
    root = flat(tmp_path, ["a.png", "b.png"], "ab")
    write(root / "test.txt", "images/a.png\nimages/b.png\n")
    assert (splits_of(root), read(root).notes) == (["test"], ())


def test_images_outside_of_the_folders_of_the_splits_are_left_out_with_a_note(tmp_path):
    root = hold_out(tmp_path, "folder", "train")
    assert list(boxes_of(read(root))) == ["7.png", "8.png", "9.png"]
    assert note_of(read(root), "left out").startswith("7 images not in train, left out: 0.png, ")


# Label files without an image


def flat(root, images, labels, folder="labels"):
    for name in images:
        write_photo(root / "images" / name.replace("jfif", "jpg"), seed=ord(name[0]))
        os.replace(root / "images" / name.replace("jfif", "jpg"), root / "images" / name)
    for name in labels:
        write(root / folder / f"{name}.txt", ROW)
    return write(root / "classes.txt", "cat\ndog\n").parent


def test_label_files_without_an_image_are_said(tmp_path):
    root = flat(tmp_path, ["a.png", "b.jpg"], "abcd")
    write(root / "labels" / "empty.txt", "")
    write(root / "labels" / "classes.txt", "cat\ndog\n")
    said = "2 label files without an image, not used: labels/c.txt, labels/d.txt"
    assert note_of(read(root), "without an image") == said


@pytest.mark.parametrize("folder", ["images", "labels"])
def test_where_every_label_file_has_its_image_nothing_is_said(tmp_path, folder):
    root = flat(tmp_path, ["a.png", "b.jpg", "c.png"], "abc", folder)
    write(root / "data.yaml", "train: train.txt\nval: val.txt\nnames: [cat, dog]\n")
    write(root / "train.txt", "images/a.png\n")
    write(root / "val.txt", "images/b.jpg\n")  # c is there, and in no split
    for split in ("train", "val"):
        assert read_yolo(root, split=split).notes == ()
    assert len(read(root).notes) == 1


def test_images_of_other_splits_have_their_labels_in_one_folder_of_all(tmp_path):
    for split, name in (("train", "a"), ("val", "b")):
        write_photo(tmp_path / "images" / split / f"{name}.png", seed=ord(name))
    root = flat(tmp_path, [], "abc")
    by_name, alone = (str(note) for note in read_yolo(root, split="val").notes)
    assert by_name.startswith("1 image whose label file is not in a folder of the same name")
    assert alone == "1 label file without an image, not used: labels/c.txt"


def test_jfif_is_a_jpeg(tmp_path):
    root = flat(tmp_path, ["a.jfif"], "a")
    dataset = read(root)
    assert boxes_of(dataset) == {"a.jfif": [BOX]}
    assert dataset.check(decode=True).errors == ()


@pytest.mark.parametrize("place", ["{}", "images/{}", "images/train/{}", "train/images/{}"])
def test_labels_beside_their_images_make_a_set_with_a_file_of_class_names(place, tmp_path):
    """As LabelImg saves them where it is given no folder for labels."""
    for name in "abc":
        write_photo(tmp_path / place.format(f"{name}.png"), seed=ord(name), height=96, width=40)
        write(tmp_path / place.format(f"{name}.txt"), ROW if name == "b" else "\n")
    write(tmp_path / "classes.txt", "cat\ndog\n")
    assert format_of(tmp_path) == "yolo"
    assert list(boxes_of(read(tmp_path))) == ["a.png", "b.png", "c.png"]
    assert len(read(tmp_path).annotations) == 1


@pytest.mark.parametrize("beside", ["a cat on a mat", "1 2 3", "0 0.1 0.2 0.3 cat", ""])
def test_other_text_beside_images_makes_no_set(beside, tmp_path):
    write_photo(tmp_path / "a.png")
    write(tmp_path / "a.txt", beside)
    write(tmp_path / "notes.txt", ROW)
    write(tmp_path / "classes.txt", "cat\ndog\n")
    with pytest.raises(DataError, match=r"holds no data set: .* a data\.yaml or classes\.txt \(YOLO\)"):
        read(tmp_path)


# Splits without images


@pytest.mark.parametrize("yaml", [True, False])
def test_an_empty_split_is_left_out_of_the_whole_and_refused_by_its_name(tmp_path, yaml):
    root = flat(tmp_path / "set", [], "")
    write_photo(root / "images" / "train" / "a.png")
    write(root / "labels" / "train" / "a.txt", ROW)
    (root / "images" / "val").mkdir()
    if yaml:
        write(root / "data.yaml", "train: images/train\nval: images/val\nnames: [cat, dog]\n")
    assert [str(note) for note in read(root).notes] == ["1 split without images left out: val"]
    assert splits_of(root) == ["train", "val"]
    with pytest.raises(
        DataError, match=r"the split val of .* has no image \(\.jpg, .*: copy its images there, or take"
    ):
        read_yolo(root, split="val")
