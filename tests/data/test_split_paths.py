"""Which paths name one split of a data set, and what its split may be called, in every format alike."""

from __future__ import annotations

import json

import pytest

import cskd_train
from cskd_data import DataError, read
from cskd_data.formats import annotation_files, format_of, reader_of, split_of, splits_of

from .factories import boxes_of, note_of, write, write_photo
from .test_coco_folders import content
from .test_voc import annotation, thing
from .test_yolo import ROW

FORMATS = ("coco", "voc", "yolo")


def lay_out(root, kind, splits=("train", "valid"), images=2):
    """A set with a folder for each split: some images of 64 x 48 in each, `train_0.png` ..."""
    for split in splits:
        for number in range(images):
            name = f"{split}_{number}"
            write_photo(root / split / f"{name}.png", seed=len(split) * 10 + number)
            if kind == "yolo":
                write(root / split / f"{name}.txt", ROW)
            if kind == "voc":
                write(root / split / f"{name}.xml", annotation(thing("dog"), f"{name}.png"))
        if kind == "coco":
            write(root / split / "_annotations.coco.json", content(split, images=images))
    if kind == "yolo":
        (root / "labels").mkdir()
        write(root / "classes.txt", "cat\ndog\n")
    return root


@pytest.mark.parametrize("kind", FORMATS)
def test_folders_in_capitals_are_splits_too(kind, tmp_path):
    root = lay_out(tmp_path, kind, ["Train", "VALID", "Test"])
    assert splits_of(root) == ["train", "val", "test"]
    for path, split in ((root, "val"), (root / "VALID", None)):
        assert list(boxes_of(reader_of(path)(path, split=split))) == ["VALID_0.png", "VALID_1.png"]


@pytest.fixture(params=FORMATS)
def folders(request, tmp_path):
    return request.param, lay_out(tmp_path / "set", request.param)


def test_the_folder_of_a_split_is_that_split(folders, monkeypatch):
    kind, root = folders
    assert [split_of(root / name) for name in ("train", "valid")] == [(root, "train"), (root, "val")]
    assert (format_of(root / "valid"), splits_of(root / "valid")) == (kind, [])
    assert list(boxes_of(read(root / "valid"))) == ["valid_0.png", "valid_1.png"]
    files = [root / "valid" / "_annotations.coco.json"] if kind == "coco" else []
    assert annotation_files(root / "valid") == files
    monkeypatch.chdir(root / "train")
    assert list(boxes_of(read("."))) == ["train_0.png", "train_1.png"]


@pytest.mark.parametrize("split", ["val", "valid", "validation"])
def test_val_has_three_names(folders, split, call, tmp_path):
    _, root = folders
    for path in (root, root / "valid"):
        assert list(boxes_of(reader_of(path)(path, split=split))) == ["valid_0.png", "valid_1.png"]
    code, _, err = call("train", "data", "convert", root, tmp_path / "out.json", "--split", split)
    assert code == 0, err
    assert len(json.loads((tmp_path / "out.json").read_text())["images"]) == 2


def test_another_split_of_a_folder_that_is_one_is_refused_with_the_folder_to_give(folders, call, tmp_path):
    _, root = folders
    said = f"{root}/valid is the split val of {root}: give {root} for its split 'train'"
    with pytest.raises(DataError, match=said):
        reader_of(root / "valid")(root / "valid", split="train")
    code, _, err = call("train", "data", "convert", root / "valid", tmp_path / "out.json", "--split", "train")
    assert (code, said in " ".join(err.split())) == (2, True), err
    assert not (tmp_path / "out.json").exists()


def test_a_split_that_is_not_there_is_refused_with_those_that_are(folders):
    _, root = folders
    with pytest.raises(DataError, match=r"set has no split 'night'; splits: train, val$"):
        reader_of(root)(root, split="night")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_folder_without_another_beside_it_is_no_split(kind, tmp_path):
    assert split_of(lay_out(tmp_path, kind, ["valid"]) / "valid") is None


def test_a_folder_with_splits_of_its_own_is_no_split(tmp_path):
    root = lay_out(tmp_path / "voc", "voc")
    write(root / "train" / "ImageSets" / "Main" / "val.txt", "train_0\n")
    coco = tmp_path / "coco"
    lay_out(coco / "train", "coco")
    lay_out(coco, "coco", ["valid"])
    for path in (root / "train", coco / "train"):
        assert split_of(path) is None


@pytest.mark.parametrize("images", ["images/{}", "{}/images", "{}"])
def test_with_a_file_of_class_names_a_folder_of_images_is_a_split_too(images, tmp_path):
    for split in ("train", "test"):
        write_photo(tmp_path / images.format(split) / f"{split}.png", height=40, width=96)
        write(tmp_path / images.format(split).replace("images", "labels") / f"{split}.txt", ROW)
    write(tmp_path / "obj.names", "cat\ndog\n")
    dataset = read(tmp_path / images.format("test"))
    assert (list(boxes_of(dataset)), dataset.classes) == (["test.png"], ("cat", "dog"))
    assert split_of(tmp_path / images.format("train")) == (tmp_path, "train")


def test_one_file_has_no_splits(tmp_path):
    file = lay_out(tmp_path, "voc") / "train" / "train_0.xml"
    with pytest.raises(DataError, match=r"train_0\.xml has no split 'train'; splits: none"):
        reader_of(file)(file, split="train")


# Pascal VOC, whose classes and coordinates are those of all splits

PLACES = {  # the folder of a split's XML files -> that of its images, and those that name the split
    "{}": ("{}", ["{}"]),
    "{}/Annotations": ("{}/JPEGImages", ["{}", "{}/Annotations"]),
    "Annotations/{}": ("JPEGImages/{}", ["Annotations/{}"]),
}


@pytest.fixture(params=PLACES)
def voc(request, tmp_path):
    """The training images have a dog at 0, the test images a cat."""
    pictures, paths = PLACES[request.param]
    for split, name, box in (("train", "dog", (0, 0, 10, 20)), ("test", "cat", (5, 7, 10, 20))):
        for number in range(2):
            file = tmp_path / "set" / request.param.format(split) / f"{number}.xml"
            write(file, annotation(thing(name, box), f"{number}.png"))
            write_photo(tmp_path / "set" / pictures.format(split) / f"{number}.png", seed=len(name + split) + number)
    write(tmp_path / "backup" / "z.xml", annotation(thing("zebra"), "z.png"))
    return [[tmp_path / "set" / path.format(split) for split in ("train", "test")] for path in paths]


def test_splits_given_as_folders_have_the_coordinates_and_classes_of_all(voc):
    for train, test in voc:
        assert boxes_of(read(train))["0.png"] == [[0, 0, 10, 20, "dog"]]
        assert boxes_of(read(test))["0.png"] == [[5, 7, 5, 13, "cat"]]
        assert [read(path).classes for path in (train, test)] == [("cat", "dog")] * 2
        assert [read(path).source for path in (train, test)] == [train, test]
        for split, path in (("train", train), ("test", test)):
            assert all(split in read(path).path(image).parts for image in read(path).images)


def test_every_door_takes_such_folders_alike(voc, call, tmp_path):
    from cskd_train.mm import datasets

    train, test = voc[0]
    code, _, err = call("train", "data", "check", train, test)
    assert code == 0, err
    step = [{"type": "LoadImageFromFile"}]
    cfg = {"type": "CocoDataset", "ann_file": str(test), "classes": ("cat", "dog"), "pipeline": step}
    assert datasets.build(cfg, True).normal.annotations[0]["bbox"] == [5, 7, 5, 13]
    code, _, err = call("train", "data", "convert", test, tmp_path / "out.json")
    assert code == 0, err
    assert json.loads((tmp_path / "out.json").read_text())["annotations"][0]["bbox"] == [5, 7, 5, 13]


def test_what_else_lies_beside_the_folders_of_splits_is_not_theirs(tmp_path):
    """As where an archive without a folder of its own was unpacked."""
    root = lay_out(tmp_path, "voc")
    (root / "valid" / "valid_0.png").unlink()
    for number in range(2):
        write_photo(root / "other" / f"valid_{number}.png", seed=90 + number)
        write(root / "other" / f"valid_{number}.xml", annotation(thing("bird", (0, 0, 9, 9)), f"valid_{number}.png"))
    for path, split in ((root / "valid", None), (root, "val")):
        dataset = reader_of(path)(path, split=split, skip_missing=True)
        assert (boxes_of(dataset), dataset.classes) == ({"valid_1.png": [[0, 2, 10, 20, "dog"]]}, ("dog",))
    assert reader_of(root)(root, skip_missing=True).classes == ("bird", "dog")


@pytest.mark.parametrize("names", [("train", "valid"), ("train", "validation")])
def test_a_list_of_voc_is_val_by_any_of_its_names(names, tmp_path):
    for name in "abcd":
        write(tmp_path / "Annotations" / f"{name}.xml", annotation(thing("cat"), f"{name}.png"))
        write_photo(tmp_path / "JPEGImages" / f"{name}.png", seed=ord(name))
    for listing, lines in zip(names, ("a\nb\nc\n", "d\n"), strict=True):
        write(tmp_path / "ImageSets" / "Main" / f"{listing}.txt", lines)
    assert splits_of(tmp_path) == ["train", "val"]
    for split in ("val", names[1]):
        assert list(boxes_of(reader_of(tmp_path)(tmp_path, split=split))) == ["d.png"]


def test_folders_of_voc_that_belong_to_no_set_have_the_classes_of_all_in_a_project(tmp_path):
    for room, name in (("kitchen", "cup"), ("garden", "tree")):
        for number in range(8):
            write(tmp_path / room / f"{number}.xml", annotation(thing(name) + thing("cat", (20, 20, 40, 30))))
            write_photo(tmp_path / room / f"{number}.png", seed=len(name) * 20 + number)
    project = cskd_train.new(tmp_path / "p", [tmp_path / "kitchen", tmp_path / "garden"])
    assert project.classes == ("cat", "cup", "tree")


@pytest.mark.parametrize("lists", [True, False])
def test_voc_with_a_list_or_folder_for_test_alone_trains_on_the_rest(lists, call, tmp_path):
    for number in range(10):
        folder = "" if lists or number < 7 else "test"
        write(tmp_path / "set" / "Annotations" / folder / f"{number}.xml", annotation(thing("cat"), f"{number}.png"))
        write_photo(tmp_path / "set" / "JPEGImages" / f"{number}.png", seed=number)
    root = tmp_path / "set"
    if lists:
        write(root / "ImageSets" / "Main" / "test.txt", "7\n8\n9\n")
    assert splits_of(root) == ["train", "test"]
    assert note_of(read(root), "read as one").endswith("train, test")
    assert len(read(root).images) == 10
    assert list(boxes_of(reader_of(root)(root, split="test"))) == ["7.png", "8.png", "9.png"]
    rest = reader_of(root)(root, split="train")
    assert list(boxes_of(rest)) == [f"{number}.png" for number in range(7)]
    assert note_of(rest, "for training").startswith("7 XML files in no split (test), for training: ")
    code, out, err = call("train", "new", tmp_path / "p", "--data", root, "--json")
    assert (code, json.loads(out)["splits"]) == (0, {"train": 6, "val": 1, "test": 3}), err


def test_a_list_for_test_that_names_all_files_leaves_none_for_training(tmp_path):
    write(tmp_path / "Annotations" / "a.xml", annotation(filename="a.png"))
    write_photo(tmp_path / "JPEGImages" / "a.png")
    write(tmp_path / "ImageSets" / "Main" / "test.txt", "a\n")
    assert splits_of(tmp_path) == ["test"]
    assert read(tmp_path).notes == ()
    with pytest.raises(DataError, match="has no XML file for training: all are in test"):
        reader_of(tmp_path)(tmp_path, split="train")


# Splits that are there, and empty


def empty(root, kind, split):
    """A split's folder as it is made before there is anything in it; of VOC a list, of COCO a file of no images."""
    if kind == "coco":
        write(root / split / "_annotations.coco.json", content(split, images=0))
    if kind == "voc":
        for name in ("train", "valid", "test"):
            files = [path.stem for path in (root / name).glob("*.xml")]
            write(root / "ImageSets" / "Main" / f"{name}.txt", "\n".join(files if name != split else []))
    for path in (root / split).glob("*.*"):
        if path.suffix in (".png", ".txt"):
            path.unlink()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_project_and_a_conversion_leave_out_an_empty_split_and_say_so(kind, split, call, tmp_path):
    root = lay_out(tmp_path / "set", kind, ["train", "valid", "test"], images=8)
    empty(root, kind, split)
    name = {"valid": "val"}.get(split, split)
    said = f"1 split without images left out: {name}"
    code, out, err = call("train", "new", tmp_path / "p", "--data", root, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert said in told["warnings"]
    assert told["splits"] == ({"train": 7, "val": 1, "test": 8} if split == "valid" else {"train": 8, "val": 8})
    code, out, err = call("train", "data", "convert", root, tmp_path / "out", "--json")
    assert (code, json.loads(out)["warnings"]) == (0, [said]), err
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == sorted({"train", "val", "test"} - {name})
    code, out, err = call("train", "data", "convert", root, tmp_path / "one.json", "--split", split)
    assert (code, (tmp_path / "one.json").exists()) == (2, False)
    assert ("names no image" if kind == "voc" else "has no image") in err


@pytest.mark.parametrize("kind", FORMATS)
def test_a_project_needs_images_for_training(kind, call, tmp_path):
    root = lay_out(tmp_path / "set", kind, ["train", "valid", "test"])
    empty(root, kind, "train")
    code, _, err = call("train", "new", tmp_path / "p", "--data", root)
    assert (code, "train" in err, (tmp_path / "p").exists()) == (2, True, False)
    assert ("names no image" if kind == "voc" else "the split train of") in err
