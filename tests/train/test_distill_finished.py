"""A project whose runs are through, without the `last.pth` that they would go on from, and without another teacher."""

from __future__ import annotations

import io
import json
import os

import pytest
from rich.console import Console

from cskd_train.engine.run import run
from cskd_train.errors import TrainError
from cskd_train.files.config import config_to_data, config_to_json, load_config
from cskd_train.project import distill as module
from cskd_train.project.state import data_hashes

from .runs import train
from .test_distill import write_project
from .test_results import RESULT


@pytest.fixture
def finished(shapes_root, tmp_path):
    """Three runs of two epochs with `result.json` and `best.pth`, chosen in a budget of an hour."""
    folder = write_project(tmp_path / "cells", shapes_root)
    for role in module.ROLES:
        work_dir = folder / "work_dirs" / role
        work_dir.mkdir(parents=True)
        config = config_to_data(load_config(folder / f"{role}.py"))
        (work_dir / "config.json").write_text(json.dumps(config_to_json(config)))
        result = {**RESULT.to_dict(), "config": f"{role}.py", "epochs": 2, "images": {"val": 6}}
        (work_dir / "result.json").write_text(json.dumps(result))
        (work_dir / "best.pth").write_bytes(role.encode())
    way = way_of(folder)
    way.state.epochs, way.state.budget = dict.fromkeys(module.ROLES, 2), 3600.0
    way.state.root, way.state.data = os.path.abspath(folder), data_hashes(folder, way.labels)
    way.state.write()
    return folder


def way_of(folder, budget=None):
    return module._Way(folder, budget, True, None, "cpu", Console(file=io.StringIO()))


def test_a_project_that_is_through_is_done_without_its_last_checkpoints(finished):
    way = way_of(finished)
    before = (dict(way.state.epochs), way.state.budget, dict(way.state.data))
    way._refuse_changes()
    way._check_budget()
    assert (way.state.epochs, way.state.budget, way.state.data) == before
    assert way._not_begun() == []
    way._plan()
    for role in module.ROLES:
        assert run(way._options(role, {}), way.console).config == f"{role}.py"


def test_a_run_that_is_through_without_its_best_checkpoint_is_named(finished):
    root = finished / "work_dirs" / "teacher"
    (root / "best.pth").rename(root / "last.pth")
    with pytest.raises(TrainError, match=r"teacher/best.pth is gone: put it back, or remove .*teacher to train"):
        way_of(finished)._train("teacher")


def test_a_project_that_is_through_keeps_to_its_data_and_budget_without_its_last_checkpoints(finished):
    with pytest.raises(TrainError, match="were begun with a budget of 1 h 00 min"):
        way_of(finished, 7200.0)._check_budget()
    (finished / "data" / "train.json").write_text("{}")
    with pytest.raises(TrainError, match=r"data/train\.json has changed since .*teacher was trained on it"):
        way_of(finished)._refuse_changes()


def test_longer_runs_without_their_last_checkpoints_are_refused_with_what_to_remove(finished):
    error, _ = train(way_of(finished)._options("student", {"runner.max_epochs": 3}))
    assert isinstance(error, TrainError)
    folder = finished / "work_dirs" / "student"
    assert f"{folder} has no last.pth to go on from, though it holds best.pth. Put last.pth back, or remove" in str(
        error
    )


def test_a_student_that_is_through_is_told_again_when_its_teacher_is_gone(finished, tmp_path):
    path = finished / "distilled.py"
    text = path.read_text().replace("{{ fileDirname }}/work_dirs/teacher/best.pth", str(tmp_path / "gone.pth"))
    path.write_text(text)
    way = way_of(finished)
    way.teacher.prepare(way.state, 2)
    assert run(way._options("distilled", {}), way.console).config == "distilled.py"
    error, _ = train(way._options("distilled", {"runner.max_epochs": 3}))
    assert isinstance(error, TrainError)


def test_another_teacher_is_refused_without_the_students_last_checkpoint(finished):
    way = way_of(finished)
    way.teacher.taken(way.state, way.teacher.best)
    way.teacher.best.write_bytes(b"another")
    with pytest.raises(TrainError, match="distilled was trained under another teacher"):
        way.teacher.taken(way.state, way.teacher.best)
