"""The search for layers to keep in float keeps its promise."""

from __future__ import annotations

import json
from typing import Any

import cv2
import numpy as np
import pytest

from cskd_deploy.errors import CheckFailed
from cskd_deploy.lower.search import search

HEADS = ("bbox_head.retina_cls", "bbox_head.retina_reg")


def test_the_search_stops_at_once_where_the_drop_is_small():
    found = search(["a", "b"], lambda keep: 0.1, 40.0, 0.5, lambda line: None)
    assert found.kept == ()
    assert found.ranking == ()
    assert found.drop == found.first_drop == 0.1


def test_the_search_puts_the_costliest_layers_back_until_the_drop_is_within_the_limit():
    costs = {"a": 0.1, "b": 2.0, "c": 0.0, "d": 0.7}
    lines: list[str] = []
    found = search(
        list(costs), lambda keep: sum(cost for name, cost in costs.items() if name not in keep), 40.0, 0.2, lines.append
    )
    assert found.first_drop == pytest.approx(2.8)
    assert [name for name, _ in found.ranking] == ["b", "d", "a", "c"]
    assert found.kept == ("b", "d")
    assert found.drop == pytest.approx(0.1)
    assert any("2/4 b alone: drop +2.00 points" in line for line in lines)
    assert "b" in str(found)
    assert "+0.10 with 2 layers in float" in str(found)


def test_the_search_leaves_named_layers_in_float_and_out_of_the_ranking():
    asked: list[set[str]] = []

    def drop_with(keep: Any) -> float:
        asked.append(set(keep))
        return 0.0 if {"a", "b"} <= set(keep) else 1.0

    found = search(["a", "b", "c"], drop_with, 40.0, 0.5, lambda line: None, keep=["a"])
    assert all("a" in keep for keep in asked)
    assert [name for name, _ in found.ranking] == ["b", "c"]
    assert found.kept == ("a", "b")


def test_a_search_that_finds_nothing_is_a_failed_check():
    with pytest.raises(CheckFailed, match=r"drops by 3.00 points with \w alone in INT8, more than the 0.5 allowed"):
        search(["a", "b"], lambda keep: 3.0, 40.0, 0.5, lambda line: None)


def test_search_keeps_what_the_drop_demands(deploy, exported, shapes_root, found_annotations, tmp_path):
    """Everything but two layers of the head is in float already; calibrated on grey,
    each of the two costs more than a tenth of the mAP in INT8."""
    grey = tmp_path / "grey"
    grey.mkdir()
    for number, shade in enumerate((110, 112)):
        picture = np.full((128, 128, 3), shade, dtype=np.uint8)
        picture[:64] += 1  # hardly more than one colour, which would be refused
        cv2.imwrite(str(grey / f"{number}.png"), picture)
    model, output = tmp_path / "student.onnx", tmp_path / "student.int8-tensorrt.onnx"
    model.write_bytes(exported("RetinaNet").model.read_bytes())
    outcome = deploy(
        *("search", model, "--target", "tensorrt", "--json", "--calibration-images", grey),
        *("--keep-float", "backbone", "--keep-float", "neck", "--keep-float", "bbox_head.*_convs"),
        *("--max-drop", 12.5, "--ann", found_annotations, "--images", shapes_root / "images"),
    )
    assert outcome.code == 0, outcome.err
    facts = json.loads(outcome.out)
    found = facts["search"]
    assert facts["path"] == str(output)
    assert facts["manifest"]["precision"] == "int8-tensorrt"
    assert found["first_drop_points"] > 12.5
    assert found["drop_points"] <= 12.5
    assert {entry["layer"] for entry in found["ranking"]} == set(HEADS)
    assert len(set(HEADS).intersection(found["kept_in_float"])) == 1
    assert "search: measuring FP32 on 6 images" in outcome.err
    measured = deploy("eval", output, "--ann", found_annotations, "--images", shapes_root / "images", "--json")
    points = 100 * json.loads(measured.out)["metrics"]["bbox_mAP"]
    assert points == pytest.approx(found["reference_mAP_points"] - found["drop_points"], abs=1e-6)

    # What it prints makes the same file again.
    again = tmp_path / "again.onnx"
    words = ("--precision", "int8", "--target", "tensorrt", "--calibration-images", grey, "--output", again)
    assert deploy("export", "--onnx", model, *words, *facts["export_options"].split()).code == 0
    assert again.read_bytes() == output.read_bytes()


def test_a_search_that_needs_no_layer_says_so_and_writes_the_int8_file(
    deploy, exported, shapes_root, found_annotations, tmp_path
):
    """And calibrates on what a COCO file lists, whose folder it finds as `export` and `report` do."""
    images, output = shapes_root / "images", tmp_path / "student.onnx"
    train = shapes_root / "annotations" / "train.json"
    done = deploy(
        *("search", exported("RetinaNet").model, "--calibration-ann", train, "--calibration-count", 3),
        *("--max-drop", 100, "--ann", found_annotations, "--images", images, "--output", output),
    )
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "no layer has to stay in float"
    assert "calibrated on 3 images" in done.out
    assert output.exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--ann": "{tmp}/none.json"}, "none.json"),
        ({"--ann": "{tmp}/empty.json"}, "mAP cannot be computed"),
        ({"--images": "{tmp}"}, "image val_00000.jpg does not exist"),
        ({"--calibration-images": "{tmp}/none"}, "none does not exist"),
        ({"--calibration-images": None}, "give --calibration-images or --calibration-ann"),
        ({"--calibration-images": None, "--calibration-ann": "{tmp}/none.json"}, "none.json"),
        ({"--keep-float": "neck.x"}, "is no layer"),
        ({"--output": "{tmp}/empty.json/student.onnx"}, "empty.json"),
    ],
)
def test_a_search_that_cannot_be_done_is_refused_before_anything_is_measured(
    changed, message, deploy, model_file, shapes_root, found_annotations, tmp_path
):
    data = json.loads(found_annotations.read_text())
    (tmp_path / "empty.json").write_text(json.dumps({**data, "annotations": []}))
    images = shapes_root / "images"
    options = {"--calibration-images": images, "--calibration-count": 1, "--ann": found_annotations, "--images": images}
    options |= {"--output": tmp_path / "student.onnx", **changed}
    given = [option for option in options.items() if option[1] is not None]
    words = [str(word).format(tmp=tmp_path) for option in given for word in option]
    done = deploy("search", model_file, "--max-drop", 1, *words)
    assert done.code == 2
    assert message in done.err
    assert "measuring" not in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["empty.json"]


def test_export_has_no_search(deploy, model_file):
    done = deploy("export", "--onnx", model_file, "--precision", "int8", "--search")
    assert done.code == 2
    assert "No such option" in done.err
