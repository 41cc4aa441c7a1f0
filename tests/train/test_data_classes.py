"""Classes and splits: matched by name everywhere, or refused with both lists before anything is built."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

import cskd_data
from cskd_data import DataError
from cskd_train.engine.build import build_split, check_data, check_split
from cskd_train.errors import TrainError
from cskd_train.files.checkpoints import load_checkpoint
from cskd_train.files.config import config_from_data, config_to_data, load_config
from cskd_train.files.variables import unread_names
from cskd_train.mm import datasets
from cskd_train.mm.data_sources import classes_of

LOAD = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations", "with_bbox": True}]


@pytest.fixture
def two_sets(tmp_path):
    """Two files of two images each with equal image ids; their categories stand in different orders."""
    for name, order, shade in (("a", ("cat", "dog"), 40), ("b", ("dog", "cat"), 90)):
        (folder := tmp_path / name).mkdir()
        for number in (1, 2):
            cv2.imwrite(str(folder / f"{number}.png"), np.full((48, 64, 3), shade + number, np.uint8))
        boxes = [{"image_id": 1, "category_id": 1, "bbox": [2, 3, 20, 10]}]
        boxes.append({"image_id": 2, "category_id": 2, "bbox": [4, 5, 30, 20]})
        data = {
            "images": [{"id": number, "file_name": f"{number}.png"} for number in (1, 2)],
            "annotations": boxes,
            "categories": [{"id": number, "name": one} for number, one in enumerate(order, start=1)],
        }
        (folder / "coco.json").write_text(json.dumps(data))
    return tmp_path


def config(root, name, classes=("cat", "dog"), **changes):
    own = {"ann_file": "coco.json", "data_root": str(root / name), "img_prefix": "", "classes": classes}
    return {"type": "CocoDataset", "pipeline": LOAD, **own, **changes}


def labels(dataset):
    """The class of the box of each image, by the dataset's own names."""
    return [dataset.CLASSES[dataset.get_ann_info(index)["labels"][0]] for index in range(len(dataset))]


def test_members_of_one_dataset_get_one_order_of_classes(two_sets):
    members = [config(two_sets, "a"), config(two_sets, "b", classes=("dog", "cat"))]
    joined = datasets.build({"type": "ConcatDataset", "datasets": members}, test_mode=False)
    assert joined.CLASSES == ("cat", "dog")
    for member, expected in zip(joined.datasets, (["cat", "dog"], ["dog", "cat"]), strict=True):
        assert member.CLASSES == ("cat", "dog")
        assert labels(member) == expected


def test_members_with_different_classes_are_refused_with_both_lists(two_sets):
    members = [config(two_sets, "a"), config(two_sets, "b", classes=("dog",))]
    with pytest.raises(TrainError, match=r"b/coco\.json are dog, expected those of .*: cat, dog\."):
        datasets.build({"type": "ConcatDataset", "datasets": members}, test_mode=False)


@pytest.mark.parametrize("form", ["lists", "concat"])
def test_several_files_are_evaluated_as_one_set_whose_ids_stay_apart(two_sets, form):
    if form == "lists":
        files = {"ann_file": ["a/coco.json", "b/coco.json"], "img_prefix": ["a", "b"], "data_root": str(two_sets)}
        cfg = config(two_sets, "a", pipeline=LOAD[:1], **files)
    else:
        cfg = {"type": "ConcatDataset", "datasets": [config(two_sets, one, pipeline=LOAD[:1]) for one in "ab"]}
    dataset = datasets.build(cfg, test_mode=True)
    assert len(dataset) == len(dataset.img_ids) == 4
    assert [dataset[index]["img"][0, 0, 0] for index in range(4)] == [41, 42, 91, 92]
    keys = [dataset.normal.image_keys[number] for number in dataset.img_ids]
    assert keys == ["coco-1/1", "coco-1/2", "coco-2/1", "coco-2/2"]
    names = ["cat", "dog", "dog", "cat"]
    category_keys = dict(zip(dataset.CLASSES, dataset.normal.category_keys.values(), strict=True))
    found = [
        {"image_id": key, "category_id": category_keys[name], "bbox": box, "score": 0.9}
        for key, name, box in zip(keys, names, [[2, 3, 20, 10], [4, 5, 30, 20]] * 2, strict=True)
    ]
    assert cskd_data.evaluate(dataset.normal, found).per_class == pytest.approx({"cat": 1.0, "dog": 1.0})


@pytest.fixture
def cfg(tiny_config, two_sets):
    """The tiny config on the first set, for training and validation."""
    found = load_config(tiny_config)
    for split in ("train", "val"):
        found.data[split].update(config(two_sets, "a", pipeline=found.data[split].pipeline))
    return found


def test_the_validation_classes_take_the_order_of_the_training_classes(cfg):
    cfg.data.val.classes = ("dog", "cat")
    check_data(cfg)
    validation = build_split(cfg, "val", build_split(cfg, "train").CLASSES)
    assert validation.CLASSES == ("cat", "dog")
    assert labels(validation) == ["cat", "dog"]


def test_other_validation_classes_are_refused_before_anything_is_built(cfg):
    cfg.data.val.classes = ("dog",)
    with pytest.raises(TrainError, match=r"are dog, expected those of the model and of the training data: cat, dog"):
        check_data(cfg)


def test_a_class_that_the_file_lacks_is_refused_with_both_lists(cfg):
    cfg.data.train.classes = cfg.data.val.classes = ("cat", "cow")
    with pytest.raises(DataError, match=r"has no class 'cow'(?s:.)*'cat', 'cow'(?s:.)*'cat', 'dog'"):
        check_data(cfg)


def test_names_come_from_a_file_too(cfg, tmp_path):
    (names := tmp_path / "names.txt").write_text("dog\ncat\n")
    cfg.data.train.classes = str(names)
    check_data(cfg)
    train_set = build_split(cfg, "train")
    assert train_set.CLASSES == ("dog", "cat")
    assert labels(train_set) == ["cat", "dog"]


TWO_SPLITS = """
data = dict(
    train=dict(type="CocoDataset", classes=classes),
    val=dict(type="RepeatDataset", dataset=dict(type="CocoDataset", classes=classes)),
)
"""


@pytest.mark.parametrize("written", ["'traffic light'", "['traffic light']", "('traffic light',)"])
def test_one_name_alone_is_one_class_however_it_is_written(tmp_path, written):
    (tmp_path / "c.py").write_text(f"classes = {written}{TWO_SPLITS}")
    cfg = load_config(tmp_path / "c.py")
    for found in (cfg, config_from_data(config_to_data(cfg))):
        assert classes_of(found.data.train) == classes_of(found.data.val) == ("traffic light",)
    (tmp_path / "written_out.json").write_text(json.dumps(config_to_data(cfg)))
    assert unread_names(load_config(tmp_path / "written_out.json")) == []


@pytest.mark.parametrize("text", ["circle", "['circle']", "('circle',)"])
def test_one_name_alone_is_one_class_with_set_too(train_tiny, tmp_path, text):
    names = [f"data.{split}.classes={text}" for split in ("train", "val")]
    options = [
        word for one in (*names, "model.bbox_head.num_classes=1", "runner.max_epochs=1") for word in ("--set", one)
    ]
    code, _, err = train_tiny(tmp_path / "w", *options)
    assert code == 0, err
    stored = load_checkpoint(tmp_path / "w" / "last.pth")
    assert stored.classes == ("circle",)
    assert classes_of(stored.config["data"]["val"]) == ("circle",)


def test_a_picture_in_two_splits_is_a_warning(cfg, two_sets):
    assert [one for one in check_data(cfg) if one.startswith("2 pictures both in train and in val")]
    cfg.data.val.data_root = str(two_sets / "b")
    assert not [one for one in check_data(cfg) if "both in" in one]


def test_a_split_without_annotations_is_refused_where_it_is_learnt_or_scored(cfg, two_sets):
    file = two_sets / "a" / "coco.json"
    data = json.loads(file.read_text())
    del data["annotations"]
    file.write_text(json.dumps(data))
    with pytest.raises(TrainError, match=r"data\.train: .* holds no annotations"):
        check_data(cfg)
    assert [one for one in check_split(cfg, "val", scored=False) if "there are no annotations" in one]


def test_the_check_and_the_dataset_share_one_reading_until_the_file_changes(cfg, two_sets, monkeypatch):
    read, seen = cskd_data.read, []
    monkeypatch.setattr(cskd_data, "read", lambda *arguments: (seen.append(arguments), read(*arguments))[1])
    check_data(cfg)
    build_split(cfg, "train")
    build_split(cfg, "val")
    assert len(seen) == 1
    file = two_sets / "a" / "coco.json"
    file.write_text(file.read_text() + " ")
    build_split(cfg, "train")
    assert len(seen) == 2
