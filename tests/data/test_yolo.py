"""YOLO into the normal form: every layout that its tools write, and rows that are none named with file and line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from cskd_data import DataError, read
from cskd_data.yolo import read_yolo

from .factories import boxes_of, write, write_photo

INTAKE = Path(__file__).parent / "intake"
ROW = "1 0.5 0.5 0.25 0.5\n"
BOX = [24, 12, 16, 24, "dog"]  # of 64 x 48 pixels
NAMES = "names: [cat, dog]\n"


@pytest.fixture
def yolo(tmp_path):
    """A function that writes a set of one training and one validation image: `yolo("train: images/train\\n...")`."""

    def fill(yaml="train: images/train\nval: images/val\n", rows=ROW, names=NAMES):
        root = tmp_path / "yolo"
        for number, split in enumerate(("train", "val")):
            write_photo(root / "images" / split / f"{split}.jpg", number)
            write(root / "labels" / split / f"{split}.txt", rows)
        if yaml is not None:
            write(root / "data.yaml", yaml + names)
        return root

    return fill


@pytest.mark.parametrize("case", ["yolo_layout", "yolo_polygons"])
def test_an_odd_set_has_its_expected_boxes(case):
    expected = json.loads((INTAKE / case / "expected.json").read_text())
    dataset = read(INTAKE / case)
    found = boxes_of(dataset)
    assert found.keys() == expected.keys()
    assert dataset.classes == ("cup", "spoon", "plate")
    for name, boxes in expected.items():
        assert [box[4] for box in found[name]] == [box[4] for box in boxes]
        for one, other in zip(found[name], boxes, strict=True):
            assert one[:4] == pytest.approx(other[:4], abs=1e-3)


@pytest.mark.parametrize(
    "yaml",
    [
        "train: images/train\nval: images/val\n",
        "train: ../images/train\nval: ../images/val\n",
        "path: .\ntrain: [images/train]\nval: [images/val]\n",
        "path: ../nowhere\ntrain: ./images/train\nvalid: images/val/\n",
        "path: /data/other/machine\ntrain: /data/other/machine/images/train\nval: images\\val\n",
        "train: images\n",
        "\ufefftrain: lists/train.txt\nval:\n  - lists/val.txt\nnc: 2\n",
        "train: [images/train, images/val]\n",
        "train: [images/train, lists/val.txt]\n",
        "train: images/train\r\nval: images/val\r\n",
    ],
)
@pytest.mark.parametrize("names", [NAMES, "names: {0: cat, 1: dog}\n", "names:\r\n  '0': cat\r\n  1: dog\r\n"])
def test_every_way_to_write_a_split_and_the_names_is_read(yolo, yaml, names):
    root = yolo(yaml, names=names)
    write(root / "lists" / "train.txt", "../images/train/train.jpg\r\n\r\n")
    write(root / "lists" / "val.txt", "/home/you/yolo/images/val/val.jpg\n")
    for path in (root, root / "data.yaml"):
        dataset = read(path)
        assert dataset.classes == ("cat", "dog")
        assert boxes_of(dataset) == {"train.jpg": [BOX], "val.jpg": [BOX]}


def test_one_split_is_chosen_by_name(yolo):
    root = yolo()
    for split in ("val", "valid"):
        assert list(boxes_of(read_yolo(root, split=split))) == ["val.jpg"]
    with pytest.raises(DataError, match="has no split 'test'; splits: train, val"):
        read_yolo(root, split="test")


@pytest.mark.parametrize("folder", ["images/val", "labels/../images/val/"])
def test_the_folder_of_a_split_names_it_alone(yolo, folder, monkeypatch):
    root = yolo()
    dataset = read(root / folder)
    assert (boxes_of(dataset), dataset.classes, dataset.notes) == ({"val.jpg": [BOX]}, ("cat", "dog"), ())
    monkeypatch.chdir(root / "images")
    assert list(boxes_of(read("val"))) == ["val.jpg"]
    (note,) = read(root).notes
    assert str(note) == "2 splits read as one (the folder or list of a split names it alone): train, val"


def test_a_folder_with_labels_beside_its_images_is_a_split_too_and_its_own_classes_make_it_a_set(yolo):
    root = yolo(None)
    for split in ("train", "valid"):
        write_photo(root / split / "images" / f"{split}.jpg")
        write(root / split / "labels" / f"{split}.txt", ROW)
    write(root / "data.yaml", "train: ../train/images\nval: ../valid/images\n" + NAMES)
    assert read(root / "valid").classes == ("cat", "dog")
    assert list(boxes_of(read(root / "valid" / "images"))) == ["valid.jpg"]
    write(root / "valid" / "classes.txt", "bird\nfish\n")
    assert read(root / "valid").classes == ("bird", "fish")


def test_a_folder_of_several_splits_or_of_none_is_no_split(yolo):
    root = yolo()
    for folder in ("images", "labels"):
        with pytest.raises(DataError, match="holds no data set"):
            read(root / folder)
    write(root / "data.yaml", "train: images\nval: images\n" + NAMES)
    with pytest.raises(DataError, match="holds no data set"):
        read(root / "images" / "val")
    write(root / "data.yaml", "names: [x\n")
    with pytest.raises(DataError, match="holds no data set"):
        read(root / "images" / "val")


@pytest.mark.parametrize("name", ["x" * 300, "nul\\0", "y/" * 3000])
def test_names_that_no_file_can_have_are_as_names_of_files_that_are_not_there(yolo, name):
    text = f'"{name}"'
    root = yolo(f"path: {text}\ntrain: images/train\nval: images/val\n")
    assert [str(note) for note in read(root).notes if "is not there: its own folder is taken" in str(note)]
    assert list(boxes_of(read(root))) == ["train.jpg", "val.jpg"]
    dataset = read(yolo(f"train: {text}\nval: images/val\n"))
    assert "1 split not there: train" in str(dataset.notes[0])
    plain = name.replace("\\0", "\0")
    with pytest.raises(DataError, match="does not exist"):
        read(plain)
    with pytest.raises(DataError, match="does not exist"):
        read(root, plain)


def test_the_folder_beside_goes_before_one_of_another_set(yolo, tmp_path):
    root = yolo("train: ../images/train\n")
    write_photo(tmp_path / "images" / "train" / "stranger.jpg")
    assert list(boxes_of(read(root))) == ["train.jpg"]


@pytest.mark.parametrize("names", ["names: [no, yes]\n", "names: {0: no, 1: yes}\n", "names: |\n  no\n  yes\n"])
def test_a_class_called_no_stays_a_name(yolo, names):
    assert read(yolo(names=names)).classes == ("no", "yes")


@pytest.mark.parametrize("file", ["classes.txt", "obj.names", "labels/classes.txt"])
def test_a_file_of_classes_does_in_place_of_yaml(yolo, file):
    root = yolo(None)
    write(root / file, "cat\r\ndog\r\n\r\n")
    assert boxes_of(read(root)) == {"train.jpg": [BOX], "val.jpg": [BOX]}
    (root / file).unlink()
    with pytest.raises(
        DataError, match=r"nothing names the classes of .*: expected a data\.yaml with `names`, or a cl"
    ):
        read(root)


def test_the_folder_that_label_studio_writes_is_no_coco_set(yolo):
    root = yolo(None)
    write(root / "classes.txt", "cat\ndog\n")
    write(root / "notes.json", '{"categories": [{"id": 0, "name": "cat"}], "info": {}}')
    assert boxes_of(read(root)) == {"train.jpg": [BOX], "val.jpg": [BOX]}


def test_labels_beside_their_images_are_read(tmp_path):
    write_photo(tmp_path / "obj_train_data" / "a.jpg")
    write(tmp_path / "obj_train_data" / "a.txt", ROW)
    write(tmp_path / "obj.names", "cat\ndog\n")
    write(tmp_path / "train.txt", "data/obj_train_data/a.jpg\n")
    assert boxes_of(read(tmp_path)) == {"a.jpg": [BOX]}


def test_images_elsewhere_are_matched_by_name(yolo, tmp_path):
    root = yolo()
    shutil.move(root / "images", tmp_path / "elsewhere")
    assert boxes_of(read(root, tmp_path / "elsewhere")) == {"train.jpg": [BOX], "val.jpg": [BOX]}
    assert list(boxes_of(read_yolo(root, tmp_path / "elsewhere", "val"))) == ["val.jpg"]
    write(root / "data.yaml", "train: somewhere\n" + NAMES)
    assert boxes_of(read(root, tmp_path / "elsewhere")) == {"train.jpg": [BOX], "val.jpg": [BOX]}
    for split in ("train", "val"):
        write(root / "labels" / split / "same.txt", ROW)
    write_photo(tmp_path / "elsewhere" / "same.jpg")
    with pytest.raises(DataError, match=r"have a label file same\.txt: it is unclear whose"):
        read(root, tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("rows", "boxes"),
    [
        ("", []),
        ("\r\n\r\n", []),
        (ROW.replace("\n", "\r\n") * 1, [BOX]),
        ("\ufeff" + ROW, [BOX]),
        ("1.0 5e-1 .5 0.25 0.5", [BOX]),
        ("1\t0.5  0.5\t0.25 0.5\n0 0.5 0.5 1 1\n", [BOX, [0, 0, 64, 48, "cat"]]),
    ],
)
def test_rows_are_read_as_numbers_however_they_are_spaced(yolo, rows, boxes):
    assert boxes_of(read(yolo(rows=rows) if boxes else with_one_box(yolo, rows)))["train.jpg"] == boxes


def with_one_box(yolo, rows):
    root = yolo(rows=rows)
    write(root / "labels" / "val" / "val.txt", ROW)
    return root


@pytest.mark.parametrize("missing", [False, True])
def test_an_image_without_rows_or_without_a_label_file_has_no_objects(yolo, missing):
    root = yolo()
    label = write(root / "labels" / "train" / "train.txt", "")
    if missing:
        label.unlink()
    dataset = read(root)
    assert boxes_of(dataset) == {"train.jpg": [], "val.jpg": [BOX]}
    assert dataset.check().images_without_boxes == 1


@pytest.mark.parametrize(
    ("rows", "box", "said"),
    [
        ("1 0.25 1 0.5 0.25 0.75 0.5\n", [16, 12, 32, 36, "dog"], "2 rows of points read as the box around them"),
        ("1 .25 .25 .5 .25 .5 .5 .25 .5\n", [16, 12, 16, 12, "dog"], "2 rows of points read as the box around them"),
        (ROW.strip() + " 0.9\n", BOX, "2 rows with a sixth number, a score: a detector found them"),
        (ROW.strip() + " 7\n", BOX, "2 rows with a sixth number, not used"),
        (ROW * 2, BOX, "2 rows that are written twice, taken once"),
    ],
)
def test_other_rows_are_read_and_noted(yolo, rows, box, said):
    dataset = read(yolo(rows=rows))
    assert boxes_of(dataset)["train.jpg"] == [box]
    assert str(dataset.notes[0]).startswith(said)


def test_boxes_with_scores_are_pseudo_labels_which_measure_nothing(yolo, tmp_path):
    dataset = read(yolo(rows=ROW.strip() + " 0.83\n" + "0 0.5 0.5 0.1 0.1 1\n"))
    assert dataset.pseudo_labels == {}
    assert [one["score"] for one in dataset.annotations] == [0.83, 1, 0.83, 1]
    with pytest.raises(DataError, match="is pseudo-labelled: a detector found its boxes"):
        dataset.refuse_as_truth()
    dataset.to_coco(tmp_path / "a.json")
    assert read(tmp_path / "a.json").pseudo_labels == {}


@pytest.mark.parametrize("sixth", ["1", "0", "17", "-1"])
def test_a_sixth_number_of_another_kind_is_no_score(yolo, sixth):
    dataset = read(yolo(rows=f"{ROW.strip()} {sixth}\n0 0.5 0.5 0.1 0.1 1\n"))
    assert dataset.pseudo_labels is None
    assert not any("score" in one for one in dataset.annotations)


def test_keypoints_are_left_out_of_a_row(yolo):
    root = yolo("kpt_shape: [2, 2]\ntrain: images\n", rows=ROW.strip() + " 0.1 0.1 0.2 0.2\n")
    assert boxes_of(read(root))["train.jpg"] == [BOX]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("2 0.5 0.5 0.25 0.5\n", "train.txt, line 1: class 2 has no name: the classes are 0 to 1"),
        (ROW + "-1 0.5 0.5 0.1 0.1\n", "train.txt, line 2: class -1 has no name"),
        ("0.5 0.5 0.5 0.1 0.1\n", "line 1: class 0.5 has no name"),
        ("1 0.5 0.5 0.25\n", "line 1: 4 numbers in '1 0.5 0.5 0.25', expected 5, or the points of a polygon"),
        ("1 .1 .1 .2 .2 .3 .3 .4\n", "line 1: 8 numbers in"),
        ("1 0.5 0.5 wide 0.5\n", "line 1: '1 0.5 0.5 wide 0.5' holds what is no number"),
        ("1 nan 0.5 0.5 0.5\n", "holds what is no number"),
        ("1 1e999 0.5 0.5 0.5\n", "holds what is no number"),
        ("1 32 24 16 24\n", "leaves the image: expected fractions of its width and height, from 0 to 1"),
    ],
)
def test_a_row_that_is_none_is_named_with_its_line(yolo, rows, said):
    with pytest.raises(DataError) as error:
        read(yolo(rows=rows))
    assert said in str(error.value)
    assert "cannot be used, 2 faults" in str(error.value)


@pytest.mark.parametrize(
    ("yaml", "names", "said"),
    [
        ("train: nowhere\n", NAMES, "none of its splits is there (train: nowhere)"),
        ("nc: 2\n", NAMES, "it names neither train nor val"),
        ("train: images\n", "names: {a: cat}\n", "`names` has a key that is no number"),
        ("train: images\n", "names: {1: cat, 2: dog}\n", "the numbers of `names` are not 0 to 1, each once"),
        ("train: images\n", "names: []\n", "`names` is no list of class names"),
        ("train: images\n", "names: [[cat]]\n", "`names` is no list of class names"),
        ("train: [images\n", NAMES, "data.yaml, line 2, column"),
        ("train: images\n", "names: " + "[" * 5000, "it holds more than 200 brackets"),
        ("train: images\n", "names: " + "[" * 99, "not YAML"),
        ("train: images\n", "names: !!python/object/apply:os.system [exit]\n", "class 1 has no name"),
    ],
)
def test_a_yaml_file_that_cannot_be_used_is_refused(yolo, yaml, names, said):
    with pytest.raises(DataError) as error:
        read(yolo(yaml, names=names))
    assert said in str(error.value)


def test_a_split_that_is_not_there_is_noted(yolo):
    dataset = read(yolo("train: images/train\nval: images/val\ntest: images/test\n"))
    assert str(dataset.notes[0]) == "1 split not there: test: images/test"


def test_a_set_without_any_label_file_or_image_is_refused(yolo):
    root = yolo()
    shutil.rmtree(root / "labels")
    with pytest.raises(DataError, match=r"no label file of 2 images of .* was found: expected labels/NAME\.txt"):
        read(root)
    shutil.rmtree(root / "images")
    (root / "images" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"none of its splits is there|has no image"):
        read(root)


def test_a_listed_image_that_is_missing_is_named_or_left_out(yolo):
    root = yolo("train: train.txt\n")
    write(root / "train.txt", "images/train/train.jpg\nimages/train/gone.jpg\n")
    with pytest.raises(DataError, match=r"image .*gone\.jpg does not exist"):
        read(root)
    assert list(boxes_of(read_yolo(root, skip_missing=True))) == ["train.jpg"]


def test_the_aquarium_set_of_roboflow_is_read_as_it_was_downloaded():
    if not os.environ.get("CSKD_DATA"):
        pytest.skip("CSKD_DATA does not name a folder with the set aquarium")
    root = Path(os.environ["CSKD_DATA"]) / "aquarium"
    dataset = read(root)
    assert dataset.classes == ("fish", "jellyfish", "penguin", "puffin", "shark", "starfish", "stingray")
    assert [str(note) for note in dataset.notes] == [
        "2 splits read as one (the folder or list of a split names it alone): train, val",
        "1 split that data.yaml does not name, read only when asked for: test",
    ]
    splits = {split: read(root / split) for split in ("train", "valid", "test")}
    for split, one in splits.items():
        labels = list((root / split / "labels").glob("*.txt"))
        assert len(one.images) == len(labels)
        rows = [line.split() for path in labels for line in path.read_text().splitlines()]
        assert len(one.annotations) == sum(float(row[3]) > 0 < float(row[4]) for row in rows)
        assert one.check().errors == ()
    assert len(dataset.images) == len(splits["train"].images) + len(splits["valid"].images)
