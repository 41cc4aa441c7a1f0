"""Pseudo-labels: known by their file's `info` or by scores, refused wherever a detector is measured; the threshold."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cskd_data import DataError, evaluate, read
from cskd_data.merge import merge
from cskd_data.operating_point import best_f1, score_curve
from cskd_data.unlabelled import read_unlabelled

from .test_evaluate import random_set


@pytest.fixture
def scored(coco_set):
    """A file whose boxes have scores."""
    file, _, write = coco_set

    def change(data):
        for one in data["annotations"]:
            one["score"] = 0.75

    write(change)
    return file


def test_boxes_with_scores_are_pseudo_labels_and_none_without(coco_set, scored):
    assert read(scored).pseudo_labels == {}
    data = json.loads(scored.read_text())
    for one in data["annotations"]:
        one["score"] = None  # as a labelling tool leaves it on what a person drew
    scored.write_text(json.dumps(data))
    assert read(scored).pseudo_labels is None


def test_what_the_info_says_survives_reading_and_writing(coco_set, tmp_path):
    said = {"teacher_sha256": "ab", "threshold": 0.3}
    marked = replace(read(coco_set[0]), pseudo_labels=said)
    marked.to_coco(tmp_path / "marked.json")
    again = read(tmp_path / "marked.json")
    assert again.pseudo_labels == said
    assert again.select(["dog"]).subset([1]).pseudo_labels == said
    assert merge([read(coco_set[0]), again]).pseudo_labels == said


def test_pseudo_labels_are_refused_as_what_a_detector_is_measured_by(scored):
    dataset = read(scored)
    with pytest.raises(DataError, match="is pseudo-labelled: a detector found its boxes"):
        evaluate(dataset, [])
    with pytest.raises(DataError, match="is pseudo-labelled"):
        best_f1(dataset, [])


def test_the_commands_refuse_to_measure_by_pseudo_labels(scored, model, tmp_path, call):
    checkpoint, onnx = model(("cat", "dog"))
    settings = ("--set", f"data.test.ann_file={scored}", "--set", f"data.test.img_prefix={scored.parent / 'images'}")
    (detections := tmp_path / "detections.json").write_text("[]")
    for words in (
        ("deploy", "eval", "--predictions", detections, "--ann", scored),
        ("deploy", "eval", onnx, "--ann", scored),
        ("train", "test", checkpoint, "--split", "test", *settings),
        ("train", "new", tmp_path / "mine", "--data", scored),
        ("train", "new", tmp_path / "mine", "--data", scored, "--data", scored),
    ):
        code, out, err = call(*words)
        assert (code, out) == (2, ""), words
        assert f"{scored} is pseudo-labelled" in err, words
    assert not (tmp_path / "mine").exists()


# The threshold


def by_hand(dataset, detections, threshold):
    """Precision and recall at a threshold: detections are matched one after the other."""
    taken, right, counted = set(), 0, 0
    for one in sorted(detections, key=lambda one: -one["score"]):
        if one["score"] < threshold:
            continue
        image = next(number for number, key in dataset.image_keys.items() if key == one["image_id"])
        category = next(number for number, key in dataset.category_keys.items() if key == one["category_id"])
        boxes = [
            (overlap(box, one["bbox"]), box["id"], box["iscrowd"])
            for box in dataset.annotations
            if box["image_id"] == image and box["category_id"] == category
        ]
        free = [(iou, number) for iou, number, crowd in boxes if not crowd and number not in taken and iou >= 0.5]
        if free:
            taken.add(max(free)[1])
            right += 1
        elif any(crowd and iou >= 0.5 for iou, _, crowd in boxes):
            continue
        counted += 1
    return right / max(counted, 1), right / dataset.countable


def overlap(box, other):
    """IoU; of a crowd the share of the other box that lies in it, as pycocotools has it."""
    (x, y, w, h), (u, v, s, t) = box["bbox"], other
    shared = max(min(x + w, u + s) - max(x, u), 0) * max(min(y + h, v + t) - max(y, v), 0)
    return shared / (s * t if box["iscrowd"] else w * h + s * t - shared)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_the_threshold_is_that_of_the_best_f1_of_all(seed, tmp_path):
    data, detections = random_set(seed)
    (file := tmp_path / "a.json").write_text(json.dumps(data))
    dataset = read(file)
    point = best_f1(dataset, detections)
    found = {score: by_hand(dataset, detections, score) for score in {one["score"] for one in detections}}
    assert found[point.threshold] == (pytest.approx(point.precision), pytest.approx(point.recall))
    curve = score_curve(dataset, detections)
    assert list(curve.scores) == sorted(set(curve.scores), reverse=True)
    for score in found.keys() - set(curve.scores):  # all detections of that score lie on crowds: nothing changes there
        above = min((one for one in curve.scores if one > score), default=None)
        assert found[score] == (found[above] if above is not None else (0, 0)), score
    assert list(zip(curve.precision, curve.recall, strict=True)) == [pytest.approx(found[one]) for one in curve.scores]
    harmonic = {score: 2 * p * r / (p + r) for score, (p, r) in found.items() if p + r}
    assert point.f1 == pytest.approx(max(harmonic.values()))
    assert point.threshold == max(score for score, f1 in harmonic.items() if f1 == pytest.approx(point.f1))


def test_a_detector_that_finds_nothing_has_no_threshold(coco_set):
    dataset = read(coco_set[0])
    for detections in ([], [{"image_id": 7, "category_id": 12, "bbox": [40, 30, 5, 5], "score": 0.9}]):
        with pytest.raises(DataError, match="no detection is right"):
            best_f1(dataset, detections)


# Pictures without labels


def test_a_folder_is_read_to_any_depth_with_the_sizes_of_its_pictures(coco_set, tmp_path):
    _, folder, _ = coco_set
    (folder / "deeper").mkdir()
    (folder / "b.png").rename(folder / "deeper" / "b.png")
    (folder / "notes.txt").write_text("no picture")
    found = read_unlabelled(folder, ("cat", "dog"))
    assert [(one["file_name"], one["width"], one["height"]) for one in found.images] == [
        ("a.jpg", 64, 48),
        ("deeper/b.png", 40, 56),
    ]
    assert found.classes == ("cat", "dog")
    assert not found.annotated


def test_a_file_of_images_is_read_without_its_categories(coco_set, tmp_path):
    file, _, write = coco_set
    write(lambda data: [data.pop("annotations"), data.pop("categories")])
    found = read_unlabelled(file, ("horse",))
    assert [one["file_name"] for one in found.images] == ["a.jpg", "b.png"]
    assert found.classes == ("horse",)


def test_labelled_and_missing_pictures_are_refused(coco_set, tmp_path):
    file, _, _ = coco_set
    (empty := tmp_path / "empty").mkdir()
    for path, message in (
        (file, "has 2 annotations: its pictures are labelled already"),
        (empty, "no picture is in"),
        (tmp_path / "nowhere", "no such file or folder"),
    ):
        with pytest.raises(DataError, match=message):
            read_unlabelled(path, ("cat",))
