"""Small odd VOC and YOLO sets, as they lie, through every door: check, conversion, training, test, evaluation.

Each set of `intake/` has its boxes in `expected.json`: file name -> x, y, width, height, class.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cskd_data import read

from .doors import INTAKE, SPLITS, data_settings, train_tiny

CLASSES = ("cup", "spoon", "plate")
TOGETHER = "2 splits read as one (the folder or list of a split names it alone): train, val"
NOTES = {  # a part of the note that a set has to bring; the others bring none
    "voc_names_with_space": "1 XML file not in ImageSets/Main/train.txt, left out",
    "voc_polygon_object": "1 polygon read as the box around it: a cup of photo_1.xml",
    "voc_wrong_filename": "1 XML file with somebody else's image as <filename>",
    "voc_zero_based": "coordinates are read as counted from zero",
    "yolo_layout": TOGETHER,
    "yolo_polygons": "1 row of points read as the box around them",
}
SETS = sorted(path.name for path in INTAKE.iterdir() if path.name.startswith(("voc_", "yolo_")))


@pytest.fixture(params=SETS)
def folder(request, tmp_path):
    return shutil.copytree(INTAKE / request.param, tmp_path / request.param)


def expected_of(folder):
    return json.loads((folder / "expected.json").read_text())


def perfect(dataset, expected, out):
    """The expected boxes as detections in COCO's results format, with the ids of the data set."""
    numbers = dict(zip(dataset.classes, dataset.category_keys.values(), strict=True))
    found = [
        {
            "image_id": dataset.image_keys[image["id"]],
            "category_id": numbers[name],
            "bbox": box,
            "score": 0.9,
        }
        for image in dataset.images
        for *box, name in expected[Path(image["file_name"]).name]
    ]
    out.write_text(json.dumps(found))
    return out


def notes_in(text, name):
    return NOTES.get(name, "") in text.replace("\n", " ")


def test_every_set_of_another_format_is_here():
    assert len(SETS) == 7
    assert set(NOTES) <= set(SETS)


@pytest.mark.parametrize("options", [[], ["--decode"]])
def test_the_check_accepts_the_folder_and_says_what_is_odd(folder, call, options):
    code, out, err = call("train", "data", "check", folder, *options)
    assert code == 0, err
    assert notes_in(out, folder.name)
    assert ("warning: " in out) == (folder.name in NOTES)


def test_the_converted_file_passes_the_check_without_a_warning_and_holds_the_expected_boxes(folder, call, tmp_path):
    code, out, err = call("train", "data", "convert", folder, tmp_path / "all.json", "--json")
    assert code == 0, err
    (written,) = json.loads(out)["files"]
    code, out, err = call("train", "data", "check", tmp_path / "all.json", "--images", written["image_root"])
    assert code == 0, err
    assert "warning: " not in out
    dataset, expected = read(tmp_path / "all.json", written["image_root"]), expected_of(folder)
    names = {image["id"]: Path(image["file_name"]).name for image in dataset.images}
    assert set(names.values()) == set(expected)
    for image_id, name in names.items():
        found = [one for one in dataset.annotations if one["image_id"] == image_id]
        assert [dataset.classes[one["category_id"] - 1] for one in found] == [box[4] for box in expected[name]]
        for one, box in zip(found, expected[name], strict=True):
            assert one["bbox"] == pytest.approx(box[:4], abs=1e-3)


def test_training_runs_and_evaluates_on_the_folder(folder, call, tmp_path):
    work_dir = tmp_path / "work"
    code, _, err = train_tiny(call, CLASSES, work_dir, data_settings(folder, "", SPLITS))
    assert code == 0, err
    result = json.loads((work_dir / "result.json").read_text())
    assert 0 <= result["last"]["bbox_mAP"] <= 1
    assert notes_in(err, folder.name)
    assert f"{len(expected_of(folder))} pictures both in train and in val" in err


@pytest.mark.parametrize("door", ["test", "eval"])
def test_a_model_is_evaluated_on_the_folder_and_its_detections_score_the_same_again(
    folder, call, model, door, tmp_path
):
    checkpoint, file = model(CLASSES)
    out_file = tmp_path / "detections.json"
    if door == "test":
        settings = data_settings(folder, "", ["test"])
        code, out, err = call("train", "test", checkpoint, "--split", "test", "--out", out_file, "--json", *settings)
    else:
        code, out, err = call("deploy", "eval", file, "--ann", folder, "--detections", out_file, "--json")
    assert code == 0, err
    result, found = json.loads(out), json.loads(out_file.read_text())
    assert len(found) > 20
    assert {one["image_id"] for one in found} <= set(read(folder).image_keys.values())
    assert notes_in(err, folder.name)
    code, again, err = call("deploy", "eval", "--predictions", out_file, "--ann", folder, "--json")
    assert code == 0, err
    assert json.loads(again)["metrics"] == pytest.approx(result["metrics"])


def test_the_expected_boxes_as_detections_score_one(folder, call, tmp_path):
    expected = expected_of(folder)
    detections = perfect(read(folder), expected, tmp_path / "detections.json")
    code, out, err = call("deploy", "eval", "--predictions", detections, "--ann", folder, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["metrics"]["bbox_mAP"] == pytest.approx(1.0)
    assert result["detections"] == sum(map(len, expected.values()))
    assert sorted(result["per_class"]) == sorted(CLASSES)


@pytest.mark.parametrize("name", ["yolo_layout", "yolo_polygons"])
def test_each_split_of_a_folder_is_trained_and_evaluated_on_by_its_own_path(name, call, model, tmp_path):
    folder = shutil.copytree(INTAKE / name, tmp_path / name)
    splits = {split: folder / "images" / split for split in ("train", "val")}
    settings = [word for split, path in splits.items() for word in data_settings(path, "", [split])]
    code, _, err = train_tiny(call, CLASSES, tmp_path / "work", settings)
    assert code == 0, err
    assert "read as one" not in err
    assert "both in train and in val" not in err
    _, file = model(CLASSES)
    code, out, err = call("deploy", "eval", file, "--ann", splits["val"], "--json")
    assert (code, json.loads(out)["metrics"]["bbox_mAP"] >= 0) == (0, True), err
    assert json.loads(out)["images"] == 1
