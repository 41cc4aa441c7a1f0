"""Errors by kind, against the numbers of tidecv 1.0.1 on the same sets (`tide.json`), and case by case."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cskd_data import DataError, evaluate, read
from cskd_data import error_kinds as module
from cskd_data.error_kinds import KINDS, error_kinds

STORED = json.loads((Path(__file__).parent / "tide.json").read_text())
BOX = [50.0, 40.0, 40.0, 40.0]


def tide_set(seed):
    """A COCO dict and detections of every kind of error: no crowds, no equal scores, a box in every class."""
    rng = np.random.default_rng(seed)
    images = [{"id": number, "file_name": f"{number}.jpg", "width": 300, "height": 300} for number in range(1, 21)]
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, 4)]
    annotations, detections = [], []

    def detect(image, category, box):
        box = [float(value) for value in box]
        detections.append({"image_id": image["id"], "category_id": int(category), "bbox": box, "score": rng.random()})

    for image in images:
        for number in range(rng.integers(1, 7)):
            box = np.concatenate([rng.uniform(0, 220, 2), rng.uniform(20, 80, 2)])
            category = number % 3 + 1 if image["id"] == 1 else rng.integers(1, 4)
            annotation = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": int(category)}
            annotations.append(
                {**annotation, "iscrowd": 0, "bbox": [float(v) for v in box], "area": float(box[2] * box[3])}
            )
            for _ in range(rng.integers(0, 4)):
                moved = box + rng.normal(0, rng.choice([2, 8, 20]), 4)
                moved[2:] = np.maximum(moved[2:], 4)
                detect(image, rng.integers(1, 4) if rng.random() < 0.3 else category, moved)
        for _ in range(rng.integers(0, 3)):
            detect(image, rng.integers(1, 4), np.concatenate([rng.uniform(0, 220, 2), rng.uniform(20, 80, 2)]))
    return {"images": images, "annotations": annotations, "categories": categories}, detections


@pytest.fixture
def dataset_of(tmp_path):
    """A data set of a COCO dict; no images are read."""

    def make(data):
        (tmp_path / "set.json").write_text(json.dumps(data))
        return read(tmp_path / "set.json")

    return make


@pytest.mark.parametrize("case", STORED, ids=lambda case: f"seed{case['seed']}")
def test_ap_and_what_each_kind_costs_are_tidecvs(dataset_of, case, monkeypatch):
    # tidecv's recalls are n / 100; pycocotools' differ in the last bit, which decides where a recall is one of them.
    monkeypatch.setattr(module, "_RECALLS", np.arange(101) / 100)
    data, detections = tide_set(case["seed"])
    kinds = error_kinds(dataset_of(data), detections)

    assert min(kinds.counts.values()) > 0
    assert kinds.ap == pytest.approx(case["ap"], abs=1e-9)
    assert {kind: round(value, 9) for kind, value in kinds.dap.items()} == pytest.approx(case["dap"], abs=1e-9)
    assert kinds.counts == case["counts"]


def test_its_ap_is_the_evaluations_ap50(dataset_of):
    data, detections = tide_set(7)
    data["categories"].append({"id": 9, "name": "no box"})
    detections.append({"image_id": 1, "category_id": 9, "bbox": BOX, "score": 0.9})
    dataset = dataset_of(data)
    assert error_kinds(dataset, detections).ap == pytest.approx(
        100 * evaluate(dataset, detections).metrics["bbox_mAP_50"], abs=1e-6
    )


def _one_box(crowd=False):
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": BOX, "area": 1600.0, "iscrowd": 0}
    other = {"id": 2, "image_id": 2, "category_id": 2, "bbox": BOX, "area": 1600.0, "iscrowd": 0}
    annotations = [box, other]
    if crowd:
        annotations.append({**box, "id": 3, "bbox": [150.0, 100.0, 100.0, 100.0], "iscrowd": 1})
    images = [{"id": number, "file_name": f"{number}.jpg", "width": 300, "height": 300} for number in (1, 2)]
    return {"images": images, "annotations": annotations, "categories": [{"id": n, "name": f"{n}"} for n in (1, 2)]}


def _detection(box, category=1, score=0.5):
    return {"image_id": 1, "category_id": category, "bbox": box, "score": score}


FOUND = {"image_id": 2, "category_id": 2, "bbox": BOX, "score": 0.9}


@pytest.mark.parametrize(
    ("kind", "detections"),
    [
        ("localisation", [_detection([70.0, 40.0, 40.0, 40.0])]),  # IoU 1/3
        ("classification", [_detection(BOX, category=2)]),
        ("both", [_detection([70.0, 40.0, 40.0, 40.0], category=2)]),
        ("duplicate", [_detection(BOX, score=0.8), _detection(BOX)]),
        ("background", [_detection([200.0, 200.0, 40.0, 40.0])]),
        ("missed", []),
    ],
)
def test_an_error_of_each_kind_is_counted_once(dataset_of, kind, detections):
    counts = error_kinds(dataset_of(_one_box()), [FOUND, *detections]).counts
    missed = kind not in ("localisation", "classification", "duplicate")
    assert counts == {**dict.fromkeys(KINDS, 0), "missed": int(missed), **({kind: 1} if kind != "missed" else {})}


def test_a_detection_that_another_cure_would_give_the_same_box_is_left_out_by_its_own(dataset_of):
    # Both claim box 1: the one of the higher score gets it, and the cure of the other only removes it.
    wrong_class, wrong_place = _detection(BOX, category=2, score=0.8), _detection([70.0, 40.0, 40.0, 40.0], score=0.3)
    kinds = error_kinds(dataset_of(_one_box()), [FOUND, wrong_class, wrong_place])
    assert kinds.ap == pytest.approx(50)
    assert kinds.dap["classification"] == pytest.approx(50)
    assert kinds.dap["localisation"] == 0


def test_what_lies_on_a_crowd_is_no_error(dataset_of):
    inside = _detection([160.0, 110.0, 20.0, 20.0])
    assert error_kinds(dataset_of(_one_box(crowd=True)), [FOUND, inside]).counts["background"] == 0
    assert error_kinds(dataset_of(_one_box()), [FOUND, inside]).counts["background"] == 1


def test_other_thresholds_are_kept(dataset_of):
    near = _detection([70.0, 40.0, 40.0, 40.0])  # IoU 1/3
    dataset = dataset_of(_one_box())
    assert error_kinds(dataset, [FOUND, near], iou=0.3).ap == pytest.approx(100)
    assert error_kinds(dataset, [FOUND, near], background=0.4).counts["background"] == 1


def test_a_class_whose_boxes_are_all_missed_leaves_the_mean_with_them(dataset_of):
    kinds = error_kinds(dataset_of(_one_box()), [FOUND])
    assert (kinds.ap, kinds.dap["missed"]) == (pytest.approx(50), pytest.approx(50))


def test_a_detector_that_finds_nothing_misses_all(dataset_of):
    kinds = error_kinds(dataset_of(_one_box()), [])
    assert (kinds.ap, kinds.counts["missed"]) == (0, 2)
    assert kinds.to_dict() == {"ap": 0.0, "dap": dict.fromkeys(KINDS, 0.0), "counts": dict(kinds.counts)}


def test_without_a_box_that_counts_there_is_one_sentence(dataset_of):
    data = _one_box()
    for one in data["annotations"]:
        one["iscrowd"] = 1
    with pytest.raises(DataError, match=r"errors cannot be told apart: all 2 boxes .* are crowds"):
        error_kinds(dataset_of(data), [])
