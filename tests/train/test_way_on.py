"""The command that goes on with a stopped run is the whole one, whichever door the run came through."""

from __future__ import annotations

import io
import shlex

import numpy as np
import pytest
from rich.console import Console

from cskd_train import api
from cskd_train.engine.loader import Position
from cskd_train.engine.prepare import RunOptions, way_on
from cskd_train.files.overrides import assignments, parse_overrides
from cskd_train.project import distill as module
from cskd_train.project.budget import parse_duration, written
from cskd_train.results import RunResult, prolonged, without_teacher

from .test_distill import write_project
from .test_results import RESULT

SETTINGS = {
    "optimizer.lr": np.float64(0.001),
    "image_scale": (96, 64),
    "classes": ["cup", "a b"],
    "data_root": "my data",
    "distill.teacher.checkpoint": "t.pth",
    "runner.max_epochs": 5,
    "ema": {"decay": 0.9},
    "load_from": None,
    "data.skip_broken": True,
    "data.train.ann_file": "2007",
}


def test_settings_are_written_as_they_are_read():
    words = assignments(SETTINGS)
    assert words[::2] == ["--set"] * len(SETTINGS)
    found = parse_overrides(words[1::2])
    assert found == SETTINGS
    assert all(type(found[key]) is type(value) for key, value in SETTINGS.items() if key != "optimizer.lr")


@pytest.fixture
def called(monkeypatch):
    """The options that `train` runs with."""
    found = []
    monkeypatch.setattr(api, "run", lambda options, console: found.append(options))
    return found


def test_a_run_from_python_is_gone_on_with_by_its_whole_command(called, tmp_path):
    api.train("mine.py", tmp_path / "w", settings={"optimizer.lr": 0.1}, seed=3, checkpoint_every=10, device="cpu")
    way = way_on(called[0], Position(epoch=1, step=7))
    assert way.endswith(
        f"Go on with: cskd-train run mine.py --work-dir {tmp_path / 'w'} --seed 3 --checkpoint-every 10 --device cpu "
        "--set optimizer.lr=0.1 --resume"
    )
    api.train("mine.py", overwrite=True)
    assert shlex.join(called[1].words) == "cskd-train run mine.py --work-dir work_dirs/mine"


def test_what_was_typed_is_what_goes_on(tmp_path):
    typed = "cskd-train run c.py --lr 0.1 --overwrite"
    options = RunOptions("c.py", tmp_path, overrides={"optimizer.lr": 0.1}, device="cpu", command=typed)
    assert shlex.join(options.words) == "cskd-train run c.py --lr 0.1"


def test_the_commands_that_a_run_from_python_offers_have_its_settings(called, tmp_path):
    teacher = {"distill.teacher.checkpoint": "t.pth"}
    api.train("mine.py", "w", settings={"runner.max_epochs": 4, "optimizer.lr": 0.1, **teacher}, seed=3)
    result = RunResult(**{**RESULT.to_dict(), "work_dir": "w", "epochs": 4, "command": shlex.join(called[0].words)})
    begin = "cskd-train run mine.py --work-dir w --seed 3 --set optimizer.lr=0.1"
    named = shlex.quote("distill.teacher.checkpoint='t.pth'")
    assert prolonged(result) == f"{begin} --set {named} --resume --epochs 6"
    assert without_teacher(result) == (
        "cskd-train run mine.py --seed 3 --set runner.max_epochs=4 --set optimizer.lr=0.1 --set distill=None "
        "--work-dir w_alone"
    )


@pytest.mark.parametrize(
    ("budget", "baseline", "gpus", "device", "words"),
    [
        (None, True, None, "auto", ""),
        (7200.0, False, 2, "cpu", " --no-baseline --gpus 2 --device cpu --budget 2h"),
        (90, True, None, "cuda", " --device cuda --budget 1m30s"),
    ],
)
def test_a_project_is_gone_on_with_by_its_whole_command(budget, baseline, gpus, device, words, shapes_root, tmp_path):
    folder = write_project(tmp_path / "cells", shapes_root)
    way = module._Way(folder, budget, baseline, gpus, device, Console(file=io.StringIO()))
    for role in way.roles:
        assert way_on(way._options(role, {}), None).endswith(f"Go on with: cskd-train distill {folder}{words}")


@pytest.mark.parametrize("seconds", [1, 59, 60, 3600, 5400, 7261, 86400.0, 0.5, 186.31578947368422])
def test_a_budget_is_written_as_it_is_read(seconds):
    assert parse_duration(written(seconds)) == seconds
