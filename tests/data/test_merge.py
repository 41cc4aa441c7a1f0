"""An image that several annotation files list is one image with the boxes of all."""

from __future__ import annotations

import json

import pytest
from mmcv import Config

from cskd_data import check, evaluate, read
from cskd_data.merge import merge
from cskd_train.engine.build import check_split
from cskd_train.mm import datasets

from .factories import boxes_of, note_of, write, write_photo

LEFT, RIGHT, LOW = [5, 5, 20, 20], [35, 5, 20, 20], [5, 30, 30, 10]


def coco(file, boxes, first_id=1, width=64, image_folder=""):
    """A COCO file: file name of an image -> its boxes."""
    images = [
        {"id": number, "file_name": f"{image_folder}{name}", "width": width, "height": 48}
        for number, name in enumerate(boxes, start=first_id)
    ]
    annotations = [
        {"image_id": image["id"], "category_id": 1, "bbox": box, "iscrowd": 0}
        for image, own in zip(images, boxes.values(), strict=True)
        for box in own
    ]
    annotations = [{"id": number, **one} for number, one in enumerate(annotations, start=1)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    return write(file, json.dumps(content))


@pytest.fixture
def annotators(tmp_path):
    """The files of two people who have drawn other boxes on `a.jpg`, and one on `b.jpg`."""
    for number, name in enumerate("abc"):
        write_photo(tmp_path / f"{name}.jpg", number)
    one = coco(tmp_path / "x.json", {"a.jpg": [LEFT], "c.jpg": []})
    return one, coco(tmp_path / "y.json", {"b.jpg": [LOW], "a.jpg": [RIGHT]}, first_id=2)


def config(files, **changes):
    pipeline = [{"type": "LoadImageFromFile"}]
    folder = str(files[0].parent)
    return {
        "type": "CocoDataset",
        "ann_file": [str(file) for file in files],
        "img_prefix": folder,
        "classes": ("cat",),
        "pipeline": pipeline,
        **changes,
    }


def test_the_boxes_of_two_people_on_one_image_are_learnt_and_counted_together(annotators):
    dataset = merge([read(file) for file in annotators])
    assert boxes_of(dataset) == {
        "a.jpg": [[*LEFT, "cat"], [*RIGHT, "cat"]],
        "b.jpg": [[*LOW, "cat"]],
        "c.jpg": [],
    }
    assert list(dataset.image_keys.values()) == [1, "x/2", "y/2"]
    said = "1 image in several files, read as one with the boxes of all: a.jpg"
    assert said in [str(note) for note in check.check(dataset).warnings]
    found = [(1, LEFT), (1, RIGHT), ("y/2", LOW)]
    perfect = [{"image_id": key, "category_id": 1, "bbox": box, "score": 0.9} for key, box in found]
    assert evaluate(dataset, perfect).mean_average_precision == 1


def test_an_evaluation_of_several_files_has_each_image_once(annotators):
    built = datasets.build(config(annotators), test_mode=True)
    assert [image["filename"] for image in built.data_infos] == ["a.jpg", "c.jpg", "b.jpg"]


def test_a_box_that_stands_in_both_files_is_one(annotators, tmp_path):
    again = coco(tmp_path / "z.json", {"./a.jpg": [LEFT, RIGHT]})
    dataset = merge([read(annotators[0]), read(again)])
    assert [box[:4] for box in boxes_of(dataset)["a.jpg"]] == [LEFT, RIGHT]
    assert "the boxes of all, 1 box that stand there again once: a.jpg" in note_of(dataset, "several files")
    assert list(dataset.image_keys.values()) == [1, 2]


def test_two_boxes_alike_in_one_file_stay_two(tmp_path, annotators):
    twice = coco(tmp_path / "z.json", {"a.jpg": [RIGHT, RIGHT]})
    dataset = merge([read(annotators[0]), read(twice)])
    assert [box[:4] for box in boxes_of(dataset)["a.jpg"]] == [LEFT, RIGHT, RIGHT]


def test_a_file_that_gives_an_image_another_size_is_found_by_the_check(tmp_path, annotators):
    other = coco(tmp_path / "z.json", {"a.jpg": [RIGHT]}, width=128)
    dataset = merge([read(annotators[0]), read(other)])
    assert len(dataset.images) == 3
    assert "a.jpg" in str(check.check(dataset).errors)


def test_namesakes_in_two_folders_stay_two_images(tmp_path):
    files = []
    for number, name in enumerate(("one", "two")):
        write_photo(tmp_path / name / "a.jpg", number)
        files.append(coco(tmp_path / name / f"{name}.json", {"a.jpg": [LEFT]}))
    dataset = merge([read(file) for file in files])
    assert [image["file_name"] for image in dataset.images] == ["one/a.jpg", "two/a.jpg"]
    assert list(dataset.image_keys.values()) == ["one/1", "two/1"]


def test_an_image_that_is_missing_for_two_files_is_left_out_once(tmp_path, annotators):
    files = [coco(tmp_path / f"{name}.json", {"a.jpg": [LEFT], "gone.jpg": [LOW]}) for name in "vw"]
    dataset = merge([read(file, skip_missing=True) for file in files])
    assert dataset.left_out == {2: "image gone.jpg does not exist"}


def test_a_training_set_of_several_files_says_which_images_they_share(annotators):
    warnings = check_split(Config({"data": {"train": config(annotators)}}), "train")
    assert [one for one in warnings if one.startswith("data.train: 1 image in several annotation files")]
    repeated = config([annotators[0], annotators[0]])
    assert not [one for one in check_split(Config({"data": {"train": repeated}}), "train") if "several" in one]
