"""A reference that cannot be held against the model is refused before the model runs, by one rule for every form."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cskd_deploy.exporter.onnx import export

from .students import write_checkpoint

FORMS = ("checkpoint", "file", "json")


@pytest.fixture(scope="module")
def two(tmp_path_factory, classes) -> dict[str, Path]:
    """A student of the first two of the six classes: its checkpoint and its file."""
    folder = tmp_path_factory.mktemp("two")
    checkpoint = write_checkpoint(folder / "two.pth", classes[:2], seed=3)
    return {"checkpoint": checkpoint, "file": export(checkpoint, folder / "two.onnx").path}


def evaluated(deploy: Any, model: Path, data: tuple[object, ...], target: Path) -> Path:
    done = deploy("eval", model, *data, "--json")
    assert done.code == 0, done.err
    target.write_text(done.out)
    return target


@pytest.mark.parametrize("form", FORMS)
def test_map_over_fewer_classes_is_no_reference(
    deploy, two, model_file, found_annotations, shapes_root, classes, tmp_path, form
):
    data = ("--ann", found_annotations, "--images", shapes_root / "images", "--limit", 2, "--threads", 1)
    reference = two[form] if form in two else evaluated(deploy, two["file"], data, tmp_path / "two.json")
    done = deploy("eval", model_file, *data, "--reference", reference, "--max-drop", 100)
    assert done.code == 2
    assert f"--reference {reference} has mAP over the classes {classes[0]}, {classes[1]}, this evaluation" in done.err
    assert "they cannot be compared" in done.err
    assert not re.search(r"eval \d", done.err)
    assert done.out == ""


def test_a_file_of_detections_has_no_reference_of_fewer_classes_either(
    deploy, two, model_file, found_annotations, shapes_root, tmp_path
):
    data = ("--ann", found_annotations, "--images", shapes_root / "images")
    (tmp_path / "found.json").write_text("[]")
    done = deploy("eval", "--predictions", tmp_path / "found.json", *data, "--reference", two["file"])
    assert done.code == 2
    assert "they cannot be compared" in done.err


def test_images_that_cannot_be_used_are_found_before_the_reference_of_detections_runs(
    deploy, model_file, found_annotations, shapes_root, tmp_path, monkeypatch
):
    monkeypatch.setattr("cskd_deploy.accuracy.evaluate.measure", lambda *_: pytest.fail("the reference ran"))
    shutil.copytree(shapes_root / "images", tmp_path / "images")
    last = tmp_path / "images" / json.loads(found_annotations.read_text())["images"][-1]["file_name"]
    last.write_bytes(last.read_bytes()[:-2000])
    (tmp_path / "found.json").write_text("[]")
    words = ("--predictions", tmp_path / "found.json", "--ann", found_annotations, "--images", tmp_path / "images")
    done = deploy("eval", *words, "--reference", model_file, "--max-drop", 100)
    assert done.code == 2
    assert f"{last.name} is truncated" in done.err
    assert deploy("eval", *words).code == 0  # these are not opened


def test_further_classes_of_a_reference_without_boxes_change_nothing_in_any_form(
    deploy, two, checkpoint, model_file, found_annotations, shapes_root, classes, tmp_path
):
    content = json.loads(found_annotations.read_text())
    names = {one["id"]: one["name"] for one in content["categories"]}
    content["annotations"] = [one for one in content["annotations"] if names[one["category_id"]] in classes[:2]]
    (tmp_path / "two_classes.json").write_text(json.dumps(content))
    images = ("--images", shapes_root / "images", "--limit", 2, "--threads", 1)
    data = ("--ann", tmp_path / "two_classes.json", *images)
    former = evaluated(deploy, model_file, data, tmp_path / "six.json")
    drops = []
    for reference in (checkpoint, model_file, former):
        done = deploy("eval", two["file"], *data, "--reference", reference, "--max-drop", 100, "--json")
        assert done.code == 0, done.err
        drops.append(json.loads(done.out)["drop_points"])
    assert drops[0] == pytest.approx(drops[1], abs=0.05)
    assert drops[2] == pytest.approx(drops[1], abs=1e-9)
    assert drops[1] > 1
    # Where these classes have boxes, the former result is over more of them than the model has.
    former = evaluated(deploy, model_file, ("--ann", found_annotations, *images), tmp_path / "all.json")
    words = ("eval", two["file"], "--ann", found_annotations, *images, "--max-drop", 100, "--reference")
    done = deploy(*words, former)
    assert done.code == 2
    assert "they cannot be compared" in done.err
    assert "or give the model itself as --reference" in done.err
    assert deploy(*words, model_file).code == 0


def without_test(config: dict[str, Any]) -> None:
    config["data"]["val"] = config["data"].pop("test")


def several_tests(config: dict[str, Any]) -> None:
    config["data"]["test"] = [config["data"]["test"]]


def unknown_step(config: dict[str, Any]) -> None:
    config["data"]["test"]["pipeline"][1]["transforms"].insert(0, {"type": "NoSuchStep"})


def soft_nms(config: dict[str, Any]) -> None:
    config["model"]["test_cfg"]["nms"] = {"type": "soft_nms", "iou_threshold": 0.5}


def paa(config: dict[str, Any]) -> None:
    """PAA has the layers of ATSS; untrained, its votes give no finite boxes."""
    config["model"]["type"] = "PAA"
    config["model"]["bbox_head"] |= {"type": "PAAHead", "score_voting": False}


def changed(checkpoint: Path, change: Any, target: Path) -> Path:
    stored = torch.load(checkpoint, weights_only=True)
    change(stored["meta"]["config"])
    torch.save(stored, target)
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_test, "other.pth cannot be evaluated: the config has no data.test.pipeline"),
        (several_tests, "other.pth cannot be evaluated: the config has no data.test.pipeline"),
        (unknown_step, "NoSuchStep"),
    ],
)
def test_a_checkpoint_whose_config_does_not_bring_images_in_is_refused_before_the_model_runs(
    deploy, checkpoint, model_file, found_annotations, shapes_root, tmp_path, change, message
):
    reference = changed(checkpoint, change, tmp_path / "other.pth")
    data = ("--ann", found_annotations, "--images", shapes_root / "images", "--limit", 2, "--threads", 1)
    done = deploy("eval", model_file, *data, "--reference", reference)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("error: ") == 1
    assert not re.search(r"eval \d", done.err)


@pytest.mark.parametrize(("family", "change"), [("RetinaNet", soft_nms), ("ATSS", paa)])
def test_a_reference_that_mmdet_evaluates_need_not_be_exportable(
    deploy, exported, model_file, found_annotations, shapes_root, tmp_path, family, change
):
    reference = changed(exported(family).checkpoint, change, tmp_path / "other.pth")
    data = ("--ann", found_annotations, "--images", shapes_root / "images", "--limit", 2, "--threads", 1)
    done = deploy("eval", model_file, *data, "--reference", reference, "--max-drop", 100, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["reference_metrics"]["detections"] > 0
    assert any("sha256 differs" in note for note in result["notes"])
    assert deploy("export", "--checkpoint", reference, "--output", tmp_path / "other.onnx").code == 2
