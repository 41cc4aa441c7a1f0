"""The COCO protocol: pycocotools' numbers, whichever implementation counts and whatever the ids are."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cskd_data import DataError, Note, evaluate, read
from cskd_data.evaluate import coco_protocol
from cskd_data.normalise import normalise
from cskd_data.results import COCO_METRICS


def random_set(seed):
    """A COCO dict and detections: crowds, images without boxes or detections, classes without boxes, equal scores."""
    rng = np.random.default_rng(seed)
    images = [
        {"id": int(number), "file_name": f"{number}.jpg", "width": 200, "height": 150}
        for number in rng.permutation(40)[: rng.integers(1, 12)]
    ]
    categories = [{"id": int(number), "name": f"class {number}"} for number in rng.permutation(9)[: rng.integers(1, 6)]]
    annotations, detections = [], []
    for image in images:
        for _ in range(rng.integers(0, 7)):
            x, y, w, h = rng.uniform([0, 0, 2, 2], [150, 100, 140, 110]).round(1).tolist()
            category = categories[rng.integers(0, (len(categories) + 1) // 2)]
            crowd = int(rng.random() < 0.2)
            number = len(annotations) + 1
            annotation = {"id": number, "image_id": image["id"], "category_id": category["id"], "iscrowd": crowd}
            annotations.append({**annotation, "bbox": [x, y, w, h], "area": w * h})
            for _ in range(rng.integers(0, 3)):
                moved = np.array([x, y, w, h]) + rng.normal(0, 4, 4)
                other = categories[rng.integers(0, len(categories))] if rng.random() < 0.2 else category
                detection = {"image_id": image["id"], "category_id": other["id"]}
                box = [*moved[:2].tolist(), *np.maximum(moved[2:], 1).tolist()]
                detections.append({**detection, "bbox": box, "score": round(float(rng.random()), 1)})
    if all(one["iscrowd"] for one in annotations):
        image, category = images[0]["id"], categories[0]["id"]
        only = {"image_id": image, "category_id": category, "bbox": [5.0, 5.0, 50.0, 50.0], "area": 2500.0}
        annotations.append({"id": len(annotations) + 1, **only, "iscrowd": 0})
    if seed % 10 == 9:
        detections.clear()
    return {"images": images, "annotations": annotations, "categories": categories}, detections


def with_text_ids(data, detections):
    def renamed(entry, *keys):
        return {**entry, **{key: f"id {entry[key]}" for key in keys if key in entry}}

    return {
        "images": [renamed(one, "id") for one in data["images"]],
        "annotations": [renamed(one, "id", "image_id", "category_id") for one in data["annotations"]],
        "categories": [renamed(one, "id") for one in data["categories"]],
    }, [renamed(one, "image_id", "category_id") for one in detections]


def by_pycocotools(data, detections):
    """`stats` of pycocotools itself, on the user's own ids."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        truth.dataset = json.loads(json.dumps(data))
        truth.createIndex()
        if detections:
            found = truth.loadRes([dict(one) for one in detections])
        else:
            found.dataset = {**truth.dataset, "annotations": []}
            found.createIndex()
        run = COCOeval(truth, found, "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats


def check_agreement(seed):
    data, detections = random_set(seed)
    expected = by_pycocotools(data, detections)
    for source, found in ((data, detections), with_text_ids(data, detections)):
        dataset = normalise(source, Path("random.json"))
        plain = evaluate(dataset, found, protocol=COCOeval)
        fast = evaluate(dataset, found, protocol=coco_protocol())
        # Text ids are numbered in the order of the file, where pycocotools takes integer ids by size: another order of
        # images breaks ties between equal scores otherwise.
        if source is data:
            assert list(plain.metrics.values()) == pytest.approx(expected.tolist(), abs=1e-12)
        assert list(fast.metrics.values()) == pytest.approx(list(plain.metrics.values()), abs=1e-9)
        assert fast.per_class == pytest.approx(plain.per_class, abs=1e-9)
        assert fast.detections == len(detections)


@pytest.mark.parametrize("first", range(0, 30, 10))
def test_both_protocols_give_pycocotools_numbers_on_random_sets(first):
    pytest.importorskip("faster_coco_eval")
    for seed in range(first, first + 10):
        check_agreement(seed)


@pytest.mark.reliability
def test_both_protocols_give_pycocotools_numbers_on_many_random_sets():
    pytest.importorskip("faster_coco_eval")
    for seed in range(1000, 1200):
        check_agreement(seed)


def test_the_random_sets_have_what_makes_protocols_differ():
    sets = [random_set(seed) for seed in range(30)]
    assert sum(any(one["iscrowd"] for one in data["annotations"]) for data, _ in sets) > 10
    assert sum(len({one["image_id"] for one in data["annotations"]}) < len(data["images"]) for data, _ in sets) > 10
    assert (
        sum(len({one["category_id"] for one in data["annotations"]}) < len(data["categories"]) for data, _ in sets) > 9
    )
    assert sum(not detections for _, detections in sets) >= 3
    scores = [evaluate(normalise(data, Path("x")), found).mean_average_precision for data, found in sets]
    assert len({round(value, 3) for value in scores}) > 15


def perfect(data):
    return [
        {**{key: one[key] for key in ("image_id", "category_id", "bbox")}, "score": 0.9} for one in data["annotations"]
    ]


def test_perfect_detections_score_one_and_none_score_zero(coco_set, monkeypatch):
    times = iter((50.0, 50.25, 60.0, 60.5))
    module = sys.modules[evaluate.__module__]  # its package's attribute of this name is the function
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    file, folder, _ = coco_set
    dataset = read(file, folder)
    result = evaluate(dataset, perfect(json.loads(file.read_text())), split="val", seconds=2.0)
    assert result.mean_average_precision == pytest.approx(1.0)
    assert result.per_class == pytest.approx({"cat": 1.0, "dog": 1.0})
    assert (result.images, result.detections, result.split) == (2, 2, "val")
    assert result.seconds == 2.25
    assert evaluate(dataset, []).mean_average_precision == 0.0


def test_the_result_names_the_implementation_that_counted_and_its_version(coco_set, monkeypatch):
    file, folder, _ = coco_set
    found, dataset = perfect(json.loads(file.read_text())), read(file, folder)
    pycocotools = f"pycocotools {metadata.version('pycocotools')}"
    assert evaluate(dataset, found, protocol=COCOeval).protocol == pycocotools
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)  # its import fails
    assert evaluate(dataset, found).to_dict()["protocol"] == pycocotools
    monkeypatch.undo()
    pytest.importorskip("faster_coco_eval")
    assert evaluate(dataset, found).protocol == f"faster-coco-eval {metadata.version('faster-coco-eval')}"

    class Own(COCOeval):
        __module__ = "nowhere.installed"

    assert evaluate(dataset, found, protocol=Own).protocol == "nowhere"


def test_a_file_of_detections_is_scored_and_class_names_keep_their_numbers_in_another_order(coco_set, tmp_path):
    file, folder, _ = coco_set
    (predictions := tmp_path / "found.json").write_text(json.dumps(perfect(json.loads(file.read_text()))[:1]))
    dataset = read(file, folder)
    for order in (["cat", "dog"], ["dog", "cat"]):
        result = evaluate(dataset.select(order), predictions)
        assert result.per_class == pytest.approx({"cat": 1.0, "dog": 0.0})
        assert list(result.per_class) == order


def test_a_class_without_boxes_has_no_ap_and_unused_categories_are_left_out_of_account(coco_set):
    file, folder, write = coco_set
    write(lambda data: data["annotations"].pop())
    dataset = read(file, folder)
    found = perfect(json.loads(file.read_text()))
    assert evaluate(dataset, found).per_class == {"cat": pytest.approx(1.0), "dog": None}
    stray = {"image_id": 3, "category_id": 5, "bbox": [1, 1, 9, 9], "score": 1.0}
    assert evaluate(dataset.select(["cat"]), [*found, stray]).per_class == {"cat": pytest.approx(1.0)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_id": 99}, "detection 0 names image id 99, which is not listed"),
        ({"image_id": [7]}, "detection 0 names image id [7], which is not listed"),
        ({"category_id": 99}, "detection 0 names category id 99, which is not listed"),
        ({"score": "high"}, "expected image_id, category_id, bbox and score"),
        ({"bbox": [1, 2, 3]}, "expected image_id, category_id, bbox and score"),
        ({"bbox": [1, 2, 3, float("nan")]}, "expected image_id, category_id, bbox and score"),
    ],
)
def test_a_detection_that_fits_no_entry_is_refused(coco_set, change, said):
    file, folder, _ = coco_set
    found = perfect(json.loads(file.read_text()))
    with pytest.raises(DataError) as error:
        evaluate(read(file, folder), [{**found[0], **change}])
    assert said in str(error.value)
    assert f"the predictions for {file} cannot be used, 1 fault" in str(error.value)


def test_annotations_in_place_of_predictions_are_refused(coco_set):
    file, folder, _ = coco_set
    with pytest.raises(DataError, match=r"found a dict \(is it the annotation file\?\)"):
        evaluate(read(file, folder), file)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("annotations"), "mAP cannot be computed: .* holds no annotations"),
        (lambda d: [one.update(iscrowd=1) for one in d["annotations"]], "mAP cannot be computed: all 2 boxes of"),
    ],
)
def test_without_a_box_that_counts_there_is_no_map(coco_set, change, said):
    file, folder, write = coco_set
    write(change)
    with pytest.raises(DataError, match=said):
        evaluate(read(file, folder), [])


def test_a_result_prints_pycocotools_lines_and_draws_itself(coco_set, tmp_path, capsys):
    file, folder, _ = coco_set
    data = json.loads(file.read_text())
    result = evaluate(read(file, folder), perfect(data))
    truth = COCO()
    truth.dataset = data
    truth.createIndex()
    run = COCOeval(truth, truth.loadRes(perfect(data)), "bbox")
    run.evaluate()
    run.accumulate()
    capsys.readouterr()
    run.summarize()
    assert capsys.readouterr().out.splitlines() == str(result).splitlines()
    assert tuple(result.to_dict()["metrics"]) == COCO_METRICS
    pytest.importorskip("matplotlib")
    result.plot(tmp_path / "classes.png")
    assert (tmp_path / "classes.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match="cannot be written"):
        result.plot(tmp_path / "gone" / "classes.png")


def test_a_note_shows_its_first_examples_and_that_there_are_more():
    note = Note.of("200 boxes kept out", [str(number) for number in range(200)])
    assert (note.count, len(note.examples)) == (200, 100)
    assert str(note) == "200 boxes kept out: 0, 1, 2, 3, 4, ..."
