"""Small odd COCO sets, as bug reports have them, through every door: check, training, test, evaluation of a file.

`intake/cases.json` says what each set is and how it has to end; a set without images of its own has the shared ones.
"""

from __future__ import annotations

import json
import shutil

import pytest

from .doors import INTAKE, SPLITS, data_settings, train_tiny

CASES = json.loads((INTAKE / "cases.json").read_text())
NOTES = {  # a part of the note that a case has to bring
    "some_crowd": "1 of 6 boxes marked as crowds",
    "placeholder_area": "every area is 1",
    "root_category": "no class: table",
    "windows_paths": "4 file names written in Windows' way",
    "absolute_paths_elsewhere": "4 file names with folders that are not there",
    "url_quoted": "1 file name quoted as in a URL: photo%201.png is photo 1.png",
    "class_with_nbsp": "1 class name with other white space than plain spaces, made plain",
    "truncated_jpeg": "photo_1.jpg",
    "tiny_images": "1 image smaller than 32 pixels",
    "same_file_twice": "1 image listed more than once",
    "no_annotations_section": "there are no annotations",
}
REASONS = {  # a part of the message that a refused case has to bring
    "all_crowd": "all 6 boxes of",
    "corners": "are corners (x1, y1, x2, y2)",
    "png_exif_turned": "image photo_3.png is 64 x 96 pixels as its EXIF orientation turns it",
    "png_bomb": "image photo_4.png has 40000 x 40000 pixels",
}
REFUSED = [name for name, case in CASES.items() if case["verdict"] == "refuse"]
DETECTABLE = [name for name in CASES if name not in REFUSED]
TRAINABLE = [name for name in DETECTABLE if CASES[name]["verdict"] != "evaluate only"]
SCORED = [name for name in CASES if (INTAKE / name / "detections.json").exists()]


def lay_out(name, folder):
    """A case as its annotation file and its images."""
    shutil.copytree(INTAKE / "images", folder / "images")
    shutil.copytree(INTAKE / name, folder, dirs_exist_ok=True)
    return folder


def classes_of(name):
    return ("tea cup" if name == "class_with_nbsp" else "cup", "spoon", "plate")


def settings(folder, *splits):
    return data_settings(folder / "annotations.json", folder / "images", splits)


def train(call, case, work_dir):
    return train_tiny(call, classes_of(case.name), work_dir, settings(case, *SPLITS))


@pytest.fixture
def case(request, tmp_path):
    return lay_out(request.param, tmp_path / request.param)


def test_the_cases_are_of_every_verdict():
    assert {case["verdict"] for case in CASES.values()} == {
        "accept",
        "accept with a note",
        "evaluate only",
        "refuse",
    }
    assert set(REASONS) == set(REFUSED)
    assert {name for name, case in CASES.items() if case["verdict"] == "accept with a note"} <= set(NOTES)
    assert len(SCORED) == 19


@pytest.mark.parametrize("options", [[], ["--decode"]])
@pytest.mark.parametrize("case", DETECTABLE, indirect=True)
def test_the_check_accepts_what_can_be_used_and_says_what_is_odd(case, call, options):
    code, out, err = call("train", "data", "check", case / "annotations.json", "--images", case / "images", *options)
    assert code == 0, err
    warnings = [line for line in out.splitlines() if "warning: " in line]
    if case.name in NOTES:
        assert [line for line in warnings if NOTES[case.name] in line]
    else:
        assert warnings == []


@pytest.mark.parametrize("options", [[], ["--decode"]])
@pytest.mark.parametrize("case", REFUSED, indirect=True)
def test_the_check_refuses_what_cannot_be_used(case, call, options):
    code, out, err = call("train", "data", "check", case / "annotations.json", "--images", case / "images", *options)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert REASONS[case.name] in err


@pytest.mark.parametrize("case", TRAINABLE, indirect=True)
def test_training_runs_and_evaluates_on_what_can_be_used(case, call, tmp_path):
    work_dir = tmp_path / "work"
    code, _, err = train(call, case, work_dir)
    assert code == 0, err
    result = json.loads((work_dir / "result.json").read_text())
    assert 0 <= result["last"]["bbox_mAP"] <= 1
    if case.name in NOTES:
        assert NOTES[case.name] in err.replace("\n", " ")


@pytest.mark.parametrize("case", [*REFUSED, "no_annotations_section"], indirect=True)
def test_training_on_what_cannot_be_used_is_refused_before_anything_is_built(case, call, tmp_path):
    work_dir = tmp_path / "work"
    code, out, err = train(call, case, work_dir)
    assert (code, out) == (2, "")
    assert REASONS.get(case.name, "holds no annotations: detecting on it works, training and scoring do not") in err
    assert not (work_dir / "last.pth").exists()


def image_keys(case):
    return {image["id"] for image in json.loads((case / "annotations.json").read_text("utf-8-sig"))["images"]}


@pytest.mark.parametrize("door", ["test", "eval"])
@pytest.mark.parametrize("case", DETECTABLE, indirect=True)
def test_a_model_is_evaluated_and_its_detections_have_the_ids_of_the_file(case, call, model, door, tmp_path):
    checkpoint, file = model(classes_of(case.name))
    out_file = tmp_path / "detections.json"
    if door == "test":
        options = ("--split", "test", "--out", out_file, *settings(case, "test"))
        code, out, err = call("train", "test", checkpoint, *options)
    else:
        data = ("--ann", case / "annotations.json", "--images", case / "images")
        code, out, err = call("deploy", "eval", file, *data, "--detections", out_file)
    assert code == 0, err
    assert ("no mAP: there are no annotations" in out) == (case.name == "no_annotations_section")
    found = json.loads(out_file.read_text())
    assert len(found) > 20
    assert {one["image_id"] for one in found} <= image_keys(case)
    if case.name != "no_annotations_section":
        code, again, err = call(
            "deploy", "eval", "--predictions", out_file, "--ann", case / "annotations.json", "--json"
        )
        assert code == 0, err
        assert json.loads(again)["detections"] == len(found)


@pytest.mark.parametrize("door", ["test", "eval"])
@pytest.mark.parametrize("case", REFUSED, indirect=True)
def test_no_model_is_evaluated_on_what_cannot_be_used(case, call, model, door):
    checkpoint, file = model(classes_of(case.name))
    if door == "test":
        code, out, err = call("train", "test", checkpoint, "--split", "test", *settings(case, "test"))
    else:
        data = ("--ann", case / "annotations.json", "--images", case / "images")
        code, out, err = call("deploy", "eval", file, *data)
    assert (code, out) == (2, "")
    assert REASONS[case.name] in err


@pytest.mark.parametrize("case", SCORED, indirect=True)
def test_perfect_detections_score_one_without_a_model(case, call):
    data = ("--predictions", case / "detections.json", "--ann", case / "annotations.json")
    for images in ([], ["--images", case / "images"]):
        code, out, err = call("deploy", "eval", *data, *images, "--json")
        assert code == 0, err
        result = json.loads(out)
        assert result["metrics"]["bbox_mAP"] == pytest.approx(1.0)
        assert list(result["per_class"]) == list(classes_of(case.name))


@pytest.mark.parametrize("case", ["no_annotations_section"], indirect=True)
def test_a_drop_without_annotations_is_a_usage_error(case, call, model):
    checkpoint, file = model(classes_of(case.name))
    data = ("--ann", case / "annotations.json", "--images", case / "images")
    for options in (["--reference", checkpoint], ["--max-drop", "0.2"]):
        code, out, err = call("deploy", "eval", file, *data, *options)
        assert (code, out) == (2, "")
        assert "reference" in err
