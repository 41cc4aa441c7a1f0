"""What `cskd-train distill` makes of its runs: once, and again where anything in it changes; a user's file stays."""

from __future__ import annotations

import io
import json
import shutil

import pytest
from mmcv import Config
from rich.console import Console

from cskd_train.errors import TrainError
from cskd_train.files.checkpoints import sha256
from cskd_train.project import deployed, shown
from cskd_train.project import distill as module
from cskd_train.project import teacher as module_of_teacher
from cskd_train.project.state import State

from .test_distill import write_project


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=300)


@pytest.fixture
def state(tmp_path):
    return State.read(tmp_path / "distill.json")


def making(state, file, inputs, console, text="made"):
    """Whether the file was made."""
    made = []
    state.make("product", file, inputs, lambda: made.append(file.write_text(text)), console)
    return bool(made)


def test_a_product_is_made_again_where_one_of_its_inputs_has_changed(state, tmp_path, console):
    file = tmp_path / "page.html"
    assert making(state, file, ["a", 1], console)
    assert not making(state, file, ["a", 1], console)
    assert not making(State.read(state.file), file, ["a", 1], console)
    assert making(state, file, ["a", 2], console)
    file.unlink()
    assert making(state, file, ["a", 2], console)
    assert [one.name for one in tmp_path.glob("page*")] == ["page.html"]
    assert console.file.getvalue() == ""


@pytest.mark.parametrize("begun", [True, False])
def test_a_file_that_was_not_made_here_is_kept_under_another_name(begun, state, tmp_path, console):
    """Of the same name, before the first call or in the place of what was made."""
    file = tmp_path / "page.html"
    if begun:
        making(state, file, [1], console)
    for number in (1, 2):
        file.write_text(f"mine {number}")
        assert making(state, file, [begun, number], console)
        assert (
            f"{file} was not made by this command, or has changed since: it is page.before" in console.file.getvalue()
        )
    kept = {one.name: one.read_text() for one in tmp_path.glob("page*")}
    assert kept == {"page.html": "made", "page.before.html": "mine 1", "page.before2.html": "mine 2"}


@pytest.fixture
def files(tmp_path):
    """Checkpoints of three detectors, by what they are called."""
    found = {name: tmp_path / f"{name}.pth" for name in ("teacher", "student", "distilled")}
    for name, file in found.items():
        file.write_text(name)
    return found


@pytest.mark.parametrize("changed", ["teacher", "student", "distilled", "images", "one fewer"])
def test_picture_and_report_are_made_again_for_every_detector_and_image(
    changed, files, state, tmp_path, console, monkeypatch
):
    made = []
    monkeypatch.setattr(shown, "draw_side_by_side", lambda _, out, **__: made.append(out.name) or out.touch())
    monkeypatch.setattr(shown, "write_report", lambda root, **_: made.append("page") or (root / "report.html").touch())

    def show(inputs):
        shown.picture(tmp_path, state, files, {}, inputs, console)
        shown.report(tmp_path, state, files, inputs, "cpu", console)

    show(["images"])
    show(["images"])
    assert made == ["detections.png", "page"]
    if changed == "one fewer":
        del files["student"]
    elif changed != "images":
        files[changed].write_text("trained anew")
    show(["others" if changed == "images" else "images"])
    assert made == ["detections.png", "page"] * 2


def test_a_file_that_was_exported_otherwise_is_evaluated_and_timed_anew(files, state, tmp_path, console, monkeypatch):
    made = []
    monkeypatch.setattr(deployed, "export", lambda _, model, __: made.append("export") or model.touch())
    for name in ("evaluate", "bench"):
        monkeypatch.setattr(
            deployed,
            name,
            lambda of, *_, name=name: (
                made.append(name) or (of.eval if name == "evaluate" else of.bench).write_text("{}")
            ),
        )
    (annotations := tmp_path / "test.json").write_text("[]")
    of, test = deployed.Files(tmp_path / "student.onnx", tmp_path), Config({"ann_file": str(annotations)})
    for expected in (["export", "evaluate", "bench"], []):
        of.made(state, files["distilled"], test, console)
        assert made == expected
        made.clear()
    of.model.write_text("of 8 bits")
    of.made(state, files["distilled"], test, console)
    assert made == ["evaluate", "bench"]
    made.clear()
    annotations.write_text("[1]")
    of.made(state, files["distilled"], test, console)
    assert made == ["evaluate", "bench"]


@pytest.fixture
def project(shapes_root, tmp_path, monkeypatch):
    """With two pictures without labels and a teacher, a file of no weights; its labels are its name."""
    folder = write_project(tmp_path / "cells", shapes_root)
    (tmp_path / "pictures" / "more").mkdir(parents=True)
    for name, file in zip(("a.jpg", "more/b.jpg"), sorted((shapes_root / "images").iterdir()), strict=False):
        shutil.copy(file, tmp_path / "pictures" / name)
    path = folder / "distilled.py"
    images = repr(str(tmp_path / "pictures"))
    path.write_text(f"{path.read_text()}data = dict(unlabeled=dict(ann_file='unlabeled.json', images={images}))\n")
    (folder / "work_dirs" / "teacher").mkdir(parents=True)
    (folder / "work_dirs" / "teacher" / "best.pth").write_text("teacher")
    monkeypatch.setattr(
        module_of_teacher, "pseudo_label", lambda teacher, _, out, **__: out.write_text(f"by {teacher.read_text()}")
    )
    return folder


def label(project):
    """What a call does about labels; gives them, and what it says."""
    console = Console(file=io.StringIO(), width=300)
    way = module._Way(project, None, True, None, "cpu", console)
    way.teacher.taken(way.state, way.teacher.best)
    return (project / "data" / "unlabeled.json").read_text(), console.file.getvalue()


def begin(project):
    (project / "work_dirs" / "distilled").mkdir()
    (project / "work_dirs" / "distilled" / "last.pth").touch()


@pytest.mark.parametrize("when", ["before the first call", "after it"])
def test_labels_that_the_user_has_made_are_trained_on_as_they_are(when, project):
    labels = project / "data" / "unlabeled.json"
    if when == "after it":
        label(project)
    labels.write_text("mine")
    for _ in range(2):
        found, said = label(project)
        assert found == "mine"
        assert f"note: {labels} was not made by this command, or has changed since: it is trained on as it is" in said
    labels.unlink()
    assert label(project)[0] == "by teacher"
    assert [file.name for file in labels.parent.glob("unlabeled*")] == ["unlabeled.json"]


def test_pictures_that_are_added_are_labelled_until_the_student_has_begun(project, tmp_path):
    labels = project / "data" / "unlabeled.json"
    label(project)
    made = labels.stat().st_mtime_ns
    label(project)
    assert labels.stat().st_mtime_ns == made
    shutil.copy(tmp_path / "pictures" / "a.jpg", tmp_path / "pictures" / "more" / "c.jpg")
    label(project)
    assert labels.stat().st_mtime_ns > made
    begin(project)
    made = labels.stat().st_mtime_ns
    assert "note" not in label(project)[1]
    (tmp_path / "pictures" / "a.jpg").unlink()
    assert f"pictures has other pictures than {project}/work_dirs/distilled was trained on" in label(project)[1]
    assert labels.stat().st_mtime_ns == made


def test_labels_that_have_changed_since_the_student_began_are_refused(project):
    label(project)
    begin(project)
    (project / "data" / "unlabeled.json").write_text("mine")
    with pytest.raises(TrainError, match=r"unlabeled\.json has changed since .*distilled was trained on it: remove "):
        label(project)
    shutil.rmtree(project / "work_dirs" / "distilled")
    assert label(project)[0] == "mine"
    state = json.loads((project / "work_dirs" / "distill.json").read_text())
    assert state["made"]["labels"] == sha256(project / "data" / "unlabeled.json")
