"""A file found by a part of its name only: no folder speaks against it, no other name means it, and a note says it."""

from __future__ import annotations

import json

import pytest

from cskd_data import DataError, formats, read
from cskd_data.yolo import read_yolo
from cskd_train.project.data import read_splits

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


# Label files of YOLO

ROW = "0 0.5 0.5 0.25 0.5\n"
OTHER = "0 0.25 0.25 0.1 0.1\n"
BOX, OTHER_BOX = [24, 12, 16, 24], [12.8, 9.6, 6.4, 4.8]


def yolo(root, labels, yaml=None):
    """A YOLO set without images: label files by their names, and a `data.yaml` or `classes.txt`."""
    for name, rows in labels.items():
        write(root / name, rows)
    write(root / ("classes.txt" if yaml is None else "data.yaml"), "cat\n" if yaml is None else f"names: [cat]\n{yaml}")
    return root


def boxes_by_file(dataset):
    found = {name: [] for name in files_of(dataset)}
    for one in dataset.annotations:
        name = dataset.images[one["image_id"] - 1]["file_name"]
        found[name].append([round(value, 3) for value in one["bbox"]])
    return found


def notes_of(dataset):
    return [str(note) for note in dataset.notes]


def test_an_image_without_objects_has_no_boxes_of_its_namesake_in_another_group(tmp_path):
    folder = pictures(tmp_path / "pics", "cam1/0.jpg", "cam2/0.jpg")
    dataset = read(yolo(tmp_path / "set", {"labels/cam2/0.txt": ROW}), folder)
    assert boxes_by_file(dataset) == {"cam1/0.jpg": [], "cam2/0.jpg": [BOX]}
    assert dataset.notes == ()


def test_an_image_has_no_boxes_of_its_namesake_in_another_split(tmp_path):
    folder = pictures(tmp_path / "pics", "train/0.jpg", "train/1.jpg", "val/0.jpg")
    labels = {"labels/train/1.txt": ROW, "labels/val/0.txt": OTHER}
    root = yolo(tmp_path / "set", labels, "train: images/train\nval: images/val\n")
    assert boxes_by_file(read(root, folder)) == {"train/0.jpg": [], "train/1.jpg": [BOX], "val/0.jpg": [OTHER_BOX]}


def test_a_label_file_of_a_group_that_no_image_is_in_is_not_used_and_said(tmp_path):
    folder = pictures(tmp_path / "pics", "cam1/0.jpg", "cam2/1.jpg", "cam3/2.jpg")
    labels = {"labels/cam1/0.txt": ROW, "labels/cam3/1.txt": OTHER, "labels/cam4/2.txt": OTHER}
    dataset = read(yolo(tmp_path / "set", labels), folder)
    assert boxes_by_file(dataset) == {"cam1/0.jpg": [BOX], "cam2/1.jpg": [], "cam3/2.jpg": []}
    said = "2 label files without an image, not used: labels/cam3/1.txt, labels/cam4/2.txt"
    assert notes_of(dataset) == [said]


@pytest.mark.parametrize("given", [True, False])
def test_a_label_file_that_may_be_of_two_images_is_refused(tmp_path, given):
    root = yolo(tmp_path / "set", {"labels/0.txt": ROW})
    folder = pictures(root / "images" if not given else tmp_path / "pics", "cam1/0.jpg", "cam2/0.jpg")
    said = r"1 fault:\n  .*labels/0\.txt may be of cam1/0 and of cam2/0: it is unclear whose\nGive each label file"
    with pytest.raises(DataError, match=said):
        read(root, folder if given else None)


@pytest.mark.parametrize("given", [True, False])
def test_a_label_file_without_the_folder_of_its_only_image_is_used_and_said(tmp_path, given):
    root = yolo(tmp_path / "set", {"labels/0.txt": ROW, "labels/cam2/0.txt": OTHER})
    folder = pictures(root / "images" if not given else tmp_path / "pics", "cam1/0.jpg", "cam2/0.jpg")
    dataset = read(root, folder if given else None)
    assert boxes_by_file(dataset) == {"cam1/0.jpg": [BOX], "cam2/0.jpg": [OTHER_BOX]}
    (note,) = notes_of(dataset)
    assert note.startswith("1 image whose label file is not in a folder of the same name")
    assert note.endswith("cam1/0.jpg has labels/0.txt")


def test_in_one_folder_of_all_labels_an_image_whose_folder_is_there_has_no_other(tmp_path):
    root = yolo(tmp_path / "set", {"labels/0.txt": OTHER, "labels/cam1/1.txt": ROW})
    pictures(root / "images", "cam1/0.jpg", "cam1/1.jpg")
    dataset = read(root)
    assert boxes_by_file(dataset) == {"0.jpg": [], "1.jpg": [BOX]}
    assert notes_of(dataset) == ["1 label file without an image, not used: labels/0.txt"]


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (["0.jpg", "1.jpg"], ["labels/deep/0.txt", "labels/deep/1.txt"]),
        (["cam1/0.jpg", "cam2/0.jpg"], ["labels/train/cam1/0.txt", "labels/train/cam2/0.txt"]),
        (["train/images/0.jpg", "valid/images/1.jpg"], ["train/labels/0.txt", "val/labels/1.txt"]),
        (["Cam1/0.jpg", "cam2/0.jpg"], ["labels/cam1/0.txt", "labels/CAM2/0.txt"]),
        (["0.jpg", "0.png"], ["labels/0.txt"]),
    ],
)
def test_label_files_with_the_folders_of_their_images_are_found_elsewhere_and_nothing_is_said(tmp_path, images, labels):
    folder = pictures(tmp_path / "pics", *images)
    dataset = read(yolo(tmp_path / "set", dict.fromkeys(labels, ROW)), folder)
    assert boxes_by_file(dataset) == {name: [BOX] for name in images}
    assert [note for note in notes_of(dataset) if "read as one" not in note] == []


def test_pictures_sorted_by_camera_have_labels_sorted_by_split(tmp_path):
    folder = pictures(tmp_path / "pics", "cam1/a.jpg", "cam2/b.jpg")
    dataset = read(yolo(tmp_path / "set", {"labels/train/a.txt": ROW, "labels/val/b.txt": OTHER}), folder)
    assert boxes_by_file(dataset) == {"cam1/a.jpg": [BOX], "cam2/b.jpg": [OTHER_BOX]}
    assert notes_of(dataset)[0].startswith("2 images whose label file is not in a folder of the same name")


def test_the_labels_of_the_set_go_before_those_that_lie_with_the_images(tmp_path):
    old = pictures(tmp_path / "old" / "images", "a.jpg", "b.jpg", "c.jpg")
    for name in "abc":
        write(tmp_path / "old" / "labels" / f"{name}.txt", OTHER)
    dataset = read(yolo(tmp_path / "new", {"labels/a.txt": ROW, "labels/b.txt": ROW}), old)
    assert boxes_by_file(dataset) == {"a.jpg": [BOX], "b.jpg": [BOX], "c.jpg": []}
    (note,) = notes_of(dataset)
    assert note.startswith("3 label files beside the images not used: the set has its own: ../labels/a.txt")
    bare = read(yolo(tmp_path / "bare", {}, "nc: 1\n"), old)
    assert boxes_by_file(bare) == {f"{name}.jpg": [OTHER_BOX] for name in "abc"}


def test_a_folder_called_images_around_the_set_does_not_lead_to_labels_of_another(tmp_path):
    root = yolo(tmp_path / "images" / "set", {"train/a.txt": ROW, "val/b.txt": ROW}, "train: train\nval: val\n")
    pictures(root, "train/a.jpg", "val/b.jpg")
    write(tmp_path / "labels" / "set" / "train" / "a.txt", OTHER)
    assert boxes_by_file(read(root)) == {"train/a.jpg": [BOX], "val/b.jpg": [BOX]}


def test_a_list_of_a_split_is_no_label_file(tmp_path):
    folder = pictures(tmp_path / "pics", "train.jpg", "val.jpg")
    labels = {"labels/train.txt": ROW, "labels/val.txt": ROW, "train.txt": "train.jpg\n", "val.txt": "val.jpg\n"}
    root = yolo(tmp_path / "set", labels, "train: train.txt\nval: val.txt\n")
    assert boxes_by_file(read(root, folder)) == {"train.jpg": [BOX], "val.jpg": [BOX]}


# Splits and lists of YOLO


def splits_of(root, folder=None):
    return {
        split: files_of(read_yolo(root, folder, split))
        for split in ("train", "val", "test")
        if split in formats.splits_of(root, folder)
    }


def whole(root, yaml):
    """A set with four images and their labels in `images` and `labels`."""
    pictures(root / "images", *(f"{name}.jpg" for name in "abcd"))
    return yolo(root, {f"labels/{name}.txt": ROW for name in "abcd"}, yaml)


@pytest.mark.parametrize(
    "val", ["/mnt/usb/val_set/images", "D:\\val_set\\images", "elsewhere/images", "[/mnt/a/images, /mnt/b/images]"]
)
def test_a_split_that_is_not_there_does_not_become_another_one(tmp_path, val):
    root = whole(tmp_path / "set", f"train: images\nval: {val}\n")
    assert list(splits_of(root)) == ["train"]
    assert note_of(read(root), "not there").startswith(f"{val.count('images')} split")


def test_a_split_that_is_not_there_does_not_become_the_folder_that_holds_another(tmp_path):
    root = pictures(tmp_path / "set", "images/train/a.jpg", "images/b.jpg")
    yolo(root, {"labels/train/a.txt": ROW, "labels/b.txt": ROW}, "train: images/train\nval: /mnt/usb/images\n")
    assert list(splits_of(root)) == ["train"]
    assert note_of(read(root), "not there") == "1 split not there: val: /mnt/usb/images"


def test_two_splits_of_another_machine_are_neither_where_both_would_be_one_folder(tmp_path):
    root = whole(tmp_path / "set", "train: /mnt/one/images\nval: /mnt/two/images\n")
    with pytest.raises(DataError, match=r"none of its splits is there \(train: /mnt/one/images; val: /mnt/two/images"):
        read(root)


def test_two_lists_of_another_machine_are_neither_where_both_would_be_one_file(tmp_path):
    root = whole(tmp_path / "set", None)
    write(root / "obj.data", "train = /mnt/one/list.txt\nvalid = /mnt/two/list.txt\n")
    write(root / "list.txt", "images/a.jpg\n")
    said = "2 splits not there: train: /mnt/one/list.txt, val: /mnt/two/list.txt"
    assert note_of(read(root), "not there") == said


def test_one_folder_may_be_two_splits_where_both_have_its_name(tmp_path):
    root = whole(tmp_path / "set", "train: /home/you/set/images\nval: /home/you/set/images\n")
    assert [len(files) for files in splits_of(root).values()] == [4, 4]


def test_splits_of_another_machine_are_found_and_said(tmp_path):
    root = pictures(tmp_path / "set", "images/train/a.jpg", "images/val/b.jpg")
    labels = {"labels/train/a.txt": ROW, "labels/val/b.txt": ROW}
    yolo(root, labels, "train: /home/you/set/images/train\nval: ../images/val\n")
    said = "1 split with folders that are not there; the files were found by the rest of the name: "
    assert note_of(read(root), "rest of the name") == f"{said}/home/you/set/images/train is images/train"
    assert splits_of(root) == {"train": ["train/a.jpg"], "val": ["val/b.jpg"]}


@pytest.mark.parametrize("yaml", ["train: train.txt\nval: val.txt\n", None])
def test_lines_that_would_mean_one_image_mean_none(tmp_path, yaml):
    lists = {"train.txt": "images/cam1/1.jpg\nimages/cam2/1.jpg\nimages/cam1/2.jpg\n", "val.txt": "images/cam3/1.jpg\n"}
    root = yolo(tmp_path / "set", {"labels/1.txt": ROW, "labels/2.txt": ROW, **lists}, yaml)
    folder = pictures(tmp_path / "pics", "1.jpg", "2.jpg")
    with pytest.raises(
        DataError, match=r"3 faults:\n  image images/cam1/1\.jpg does not exist\n  image images/cam2/1\.jpg"
    ):
        read(root, folder)
    kept = read_yolo(root, folder, skip_missing=True)
    assert files_of(kept) == ["2.jpg"]
    assert note_of(kept, "rest of the name").endswith("images/cam1/2.jpg is 2.jpg")


def test_a_listed_image_is_missing_where_its_folder_is_there(tmp_path):
    root = yolo(tmp_path / "set", {"labels/1.txt": ROW, "train.txt": "images/cam1/1.jpg\n"}, "train: train.txt\n")
    folder = pictures(tmp_path / "pics", "1.jpg", "cam1/2.jpg")
    with pytest.raises(DataError, match=r"1 fault:\n  image images/cam1/1\.jpg does not exist"):
        read(root, folder)


@pytest.mark.parametrize("way", ["set", "set/lists", "far"])
def test_lists_that_the_yaml_file_names_are_the_splits_of_images_elsewhere(tmp_path, way):
    lists = tmp_path / way
    root = yolo(tmp_path / "set", {f"labels/{name}.txt": ROW for name in "abcd"})
    write(lists / "train.txt", "data/images/a.jpg\n./data/images/b.jpg\n")
    write(lists / "val.txt", "data/images/c.jpg\n")
    names = {"set": ("train.txt", "val.txt"), "set/lists": ("lists/train.txt", "lists/val.txt")}
    train, val = names.get(way, ("train.txt", "val.txt"))
    write(root / "data.yaml", f"path: {'../far' if way == 'far' else '.'}\nnames: [cat]\ntrain: {train}\nval: {val}\n")
    folder = pictures(tmp_path / "pics", *(f"{name}.jpg" for name in "abcd"))
    assert splits_of(root, folder) == {"train": ["a.jpg", "b.jpg"], "val": ["c.jpg"]}
    if way != "far":
        assert files_of(read(root / val, folder)) == ["c.jpg"]
    parts, how, _ = read_splits([root], folder, lambda *_: None)
    assert (files_of(parts["val"]), "the splits train, val" in how) == (["c.jpg"], True)


def test_splits_that_are_lost_where_the_images_lie_elsewhere_are_said(tmp_path):
    labels = {f"labels/{'val' if name == 'd' else 'train'}/{name}.txt": ROW for name in "abcd"}
    root = yolo(tmp_path / "set", labels, "train: images/train\nval: images/val\n")
    folder = pictures(tmp_path / "pics", *(f"{name}.jpg" for name in "abcd"))
    dataset = read(root, folder)
    assert [len(boxes) for boxes in boxes_by_file(dataset).values()] == [1] * 4
    said = f"2 splits not there, all images of {folder} are read as one: train: images/train, val: images/val"
    assert note_of(dataset, "not there") == said


def test_the_folder_that_is_given_goes_before_images_beside_the_list(tmp_path):
    root = whole(tmp_path / "set", "train: train.txt\n")
    write(root / "train.txt", "images/a.jpg\n")
    folder = pictures(tmp_path / "new" / "images", "a.jpg", "x.jpg")
    dataset = read(root, folder)
    assert (dataset.image_root, files_of(dataset), dataset.notes) == (folder, ["a.jpg"], ())
