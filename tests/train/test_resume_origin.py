"""`--resume` goes on with the classes, the annotations and the teacher that a run had, wherever their files lie."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cskd_data import read
from cskd_train.engine.prepare import RunOptions
from cskd_train.engine.resume import Resumption
from cskd_train.engine.signals import Interrupted
from cskd_train.errors import TrainError
from cskd_train.files import checkpoints
from cskd_train.mm.data_sources import Source

from .runs import TINY, train

INTAKE = Path(__file__).parents[1] / "data" / "intake"
STEPS = 6  # of the whole run


def options(folder, **settings):
    """Of a distilled run with pictures without labels, all of whose files lie in the folder."""
    beside = {"ann_file": str(folder / "data" / "unlabeled.json"), "img_prefix": str(folder / "data" / "images")}
    teacher = {"distill.teacher.checkpoint": str(folder / "teacher.pth")}
    settings = {"data_root": str(folder / "data"), "data.unlabeled": beside, **teacher, **settings}
    return RunOptions(str(folder / "distilled.py"), folder / "w", overrides=settings, device="cpu")


@pytest.fixture(scope="module")
def stopped(shapes_root, trained, tmp_path_factory):
    """A folder with a run that was stopped after its second step, its data and its teacher. Not to be changed."""
    folder = tmp_path_factory.mktemp("origin") / "first"
    shutil.copytree(shapes_root, folder / "data")
    labels = json.loads((folder / "data" / "annotations" / "train.json").read_text())
    for one in labels["annotations"]:
        one["score"] = 0.9
    (folder / "data" / "unlabeled.json").write_text(json.dumps(labels))
    shutil.copy(trained / "best.pth", folder / "teacher.pth")
    (folder / "distilled.py").write_text(
        f"_base_ = [{str(TINY)!r}]\ndata = dict(workers_per_gpu=0)\nrunner = dict(max_epochs=1)\n"
        "custom_hooks = [dict(type='StopAfter')]\n"
        "distill = dict(teacher=dict(checkpoint='teacher.pth'), pyramid=dict(full=(1, 0.5)))\n"
    )
    assert isinstance(train(options(folder), stop_after=1)[0], Interrupted)
    return folder


@pytest.fixture
def moved(stopped, tmp_path):
    """The same in another place, free to be changed."""
    return shutil.copytree(stopped, tmp_path / "second")


def relabel(file):
    data = json.loads(file.read_text())
    data["annotations"][0]["bbox"][2] += 1
    file.write_text(json.dumps(data))


def train_anew(file):
    contents = checkpoints.read(file)
    first = next(iter(contents["state_dict"]))
    contents["state_dict"][first] = contents["state_dict"][first] + 1
    torch.save(contents, file)


def refused(folder, **settings):
    """The message of a resumption that is refused, and changes nothing."""
    before = {path: path.read_bytes() for path in (folder / "w").rglob("*") if path.is_file()}
    error, _ = train(replace(options(folder, **settings), resume=True))
    assert isinstance(error, TrainError)
    assert {path: path.read_bytes() for path in (folder / "w").rglob("*") if path.is_file()} == before
    return str(error)


def test_a_run_goes_on_where_its_data_and_its_teacher_have_been_moved(stopped, moved):
    hidden = stopped.rename(stopped.with_name("hidden"))
    try:
        result, printed = train(replace(options(moved), resume=True))
    finally:
        hidden.rename(stopped)
    assert result.iterations == STEPS
    assert f"data_root: {stopped / 'data'} -> {moved / 'data'}" in printed


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("annotations/train.json", "data.train"),
        ("annotations/val.json", "data.val"),
        ("unlabeled.json", "data.unlabeled"),
    ],
)
def test_a_run_does_not_go_on_with_other_annotations(stopped, moved, file, split):
    relabel(moved / "data" / file)
    message = refused(moved)
    assert f"was trained with other annotations ({split}): they were {stopped / 'data' / file} (sha256 " in message
    assert f"and are {moved / 'data' / file} (sha256 " in message
    assert "Put the former ones back, or start a new run in another --work-dir" in message


def test_a_run_does_not_go_on_under_another_teacher(stopped, moved):
    train_anew(moved / "teacher.pth")
    message = refused(moved)
    assert f"was trained under the teacher {stopped / 'teacher.pth'} (sha256 " in message
    assert f"and would go on under {moved / 'teacher.pth'} (sha256 " in message


def test_a_distilled_run_does_not_go_on_without_its_teacher(moved):
    assert "and would go on without a teacher" in refused(moved, **{"distill": None})


def test_a_run_does_not_go_on_with_its_classes_in_another_order(moved):
    classes = Resumption(moved / "w" / "last.pth").config["classes"]
    message = refused(moved, classes=[*reversed(classes)])
    assert (
        f"the same classes in another order: {', '.join(classes)}; by now they are {', '.join(classes[::-1])}"
        in message
    )
    assert "Set `classes` to the former ones" in message


def test_a_file_that_does_not_say_what_the_run_learnt_from_is_gone_on_with(moved):
    last = checkpoints.read(moved / "w" / "last.pth")
    del last["origin"]
    torch.save(last, moved / "w" / "last.pth")
    relabel(moved / "data" / "annotations" / "train.json")
    assert train(replace(options(moved), resume=True))[0].iterations == STEPS


@pytest.mark.parametrize(
    ("kind", "label", "old", "new"),
    [
        ("yolo_layout", "labels/train/photo_1.txt", "0.3125", "0.3000"),
        ("voc_names_with_space", "Annotations/IMG 1.xml", "<xmin>", "<xmin>1"),
    ],
)
def test_the_annotations_of_a_folder_are_told_by_content(kind, label, old, new, tmp_path):
    """A set that was moved is the same, whatever lies beside it; with another box it is not."""
    first, second = (shutil.copytree(INTAKE / kind, tmp_path / name) for name in ("first", "second"))
    classes = read(first).classes

    def digest(root):
        return Source(str(root), None, classes).sha256()

    (second / "notes.txt").write_text("moved")
    assert digest(first) == digest(second)
    text = (second / label).read_text()
    (second / label).write_text(text.replace(old, new, 1))
    assert text.count(old)
    assert digest(first) != digest(second)
