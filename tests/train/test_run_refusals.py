"""What `cskd-train run` refuses, before a file of an older run is touched."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch

from cskd_train.engine.records import read_log
from cskd_train.files import checkpoints


def contents_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_with_a_run_is_refused_and_untouched(train_tiny, used):
    before = contents_of(used)
    code, _, err = train_tiny(used)
    assert code == 2
    assert "already holds a finished run" in err
    assert "--resume" in err
    assert "--overwrite" in err
    assert contents_of(used) == before


def test_overwrite_replaces_the_run_and_nothing_else_once_the_input_is_right(train_tiny, used):
    (used / "notes.txt").write_text("mine")
    before = contents_of(used)
    code, _, _ = train_tiny(used, "--overwrite", "--set", "data.train.ann_file=annotations/nothing.json")
    assert code == 2
    assert contents_of(used) == before
    assert train_tiny(used, "--overwrite", "--set", "runner.max_epochs=1", "--seed", 1)[0] == 0
    assert len([r for r in read_log(used / "log.jsonl") if r["mode"] == "train"]) == 3
    assert checkpoints.load_checkpoint(used / "last.pth").meta["seed"] == 1
    assert (used / "notes.txt").read_text() == "mine"


def test_resume_and_overwrite_together_are_refused(train_tiny, tmp_path):
    assert train_tiny(tmp_path, "--resume", "--overwrite")[0] == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.train.ann_file=annotations/nothing.json", "nothing.json"),
        ("data.val.img_prefix=nowhere/", "nowhere"),
        ("model.bbox_head.num_classes=80", "bbox_head has 80 classes, the data has 6 (circle, ring"),
        ("model.backbone.depth=19", "the config's model cannot be built"),
        ("optimizer.type=Adagard", "Adagard"),
        ("optimizer.learning_rate=1", "learning_rate"),
        ("lr_config.policy=stairs", "StairsLrUpdaterHook"),
        ("runner.type=IterBasedRunner", "only runner = dict(type='EpochBasedRunner'"),
        ("runner.max_epochs=0", "runner.max_epochs = 0: expected a whole number"),
        ("load_from=nothing.pth", "nothing.pth: no such file"),
        ("optimizer.lr.x=1", "not a group of settings"),
        ("optimiser.lr=1", "did you mean optimizer"),
    ],
)
def test_bad_input_is_one_message_and_nothing_is_trained(train_tiny, tmp_path, setting, message):
    code, out, err = train_tiny(tmp_path / "w", "--set", setting)
    assert code == 2
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    assert contents_of(tmp_path) == {}


@pytest.mark.parametrize("setting", ["data.val.img_prefix=nowhere/", "data.train.ann_file=none.json", "amp=int8"])
def test_what_is_refused_leaves_no_folder_behind(train_tiny, tmp_path, setting):
    assert train_tiny(tmp_path / "w", "--set", setting)[0] == 2
    assert not (tmp_path / "w").exists()


def test_a_missing_teacher_is_refused(train_tiny, distill_config, tmp_path):
    setting = f"distill.teacher.checkpoint={tmp_path / 'nobody.pth'}"
    code, _, err = train_tiny(tmp_path / "w", "--set", setting, config=distill_config)
    assert code == 2
    assert "nobody.pth" in err
    assert "Traceback" not in err


def test_an_unknown_key_in_distill_is_refused(train_tiny, distill_config, tmp_path):
    code, _, err = train_tiny(tmp_path / "w", "--set", "distill.piramid=1", config=distill_config)
    assert code == 2
    assert "piramid" in err


def test_a_work_dir_that_cannot_be_made_is_refused(train_tiny, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = train_tiny(tmp_path / "file" / "work")
    assert code == 2
    assert "cannot be written" in err
    assert "--work-dir" in err


def test_a_gpu_that_is_not_there_is_refused(train_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = train_tiny(tmp_path, "--device", "cuda")
    assert code == 2
    assert "torch sees no GPU" in err


def test_an_image_that_is_cut_short_ends_the_run_with_its_name(train_tiny, shapes_root, tmp_path):
    annotations = json.loads((shapes_root / "annotations" / "train.json").read_text())
    name = annotations["images"][3]["file_name"]
    (images := tmp_path / "images").mkdir()
    for image in annotations["images"]:
        (images / image["file_name"]).write_bytes((shapes_root / "images" / image["file_name"]).read_bytes())
    encoded = cv2.imencode(".jpg", np.zeros((128, 128, 3), np.uint8))[1].tobytes()
    (images / name).write_bytes(encoded[:200])
    code, _, err = train_tiny(tmp_path / "w", "--set", f"data.train.img_prefix={images}")
    assert code == 2
    assert name in err
    assert "Traceback" not in err
