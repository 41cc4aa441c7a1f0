"""mAP of the shipped file: equal to the checkpoint's, by class name, with a gate on the drop."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from cskd_data import read
from cskd_deploy.exporter.onnx import export

from .students import GRAPHS, write_checkpoint


@pytest.mark.parametrize("family", GRAPHS)
def test_map_of_the_file_is_that_of_the_checkpoint(deploy, family, exported, annotated, shapes_root):
    data = ("--ann", annotated(family), "--images", shapes_root / "images")
    done = deploy("eval", exported(family).model, *data, "--reference", exported(family).checkpoint, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert 0.2 < result["metrics"]["bbox_mAP"] < 0.95
    assert abs(result["drop_points"]) < 0.05
    assert result["reference_metrics"]["metrics"]["bbox_mAP_50"] == pytest.approx(
        result["metrics"]["bbox_mAP_50"], abs=5e-4
    )
    # The annotation file's category ids run against the order of the classes.
    assert result["per_class"] == pytest.approx(result["reference_metrics"]["per_class"], abs=2e-3)
    assert len(set(result["per_class"].values())) == len(result["per_class"])
    assert result["images"] == result["reference_metrics"]["images"] == 6
    assert result["notes"] == []


def test_the_tables_name_every_metric_and_class_and_the_drop(
    deploy, model_file, checkpoint, found_annotations, shapes_root, classes
):
    images = shapes_root / "images"
    done = deploy("eval", model_file, "--ann", found_annotations, "--images", images, "--reference", checkpoint)
    assert done.code == 0
    for title in ("AP   IoU 0.50:0.95", "AP   large", "AR   100 detections", *(f"AP   {name}" for name in classes)):
        assert title in done.out
    assert "drop: " in done.out
    assert re.search(r" s, scored by (faster-coco-eval|pycocotools) \d", done.out)
    assert "eval 6/6 images" in done.err
    assert "reference 6/6 images" in done.err


@pytest.mark.parametrize("given", [False, True], ids=["looked for", "given"])
def test_a_file_that_was_written_elsewhere_is_evaluated_with_the_images_given_or_not(
    deploy, model_file, checkpoint, found_annotations, shapes_root, tmp_path, given
):
    out = tmp_path / "far" / "away" / "made.json"
    read(found_annotations, shapes_root / "images").to_coco(out)
    images = ("--images", shapes_root / "images") if given else ()
    done = deploy("eval", model_file, "--ann", out, *images, "--reference", checkpoint, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["metrics"]["bbox_mAP"] > 0.2
    assert abs(result["drop_points"]) < 0.05


def test_a_drop_beyond_the_limit_is_exit_code_1(deploy, checkpoint, classes, found_annotations, shapes_root, tmp_path):
    other = write_checkpoint(tmp_path / "other.pth", classes, seed=5)
    model = export(other, tmp_path / "other.onnx").path
    arguments = (
        "eval",
        model,
        "--ann",
        found_annotations,
        "--images",
        shapes_root / "images",
        "--reference",
        checkpoint,
    )
    done = deploy(*arguments)
    assert done.code == 1
    assert "more than the 0.2 allowed" in done.err
    assert "sha256 differs" in done.out
    assert deploy(*arguments, "--max-drop", 100).code == 0


def test_detections_are_written_in_cocos_format_with_the_files_category_ids(
    deploy, model_file, found_annotations, shapes_root, tmp_path
):
    out = tmp_path / "folder" / "results.json"
    images = shapes_root / "images"
    done = deploy("eval", model_file, "--ann", found_annotations, "--images", images, "--detections", out, "--limit", 2)
    assert done.code == 0
    found = json.loads(out.read_text())
    known = json.loads(found_annotations.read_text())
    assert {one["image_id"] for one in found} == {image["id"] for image in known["images"][:2]}
    assert {one["category_id"] for one in found} <= {category["id"] for category in known["categories"]}
    assert set(found[0]) == {"image_id", "category_id", "bbox", "score"}


def test_another_file_is_a_reference_too(deploy, exported, found_annotations, shapes_root, model_file, tmp_path):
    data = ("--ann", found_annotations, "--images", shapes_root / "images")
    copy = tmp_path / "copy.onnx"
    shutil.copy(model_file, copy)
    done = deploy("eval", copy, *data, "--reference", model_file, "--max-drop", 0, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["drop_points"] == 0
    assert result["notes"] == []
    assert result["metrics"]["bbox_mAP"] == result["reference_metrics"]["metrics"]["bbox_mAP"] > 0.2
    assert result["file_sha256"] == result["reference_sha256"]
    assert result["reference"] == str(model_file)
    other = exported("FCOS").model
    done = deploy("eval", model_file, *data, "--limit", 2, "--reference", other, "--max-drop", 100)
    assert done.code == 0
    assert "note: not the same work: " in done.out
    assert "was exported from another checkpoint than the model" in done.out
    assert "reference 2/2 images" in done.err


def test_a_checkpoint_is_evaluated_like_a_file(deploy, checkpoint, model_file, found_annotations, shapes_root):
    data = ("--ann", found_annotations, "--images", shapes_root / "images", "--reference", model_file, "--json")
    result = json.loads(deploy("eval", checkpoint, *data).out)
    assert result["metrics"]["bbox_mAP"] > 0.2
    assert abs(result["drop_points"]) < 0.05


def test_a_limit_cuts_the_reference_to_the_same_images(deploy, model_file, checkpoint, found_annotations, shapes_root):
    images = shapes_root / "images"
    arguments = ("--ann", found_annotations, "--images", images, "--reference", checkpoint, "--limit", 3, "--json")
    result = json.loads(deploy("eval", model_file, *arguments).out)
    assert result["images"] == result["reference_metrics"]["images"] == 3
    assert abs(result["drop_points"]) < 0.05


def test_degenerate_boxes_are_kept_out_with_a_warning_and_do_not_change_map(
    deploy, model_file, checkpoint, found_annotations, shapes_root, tmp_path
):
    images = shapes_root / "images"
    data = json.loads(found_annotations.read_text())
    box = data["annotations"][0]
    inside = {"image_id": box["image_id"], "category_id": box["category_id"], "iscrowd": 0}
    data["annotations"] += [
        {**inside, "id": 9001, "bbox": [5.0, 5.0, 0.0, 0.0], "area": 0.0},
        {**inside, "id": 9002, "bbox": [500.0, 5.0, 20.0, 20.0], "area": 400.0},
    ]
    spoilt = tmp_path / "spoilt.json"
    spoilt.write_text(json.dumps(data))
    plain = json.loads(deploy("eval", model_file, "--ann", found_annotations, "--images", images, "--json").out)
    done = deploy("eval", model_file, "--ann", spoilt, "--images", images, "--reference", checkpoint, "--json")
    (warning,) = [line for line in done.err.splitlines() if line.startswith("warning: 2 boxes kept out")]
    assert "annotation 9001" in warning
    assert "annotation 9002" in warning
    assert data["images"][0]["file_name"] in warning
    result = json.loads(done.out)
    assert result["metrics"] == plain["metrics"]
    assert abs(result["drop_points"]) < 0.05


def test_a_model_that_finds_nothing_has_map_zero(deploy, model_file, found_annotations, shapes_root, tmp_path):
    import onnx

    model = onnx.load(str(model_file))
    entry = model.metadata_props[0]
    manifest = json.loads(entry.value)
    manifest["postprocessing"]["score_threshold"] = 1.0
    entry.value = json.dumps(manifest)
    blind = tmp_path / "blind.onnx"
    onnx.save(model, str(blind))
    done = deploy("eval", blind, "--ann", found_annotations, "--images", shapes_root / "images", "--json")
    assert done.code == 0
    assert json.loads(done.out)["metrics"]["bbox_mAP"] == 0
    assert json.loads(done.out)["detections"] == 0


def test_images_padded_otherwise_than_for_the_reference_are_noted(
    deploy, checkpoint, found_annotations, shapes_root, tmp_path
):
    model = export(checkpoint, tmp_path / "wide.onnx", input_sizes=[(128, 192)]).path
    images = shapes_root / "images"
    arguments = ("--ann", found_annotations, "--images", images, "--reference", checkpoint, "--max-drop", 100, "--json")
    notes = json.loads(deploy("eval", model, *arguments).out)["notes"]
    assert notes[0].startswith("6 of 6 images are padded or scaled otherwise")
