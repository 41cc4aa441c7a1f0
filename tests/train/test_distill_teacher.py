"""A project under a teacher that it does not train: it is had, tried, and labels pictures, before anything trains."""

from __future__ import annotations

import copy
import io
import json
import shutil

import pytest
import torch
from rich.console import Console

from cskd_train.engine.pseudo_label import pseudo_label
from cskd_train.engine.timing import Cost
from cskd_train.errors import TrainError
from cskd_train.files.checkpoints import sha256
from cskd_train.project import distill as module
from cskd_train.project.distill import distill

from .file_server import serving
from .test_distill import write_project

OTHER = {"mean": [103.53, 116.28, 123.675], "std": [58.0, 57.0, 56.0], "to_rgb": False}


@pytest.fixture
def project(shapes_root, tmp_path, monkeypatch):
    """With pictures without labels; measured in no time. Nothing is trained in it."""
    folder = write_project(tmp_path / "cells", shapes_root)
    monkeypatch.setattr(module, "measure", lambda *_: Cost(1.0, 6, 4.0))
    monkeypatch.setattr(module._Way, "_train", lambda *_: (_ for _ in ()).throw(TrainError("far enough")))
    return folder


@pytest.fixture
def plain(trained, tiny_config, tmp_path):
    """Weights without a config, and the config that they were trained by: images are normalised otherwise."""
    contents = torch.load(trained / "best.pth", weights_only=True)
    torch.save({"state_dict": contents["state_dict"]}, tmp_path / "plain.pth")
    config = tmp_path / "plain_teacher.py"
    config.write_text(
        f"_base_ = [{str(tiny_config)!r}]\nnormalize = dict(type='Normalize', **{OTHER})\n"
        "test_pipeline = [dict(type='LoadImageFromFile'), dict(type='MultiScaleFlipAug', img_scale=(96, 96), "
        "flip=False, transforms=[dict(type='Resize', keep_ratio=True), normalize, dict(type='Pad', size_divisor=32), "
        "dict(type='ImageToTensor', keys=['img']), dict(type='Collect', keys=['img'], "
        "meta_keys=('filename', 'ori_shape', 'img_shape', 'scale_factor'))])]\n"
        "data = dict(val=dict(pipeline=test_pipeline), test=dict(pipeline=test_pipeline))\n"
    )
    return tmp_path / "plain.pth", config


def teach(project, checkpoint, config=None, pictures=None):
    """Name another teacher, and a folder of pictures without labels."""
    path = project / "distilled.py"
    text = path.read_text().replace("{{ fileDirname }}/work_dirs/teacher/best.pth", str(checkpoint))
    if config is not None:
        text = text.replace("teacher=dict(", f"teacher=dict(config={str(config)!r}, ")
    if pictures is not None:
        text += f"data = dict(unlabeled=dict(ann_file='unlabeled.json', images={str(pictures)!r}, share=0.5))\n"
    path.write_text(text)


def go(project):
    """As far as the first training; gives what was said."""
    console = Console(record=True, width=300, file=io.StringIO())
    with pytest.raises(TrainError, match="far enough"):
        distill(project, device="cpu", console=console)
    return console.export_text()


def test_a_plain_checkpoint_labels_the_pictures_by_its_own_config(project, plain, shapes_root, tmp_path):
    checkpoint, config = plain
    teach(project, checkpoint, config, shapes_root / "images")
    said = go(project)
    assert "18 images" in said
    state = json.loads((project / "work_dirs" / "distill.json").read_text())
    assert state["made"]["distilled"] == sha256(checkpoint)
    assert state["made"]["labels"] == state["files"]["unlabeled"] == sha256(project / "data" / "unlabeled.json")
    assert state["labelling"] > 0
    made = json.loads((project / "data" / "unlabeled.json").read_text())
    own = tmp_path / "own.json"
    root = {"data_root": str(project / "data"), "data.val.ann_file": "val.json", "data.val.img_prefix": None}
    pseudo_label(checkpoint, shapes_root / "images", own, config=config, overrides=root, device="cpu")
    assert made["annotations"] == json.loads(own.read_text())["annotations"]
    as_students = tmp_path / "students.json"
    pseudo_label(
        checkpoint, shapes_root / "images", as_students, config=project / "student.py", overrides={}, device="cpu"
    )
    assert made["annotations"] != json.loads(as_students.read_text())["annotations"]
    before = (project / "data" / "unlabeled.json").stat().st_mtime_ns
    go(project)
    assert (project / "data" / "unlabeled.json").stat().st_mtime_ns == before


def test_a_url_is_downloaded_once_before_anything_trains(project, trained, shapes_root, tmp_path, monkeypatch):
    monkeypatch.setenv("CSKD_CACHE", str(tmp_path / "cache"))
    with serving((trained / "best.pth").read_bytes()) as server:
        teach(project, f"{server.url}/teacher.pth", pictures=shapes_root / "images")
        go(project)
        go(project)
        assert server.asked == ["/models/teacher.pth"]
    state = json.loads((project / "work_dirs" / "distill.json").read_text())
    assert state["made"]["distilled"] == sha256(trained / "best.pth")
    assert (project / "data" / "unlabeled.json").is_file()


def test_a_path_from_the_home_folder_is_that_file(project, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(trained / "best.pth", tmp_path / "teacher.pth")
    teach(project, "~/teacher.pth")
    go(project)
    state = json.loads((project / "work_dirs" / "distill.json").read_text())
    assert state["made"] == {"distilled": sha256(trained / "best.pth")}
    (project / "work_dirs" / "distilled").mkdir()
    (project / "work_dirs" / "distilled" / "last.pth").touch()
    way = module._Way(project, None, True, None, "cpu", Console(file=io.StringIO()))
    (tmp_path / "teacher.pth").write_bytes((trained / "last.pth").read_bytes())
    with pytest.raises(TrainError, match=r"distilled was trained under another teacher than .*teacher\.pth is now"):
        way.teacher.prepare(way.state, 2)


def test_the_projects_own_teacher_is_known_by_any_way_to_it(project, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    teach(project, "~/cells/work_dirs/../work_dirs/teacher/best.pth")
    way = module._Way(project, None, True, None, "cpu", Console(file=io.StringIO()))
    assert way.teacher.own
    assert way.roles == ["teacher", "student", "distilled"]


def others(contents):
    contents["meta"]["CLASSES"] = ["bolt", *contents["meta"]["CLASSES"][1:]]


def no_weights(contents):
    contents["state_dict"] = {}


def no_config(contents):
    del contents["meta"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (others, r"data\.unlabeled: the teacher .*teacher\.pth detects bolt, .*labels are to be circle, .* --init "),
        (no_weights, r"teacher\.pth"),
        (no_config, r"teacher\.pth holds no config .*distill\.teacher\.config"),
        (None, r"the teacher's checkpoint .*teacher\.pth does not exist"),
    ],
)
def test_a_teacher_that_will_not_do_is_refused_before_anything_trains(
    change, message, project, trained, shapes_root, tmp_path
):
    if change is not None:
        contents = copy.deepcopy(torch.load(trained / "best.pth", weights_only=True))
        change(contents)
        torch.save(contents, tmp_path / "teacher.pth")
    teach(project, tmp_path / "teacher.pth", pictures=shapes_root / "images")
    with pytest.raises(TrainError, match=message):
        distill(project, device="cpu")
    assert not (project / "data" / "unlabeled.json").exists()
    assert [file.name for file in (project / "work_dirs").glob("*")] in ([], ["distill.json"])


def test_a_student_that_is_through_needs_its_teacher_no_more(project, tmp_path):
    teach(project, tmp_path / "gone.pth")
    work_dir = project / "work_dirs" / "distilled"
    work_dir.mkdir(parents=True)
    (work_dir / "result.json").write_text(json.dumps({"epochs": 2}))
    way = module._Way(project, None, True, None, "cpu", Console(file=io.StringIO()))
    way.teacher.prepare(way.state, 2)
    with pytest.raises(TrainError, match=r"gone\.pth does not exist"):
        way.teacher.prepare(way.state, 3)
