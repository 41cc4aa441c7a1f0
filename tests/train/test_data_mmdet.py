"""The datasets that mmdet trains and evaluates on: what counts, which label is which class, and unreadable images."""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter

import cv2
import numpy as np
import pytest
from mmdet.datasets import CocoDataset, build_dataloader

from cskd_data import DataError
from cskd_train.errors import TrainError
from cskd_train.mm import datasets
from cskd_train.mm.data_sources import Source

LOAD = [
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations", "with_bbox": True},
    {"type": "Pad", "size_divisor": 32},
    {"type": "DefaultFormatBundle"},
    {"type": "Collect", "keys": ["img", "gt_bboxes", "gt_labels"], "meta_keys": ["filename"]},
]
BOXES = [
    (1, 7, [2.0, 3.0, 20.0, 10.0], 200.0),
    (1, 5, [10.0, 8.0, 40.0, 40.0], 1600.0),
    (1, 5, [30.0, 20.0, 0.0, 0.0], 0.0),
    (1, 5, [64.0, 20.0, 9.0, 9.0], 81.0),
    (2, 7, [5.0, 5.0, 0.5, 9.0], 4.5),
    (2, 7, [3.0, 3.0, 12.0, 9.0], 108.0),
    (3, 7, [3.0, 3.0, -8.0, 9.0], 72.0),
]


@pytest.fixture
def coco_root(tmp_path):
    """Three images of 64 x 48, category ids with gaps, not in the config's order; image 3 has no box that counts."""
    for number in (1, 2, 3):
        cv2.imwrite(str(tmp_path / f"{number}.jpg"), np.full((48, 64, 3), 40 * number, np.uint8))
    coco = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 64, "height": 48} for n in (1, 2, 3)],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "bbox": bbox, "area": area, "iscrowd": 0}
            for n, (image, category, bbox, area) in enumerate(BOXES, start=1)
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 5, "name": "dog"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    return tmp_path


def config(root, **changes):
    return {
        "type": "CocoDataset",
        "ann_file": "coco.json",
        "data_root": str(root),
        "img_prefix": "",
        "classes": ("dog", "cat"),
        "pipeline": LOAD,
        **changes,
    }


def perfect_map(dataset) -> float:
    """COCO mAP of detections that find every box that is at least a pixel wide, and nothing else."""
    detections = [[np.zeros((0, 5), np.float32) for _ in dataset.CLASSES] for _ in range(len(dataset))]
    for index in range(len(dataset)):
        truth = dataset.get_ann_info(index)
        for box, label in zip(truth["bboxes"], truth["labels"], strict=True):
            row = np.append(box, 0.9).astype(np.float32)[None]
            detections[index][label] = np.concatenate([detections[index][label], row])
    with contextlib.redirect_stdout(io.StringIO()):
        return dataset.evaluate(detections, logger="silent")["bbox_mAP"]


def test_degenerate_boxes_count_neither_in_training_nor_in_evaluation(coco_root):
    training = datasets.build(config(coco_root), test_mode=False)
    assert [info["file_name"] for info in training.data_infos] == ["1.jpg", "2.jpg"]
    evaluation = datasets.build(config(coco_root), test_mode=True)
    assert [info["file_name"] for info in evaluation.data_infos] == ["1.jpg", "2.jpg", "3.jpg"]
    assert sorted(evaluation.coco.getAnnIds()) == sorted(training.coco.getAnnIds()) == [1, 2, 3, 4]
    assert evaluation.coco.getAnnIds(imgIds=[3]) == []


def test_stock_mmdet_counts_a_degenerate_box_as_missed_and_ours_does_not(coco_root):
    """Two dogs without extent: of three, stock mmdet finds one."""
    pipeline = LOAD[:1]
    stock_config = {**config(coco_root, pipeline=pipeline), "classes": ("cat", "dog"), "test_mode": True}
    stock_config.pop("type")
    with contextlib.redirect_stdout(io.StringIO()):
        stock = CocoDataset(**stock_config)
    ours = datasets.build(config(coco_root, pipeline=pipeline, classes=("dog",)), test_mode=True)
    assert perfect_map(ours) == pytest.approx(1.0)
    assert perfect_map(stock) < 0.5


def test_boxes_thinner_than_a_pixel_are_evaluated_but_not_trained_on(coco_root):
    dataset = datasets.build(config(coco_root), test_mode=False)
    assert dataset.get_ann_info(1)["bboxes"].tolist() == [[3.0, 3.0, 15.0, 12.0]]
    assert dataset.coco.getAnnIds(imgIds=[2]) == [3, 4]


def test_labels_follow_the_configs_classes_whatever_the_order_and_gaps_of_ids(coco_root):
    for classes, keys in ((("dog", "cat"), [5, 7]), (("cat", "dog"), [7, 5])):
        dataset = datasets.build(config(coco_root, classes=classes), test_mode=False)
        assert dataset.cat_ids == [1, 2]
        assert [dataset.normal.category_keys[number] for number in dataset.cat_ids] == keys
        assert [classes[label] for label in dataset.get_ann_info(0)["labels"]] == ["cat", "dog"]
        assert dataset[0]["gt_labels"].data.tolist() == [classes.index("cat"), classes.index("dog")]
        dataset = datasets.build(config(coco_root, classes=classes), test_mode=True)
        assert perfect_map(dataset) == pytest.approx(0.8, abs=0.15)  # the box thinner than a pixel is missed


def test_a_class_that_the_file_lacks_is_an_error_that_names_both_lists(coco_root):
    with pytest.raises(DataError, match=r"has no class 'cow'(?s:.)*'dog', 'cow'(?s:.)*'cat', 'dog'"):
        datasets.build(config(coco_root, classes=("dog", "cow")), test_mode=False)


def test_images_without_boxes_stay_in_training_where_the_config_says_so(coco_root):
    dataset = datasets.build(config(coco_root, filter_empty_gt=False), test_mode=False)
    assert len(dataset) == 3
    assert dataset[2]["gt_bboxes"].data.shape == (0, 4)


def test_wrappers_and_lists_of_files_are_built_of_the_same_dataset(coco_root):
    repeated = {"type": "RepeatDataset", "times": 3, "dataset": config(coco_root)}
    joined = {"type": "ConcatDataset", "datasets": [repeated, config(coco_root, ann_file=["coco.json", "coco.json"])]}
    assert len(datasets.build(joined, test_mode=False)) == 2 * 3 + 2 * 2
    assert len(datasets.build([config(coco_root), repeated], test_mode=False)) == 2 + 2 * 3


@pytest.mark.parametrize(
    ("wrapped", "used"),
    [
        (lambda one: one, 2),
        (lambda one: {**one, "filter_empty_gt": False}, 3),
        (lambda one: {"type": "RepeatDataset", "times": 3, "dataset": one}, 2),
        (lambda one: {"type": "ConcatDataset", "datasets": [one, {**one, "filter_empty_gt": False}]}, 5),
        (lambda one: {**one, "ann_file": ["coco.json"] * 2}, 4),
        (lambda one: {"type": "ClassBalancedDataset", "oversample_thr": 0.9, "dataset": one}, 2),
    ],
)
def test_images_count_that_are_trained_on_each_once(wrapped, used, coco_root):
    """Of three, one has no box. All are evaluated on."""
    assert datasets.counts(datasets.build(wrapped(config(coco_root)), test_mode=False)) == (used, 0)
    assert datasets.counts(datasets.build(config(coco_root), test_mode=True)) == (3, 0)


def test_images_that_are_too_small_to_train_on_do_not_count(coco_root):
    cv2.imwrite(str(coco_root / "2.jpg"), np.full((24, 64, 3), 80, np.uint8))
    data = json.loads((coco_root / "coco.json").read_text())
    data["images"][1]["height"] = 24
    (coco_root / "coco.json").write_text(json.dumps(data))
    dataset = datasets.build(config(coco_root), test_mode=False)
    assert (len(dataset), datasets.counts(dataset)) == (1, (1, 0))


def test_the_config_is_not_changed(coco_root):
    given = config(coco_root)
    before = json.dumps(given)
    datasets.build(given, test_mode=True)
    assert json.dumps(given) == before


def test_a_dataset_that_is_not_coco_is_refused(coco_root):
    with pytest.raises(TrainError, match="dataset type 'VOCDataset' is not supported"):
        datasets.build(config(coco_root, type="VOCDataset"), test_mode=False)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("content", "fault"),
    [(b"", "is empty (0 bytes)"), (b"\xff\xd8 not more", "has a broken JPEG header"), (None, "does not exist")],
)
def test_an_unreadable_image_is_named_also_by_a_worker(coco_root, workers, content, fault):
    dataset = datasets.build(config(coco_root), test_mode=False)
    if content is None:
        (coco_root / "2.jpg").unlink()
    else:
        (coco_root / "2.jpg").write_bytes(content)
    loader = build_dataloader(dataset, 1, workers, dist=False, shuffle=False)
    message = refusal(loader)
    assert message.startswith(f"{coco_root / '2.jpg'} {fault}")
    assert "Traceback" not in message
    assert len(message.splitlines()) == 1


def refusal(loader) -> str:
    """The message that ends a loader's epoch; without the traceback, which would keep the worker alive for seconds."""
    try:
        for _ in loader:
            pass
    except TrainError as error:
        return str(error.with_traceback(None))
    return "no error"


def test_the_box_without_area_of_bccd_is_gone_and_all_others_are_there(bccd_root):
    dataset = datasets.build(
        config(bccd_root, ann_file="annotations/val.json", img_prefix="images/", classes=("RBC", "WBC", "Platelets")),
        test_mode=True,
    )
    assert not [a for a in dataset.coco.anns.values() if not a["area"]]
    assert Counter(a["category_id"] for a in dataset.coco.anns.values()) == {1: 967, 2: 87, 3: 83}


def test_labels_that_change_in_a_folder_are_read_again_in_the_same_process(tmp_path):
    for number in (1, 2):
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "images").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "images" / f"{number}.jpg"), np.full((48, 64, 3), 40, np.uint8))
        (tmp_path / "labels" / f"{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    for source in (
        Source(str(tmp_path), None, ("cat", "dog")),
        Source(str(tmp_path / "data.yaml"), None, ("cat", "dog")),
    ):
        first = source.read()
        assert source.read() is first
        (tmp_path / "labels" / "2.txt").write_text("1 0.5 0.5 0.5 0.5\n0 0.5 0.5 0.2 0.2\n")
        assert source.read().boxes_per_class == {"cat": 2, "dog": 1}
        (tmp_path / "labels" / "2.txt").write_text("0 0.5 0.5 0.5 0.5\n")
        assert source.read().boxes_per_class == {"cat": 2, "dog": 0}
