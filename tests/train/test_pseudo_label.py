"""`cskd-train pseudo-label`: a teacher's detections as a COCO file, once for each image, whatever comes in between."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import process_parts
from process_parts import in_processes

import cskd_data
from cskd_data.operating_point import best_f1
from cskd_data.shapes import generate
from cskd_train.engine.build import build_split
from cskd_train.engine.evaluate import EvaluationStopped, build_trained, detect
from cskd_train.engine.pseudo_label import pseudo_label
from cskd_train.errors import TrainError
from cskd_train.files import checkpoints
from cskd_train.files.config import config_from_data

LEAST = 0.0102  # some of the tiny teacher's scores are above it, some below


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Seven pictures in two folders, five of them lying, two upright."""
    root = tmp_path_factory.mktemp("pictures")
    generate(root / "a", images=5, val_images=1, size=(96, 128), seed=11)
    generate(root / "b", images=2, val_images=1, size=(128, 96), seed=12)
    folder = root / "unlabelled"
    for part in ("a", "b"):
        for file in sorted((root / part / "images").glob("train*")):
            (folder / part).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, folder / part)
    return folder


@pytest.fixture(scope="module")
def teacher(trained):
    return trained / "best.pth"


@pytest.fixture(scope="module")
def whole(teacher, pictures, tmp_path_factory):
    """The file of an undisturbed call at threshold LEAST, and its result. Not to be changed."""
    out = tmp_path_factory.mktemp("whole") / "pseudo.json"
    return out, pseudo_label(teacher, pictures, out, threshold=LEAST, device="cpu")


def test_the_file_holds_what_the_teacher_detects_from_the_threshold_on(whole, teacher, pictures):
    out, labels = whole
    data = json.loads(out.read_text())
    assert labels.images == len(data["images"]) == 7
    assert {one["file_name"].split("/")[0] for one in data["images"]} == {"a", "b"}
    assert {(one["width"], one["height"]) for one in data["images"]} == {(128, 96), (96, 128)}
    found = checkpoints.load_checkpoint(teacher)
    cfg = config_from_data(found.config)
    cfg.data.val.update(ann_file=str(out), img_prefix=str(pictures))
    dataset = build_split(cfg, "val")
    detections = detect(build_trained(cfg, found, "cpu"), dataset)
    assert 0 < labels.boxes == len(data["annotations"]) == len([one for one in detections if one["score"] >= LEAST])
    expected = {(one["image_id"], one["category_id"], *one["bbox"], one["score"]) for one in detections}
    assert {
        (one["image_id"], one["category_id"], *one["bbox"], one["score"]) for one in data["annotations"]
    } <= expected
    with_boxes = {one["image_id"] for one in data["annotations"]}
    assert labels.empty_images == 7 - len(with_boxes)


def test_the_file_says_that_it_is_pseudo_labelled_and_by_what(whole, teacher, pictures):
    dataset = cskd_data.read(whole[0])
    assert dataset.pseudo_labels["teacher_sha256"] == checkpoints.load_checkpoint(teacher).sha256
    assert dataset.pseudo_labels["threshold"] == LEAST
    assert dataset.image_root == pictures
    assert all(one["score"] >= LEAST for one in dataset.annotations)
    assert dataset.notes == ()


def test_the_threshold_is_that_of_the_best_f1_on_the_validation_split(teacher, pictures, tmp_path):
    found = checkpoints.load_checkpoint(teacher)
    cfg = config_from_data(found.config)
    validation = build_split(cfg, "val")
    point = best_f1(validation.normal, detect(build_trained(cfg, found, "cpu"), validation))
    seen = []
    labels = pseudo_label(teacher, str(pictures), str(tmp_path / "a.json"), progress=lambda *one: seen.append(one))
    assert (labels.threshold, labels.precision, labels.recall) == (point.threshold, point.precision, point.recall)
    assert f"best F1 on val: precision {point.precision:.3f}, recall {point.recall:.3f}" in str(labels)
    assert min(one["score"] for one in cskd_data.read(tmp_path / "a.json").annotations) >= point.threshold
    assert seen[:6] == [("validation", done, 6) for done in range(1, 7)]
    assert seen[6:] == [("pictures", done, 7) for done in range(1, 8)]


# Interruptions


def test_an_interrupted_call_does_nothing_twice_and_ends_with_the_same_bytes(whole, teacher, pictures, tmp_path):
    out, seen = tmp_path / "pseudo.json", []

    def call(stop_after):
        seen.append([])
        settings = {"threshold": LEAST, "device": "cpu", "progress": lambda *one: seen[-1].append(one[1])}
        return pseudo_label(teacher, pictures, out, stopped=lambda: len(seen[-1]) == stop_after, **settings)

    for stop_after in (2, 3):
        with pytest.raises(EvaluationStopped):
            call(stop_after)
        assert not out.exists()
    with (tmp_path / "pseudo.json.partial" / "1.jsonl").open("r+b") as file:  # as SIGKILL leaves a line
        file.truncate(len(file.read()) - 20)
    labels = call(None)
    assert seen == [[1, 2], [3, 4, 5], [5, 6, 7]]
    assert [path.name for path in tmp_path.iterdir()] == ["pseudo.json"]
    assert out.read_bytes().replace(b"../", b"") == whole[0].read_bytes().replace(b"../", b"")  # the way to the images
    assert labels.to_dict() == {**whole[1].to_dict(), "written": str(out)}


def test_the_same_call_again_leaves_the_file_and_another_one_is_refused(whole, teacher, pictures, tmp_path):
    out = shutil.copy(whole[0], tmp_path / "pseudo.json")
    before = out.stat().st_mtime_ns
    seen = []
    same = {"threshold": LEAST, "device": "cpu", "progress": lambda *one: seen.append(one)}
    assert pseudo_label(teacher, pictures, out, **same).to_dict() == {**whole[1].to_dict(), "written": str(out)}
    assert (seen, out.stat().st_mtime_ns) == ([], before)
    with pytest.raises(TrainError, match="exists: nothing was changed"):
        pseudo_label(teacher, pictures, out, threshold=0.0103, device="cpu")
    assert pseudo_label(teacher, pictures, out, threshold=0.0103, device="cpu", overwrite=True).threshold == 0.0103


def test_half_of_another_call_is_refused_until_it_may_be_replaced(teacher, pictures, tmp_path):
    out = tmp_path / "pseudo.json"
    with pytest.raises(EvaluationStopped):
        pseudo_label(teacher, pictures, out, threshold=LEAST, device="cpu", stopped=lambda: True)
    with pytest.raises(TrainError, match="half of another call's work"):
        pseudo_label(teacher, pictures / "a", out, threshold=LEAST, device="cpu")
    assert pseudo_label(teacher, pictures / "a", out, threshold=LEAST, device="cpu", overwrite=True).images == 5


def test_what_a_removal_has_left_when_it_was_killed_counts_for_nothing(whole, teacher, pictures, tmp_path):
    (folder := tmp_path / "pseudo.json.partial").mkdir()
    (folder / "0.jsonl").write_text(json.dumps({"part": "pictures", "image": 0, "detections": []}) + "\n")
    for _ in range(2):  # before the file is there, and beside it
        pseudo_label(teacher, pictures, tmp_path / "pseudo.json", threshold=LEAST, device="cpu")
        written = (tmp_path / "pseudo.json").read_bytes()
        assert written.replace(b"../", b"") == whole[0].read_bytes().replace(b"../", b"")
        assert not folder.exists()
        folder.mkdir()


def test_two_processes_write_the_same_bytes(whole, teacher, pictures, tmp_path):
    out = tmp_path / "two.json"
    with pytest.raises(EvaluationStopped):  # what one process has begun, two go on with
        pseudo_label(teacher, pictures, out, threshold=LEAST, device="cpu", stopped=lambda: True)
    found = in_processes(2, process_parts.pseudo_labels, teacher, pictures, out, LEAST)
    assert found == [{**whole[1].to_dict(), "written": str(out)}] * 2
    assert out.read_bytes().replace(b"../", b"") == whole[0].read_bytes().replace(b"../", b"")


# The command


def test_the_command_prints_what_it_has_written(command_line, whole, teacher, pictures, tmp_path):
    code, out, err = command_line(
        "pseudo-label", teacher, pictures, tmp_path / "a.json", "--threshold", LEAST, "--json"
    )
    assert code == 0, err
    assert json.loads(out) == {**whole[1].to_dict(), "written": str(tmp_path / "a.json")}


def test_a_file_of_images_keeps_its_ids(teacher, pictures, tmp_path):
    names = sorted(str(path.relative_to(pictures)) for path in pictures.rglob("*.jpg"))
    listed = [{"id": f"photo {name}", "file_name": name} for name in names[:3]]
    (file := tmp_path / "images.json").write_text(json.dumps({"images": listed}))
    labels = pseudo_label(teacher, file, tmp_path / "out.json", images=pictures, threshold=LEAST, device="cpu")
    data = json.loads((tmp_path / "out.json").read_text())
    assert labels.images == 3
    assert {one["id"] for one in data["images"]} == {f"photo {name}" for name in names[:3]}
    assert {one["image_id"] for one in data["annotations"]} <= {one["id"] for one in data["images"]}


def test_a_broken_image_is_named_or_left_out(command_line, teacher, pictures, tmp_path):
    folder = shutil.copytree(pictures / "a", tmp_path / "a")
    (broken := sorted(folder.iterdir())[1]).write_bytes(b"no picture")
    words = ("pseudo-label", teacher, folder, tmp_path / "out.json", "--threshold", LEAST)
    code, out, err = command_line(*words)
    assert (code, out) == (2, "")
    assert broken.name in err
    assert "Traceback" not in err
    assert not (tmp_path / "out.json").exists()
    code, out, err = command_line(*words, "--skip-broken")
    assert code == 0, err
    assert "4 images" in out
    assert "1 image skipped" in out
    assert broken.name in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threshold", LEAST, "--set", "data.val=None", "--set", "data.test=None"], "no data.val to choose"),
        (["--set", "data.val=None"], "no data.val to choose the threshold on: give a threshold"),
        (["--set", "data.val.ann_file=/nowhere.json"], "/nowhere.json"),
        (["--threshold", "2"], "is not in the range"),
        (["--set", "model.test_cfg.score_thr=0.999"], "so that no threshold can be chosen"),
        (["--config", "nothing.py"], "nothing.py: no such file"),
    ],
)
def test_bad_input_is_one_message(command_line, teacher, pictures, tmp_path, words, message):
    code, out, err = command_line("pseudo-label", teacher, pictures, tmp_path / "out.json", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out.json").exists()
