"""A model has as many class names as its head has classes, or it is refused, at every door."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest
import torch

from cskd_deploy.exporter.student import load_student
from cskd_deploy.model.manifest import MANIFEST_KEY

from .students import student_config

MANY, FEW = [f"class {number}" for number in range(9)], ["class 0", "class 1"]


def renamed(checkpoint: Path, names: Sequence[str], target: Path) -> Path:
    """The checkpoint with other class names in its metadata."""
    stored = torch.load(checkpoint, weights_only=True)
    stored["meta"]["CLASSES"] = list(names)
    torch.save(stored, target)
    return target


@pytest.mark.parametrize("family", ["RetinaNet", "FasterRCNN"])
@pytest.mark.parametrize("names", [MANY, FEW], ids=["more", "fewer"])
def test_a_checkpoint_with_more_or_fewer_names_than_classes_is_not_exported(deploy, exported, tmp_path, family, names):
    checkpoint = renamed(exported(family).checkpoint, names, tmp_path / "student.pth")
    done = deploy("export", "--checkpoint", checkpoint, "--output", tmp_path / "student.onnx")
    assert done.code == 2
    head = "roi_head.bbox_head" if family == "FasterRCNN" else "bbox_head"
    assert f"{len(names)} classes are named for the checkpoint {checkpoint} (class 0, class 1" in done.err
    assert f"its {head} has 6: give --config with data.test.classes=[...], the names of all 6" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["student.pth"]


def test_weights_alone_take_no_other_number_of_names_from_a_config(deploy, checkpoint, classes, tmp_path):
    torch.save({"state_dict": torch.load(checkpoint, weights_only=True)["state_dict"]}, tmp_path / "bare.pth")
    config = student_config(classes)
    config["data"]["test"]["classes"] = classes[:2]
    (tmp_path / "two.json").write_text(json.dumps(config))
    words = ("--checkpoint", tmp_path / "bare.pth", "--config", tmp_path / "two.json", "--output", tmp_path / "x.onnx")
    done = deploy("export", *words)
    assert done.code == 2
    assert f"({classes[0]}, {classes[1]}), its bbox_head has 6" in done.err
    assert not (tmp_path / "x.onnx").exists()


def test_the_names_of_a_config_file_serve_where_those_in_the_checkpoint_do_not_fit(checkpoint, classes, tmp_path):
    (tmp_path / "own.json").write_text(json.dumps(student_config(classes)))
    assert load_student(renamed(checkpoint, MANY, tmp_path / "many.pth"), tmp_path / "own.json").classes == classes
    swapped = tuple(reversed(classes))
    student = load_student(renamed(checkpoint, swapped, tmp_path / "swapped.pth"), tmp_path / "own.json")
    assert student.classes == swapped  # they fit


@pytest.mark.parametrize("command", ["bench", "compare", "eval", "report"])
def test_no_command_takes_a_checkpoint_with_another_number_of_names(
    deploy, checkpoint, model_file, found_annotations, shapes_root, tmp_path, command
):
    other, images = renamed(checkpoint, MANY, tmp_path / "many.pth"), shapes_root / "images"
    data = ("--ann", found_annotations, "--images", images)
    words = {
        "bench": (model_file, "--reference", other),
        "compare": (model_file, other, "--images", images),
        "eval": (model_file, *data, "--reference", other),
        "report": (other, *data, "--output", tmp_path / "forms"),
    }[command]
    done = deploy(command, *words)
    assert done.code == 2
    assert "9 classes are named for the checkpoint" in done.err
    assert not re.search(r"eval \d", done.err)
    assert not (tmp_path / "forms").exists()


@pytest.mark.parametrize("command", ["bench", "eval", "infer"])
def test_a_file_that_finds_labels_without_a_name_is_refused_in_a_sentence(
    deploy, model_file, found_annotations, shapes_root, classes, tmp_path, command
):
    model = onnx.load(str(model_file))
    (entry,) = (one for one in model.metadata_props if one.key == MANIFEST_KEY)
    entry.value = json.dumps({**json.loads(entry.value), "classes": classes[:2]})
    onnx.save(model, str(tmp_path / "few.onnx"))
    images = shapes_root / "images"
    words = {
        "bench": ("--images", images, "--duration", 0, "--iterations", 1, "--no-cold"),
        "eval": ("--ann", found_annotations, "--images", images),
        "infer": (images, "--output", tmp_path / "drawn"),
    }[command]
    done = deploy(command, tmp_path / "few.onnx", *words)
    assert done.code == 2
    assert "few.onnx found label " in done.err
    assert "and its metadata names 2 classes, from label 0 to 1: export the checkpoint again" in done.err
