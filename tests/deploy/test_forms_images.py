"""`cskd-deploy report`: other images under the same names are new work, and those to train on may be elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import pytest

from .students import write_checkpoint
from .test_forms_report import CLASSES, Doors, config_of


@pytest.fixture
def doors(monkeypatch) -> Doors:
    return Doors(monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory, shapes_root) -> Path:
    """A data set of three images with a box each, and a student whose config names it."""
    root = tmp_path_factory.mktemp("made")
    (root / "images").mkdir()
    images, boxes = [], []
    for number, file in enumerate(sorted((shapes_root / "images").iterdir())[:3], start=1):
        cv2.imwrite(str(root / "images" / f"{number}.png"), cv2.imread(str(file))[: 40 * number])
        images.append({"id": number, "file_name": f"{number}.png", "height": min(40 * number, 128), "width": 128})
        box = {"image_id": number, "category_id": 1, "bbox": [2, 3, 20, 30], "area": 600, "iscrowd": 0}
        boxes.append({**box, "id": number})
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
    for name in ("train", "val"):
        content = {"images": images, "annotations": boxes, "categories": categories}
        (root / f"{name}.json").write_text(json.dumps(content))
    return root


def test_other_images_under_the_same_names_are_new_work(doors, deploy, made, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(made, root)
    student = write_checkpoint(root / "best.pth", CLASSES, config_of(root))
    line = ("report", student, "--output", tmp_path / "forms", "--threads", 1)
    done = deploy(*line)
    assert done.code == 0, done.err
    doors.calls.clear()
    image = root / "images" / "2.png"
    image.touch()
    assert deploy(*line).code == 0
    assert doors.calls == []
    size = image.stat().st_size
    content = bytearray(image.read_bytes())
    content[size // 2] ^= 1
    image.write_bytes(content)
    assert deploy(*line).code == 0
    whats = [call.split()[0] for call in doors.calls]
    assert (whats.count("make"), whats.count("evaluate"), whats.count("bench")) == (3, 12, 1)
    assert "make fp32" not in doors.calls
    image.unlink()
    doors.calls.clear()
    done = deploy(*line)
    assert done.code == 2
    assert "2.png" in done.err
    assert doors.calls == []


@pytest.mark.parametrize("folder", ["elsewhere", "empty"])
def test_training_images_that_are_not_here_cost_int8_only(folder, doors, deploy, made, tmp_path):
    (made / "empty").mkdir(exist_ok=True)
    config = config_of(made)
    config["data"]["train"] |= {"img_prefix": folder}
    line = ("report", write_checkpoint(tmp_path / "far.pth", CLASSES, config), "--output", tmp_path / "forms", "--json")
    done = deploy(*line)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    faults = {row["form"]: row["fault"] for row in report["rows"] if row["fault"]}
    assert set(faults) == {"int8-cpu", "int8-tensorrt"}
    assert "cannot be had" in faults["int8-cpu"]
    assert "give --calibration-images or --calibration-ann" in faults["int8-cpu"]
    assert any("FP16 is compared with FP32 on random ones" in note for note in report["notes"])
    report = json.loads(deploy(*line, "--calibration-images", made / "images").out)
    assert not any(row["fault"] for row in report["rows"])
    assert not any("random" in note for note in report["notes"])


def test_what_a_report_reads_it_does_not_write_over(doors, deploy, made, tmp_path):
    student = write_checkpoint(tmp_path / "best.pth", CLASSES, config_of(made))
    (tmp_path / "forms").mkdir()
    listed = tmp_path / "forms" / "report.json"
    shutil.copy(made / "val.json", listed)
    picture = made / "images" / "1.png"
    before = listed.read_bytes(), picture.read_bytes()
    for words, message in (
        (("--ann", listed, "--images", made / "images"), f"report.json would replace {listed}, which is read"),
        (("--plot", picture), f"--plot {picture} would replace {picture}, which is read"),
        (("--plot", tmp_path / "x.xyz"), "x.xyz: matplotlib draws"),
        (("--plot", student), "best.pth: matplotlib draws"),
    ):
        done = deploy("report", student, "--output", tmp_path / "forms", *words)
        assert done.code == 2
        assert message in done.err
    assert doors.calls == []
    assert (listed.read_bytes(), picture.read_bytes()) == before


def pseudo_labelled(content: dict[str, Any], images: Path) -> None:
    for box in content["annotations"]:
        box["score"] = 0.5


def without_boxes_in_the_first(content: dict[str, Any], images: Path) -> None:
    del content["annotations"][0]


def truncated(content: dict[str, Any], images: Path) -> None:
    last = images / "3.png"
    last.write_bytes(last.read_bytes()[:-200])


def of_another_size(content: dict[str, Any], images: Path) -> None:
    content["images"][1]["width"] = 99


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (pseudo_labelled, (), "is pseudo-labelled"),
        (without_boxes_in_the_first, ("--limit", 1), "has no box of the classes"),
        (truncated, (), "3.png is truncated"),
        (truncated, ("--limit", 1), "3.png is truncated"),  # it is timed
        (of_another_size, (), "its boxes would not fit"),
    ],
)
def test_what_eval_refuses_is_refused_before_anything_is_made(doors, deploy, made, tmp_path, change, words, message):
    shutil.copytree(made / "images", tmp_path / "images")
    content = json.loads((made / "val.json").read_text())
    change(content, tmp_path / "images")
    (tmp_path / "val.json").write_text(json.dumps(content))
    student = write_checkpoint(tmp_path / "best.pth", CLASSES, config_of(made))
    data = ("--ann", tmp_path / "val.json", "--images", tmp_path / "images", *words)
    done = deploy("report", student, *data, "--output", tmp_path / "forms", "--threads", 1)
    assert done.code == 2
    assert message in done.err
    assert doors.calls == []
    assert not (tmp_path / "forms").exists()
