"""Runs are of one recipe where as many images make a step, whatever number of processes has shared them."""

from __future__ import annotations

import json

import pytest

from cskd_train.engine import preflight
from cskd_train.tables.work_dirs import find_in_work_dirs, load_run

from .test_table import CONFIG

TEACHER = {"teacher": {"checkpoint": "nowhere/best.pth"}}


@pytest.fixture
def write(tmp_path):
    """`write("name", 0.2, processes=8, **config)`: a finished run; 0 processes of a file that does not say."""

    def run(name, precision, processes=1, data=None, **config):
        folder = tmp_path / name
        folder.mkdir()
        metrics = {"bbox_mAP": precision}
        result = {"config": "c.py", "work_dir": str(folder), "seed": 0, "best": metrics, "last": metrics}
        result |= {"started": "2026", "images": {"val": 6}, **({"processes": processes} if processes else {})}
        (folder / "result.json").write_text(json.dumps(result))
        config = {**CONFIG, "data": {**CONFIG["data"], **(data or {})}, **config}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return run


def gains(folder):
    return [row.gain and row.gain.mean for row in find_in_work_dirs([folder], print)]


@pytest.mark.parametrize(
    ("alone", "distilled", "paired"),
    [
        ({"processes": 1}, {"processes": 8}, False),
        ({"processes": 0}, {"processes": 8}, False),
        ({"processes": 2}, {"processes": 2, "accumulate": 4}, False),
        ({"processes": 0}, {"processes": 1}, True),
        ({"processes": 8}, {"processes": 8}, True),
        ({"processes": 1, "accumulate": 8}, {"processes": 8}, True),
        ({"processes": 2, "accumulate": 4}, {"processes": 4, "accumulate": 2}, True),
    ],
)
def test_runs_are_paired_where_as_many_images_make_a_step(write, tmp_path, alone, distilled, paired):
    write("alone", 0.20, **alone)
    write("distilled", 0.25, distill=TEACHER, **distilled)
    assert gains(tmp_path) == ([pytest.approx(5.0)] if paired else [None, None])


def test_the_student_alone_beside_a_run_has_as_many_images_a_step(write, tmp_path):
    write("alone", 0.20, processes=2)
    config = {**CONFIG, "distill": TEACHER}
    found = {size: preflight._find(tmp_path / "w", config, 0, 6, size) for size in (1, 2, 4)}
    assert {size: run and run.folder for size, run in found.items()} == {1: None, 2: tmp_path / "alone", 4: None}
    assert preflight._find(tmp_path / "w", {**config, "accumulate": 2}, 0, 6, 1).processes == 2


def test_a_part_of_the_data_that_is_none_is_one_that_is_not_there(write, tmp_path):
    alone = write("alone", 0.20, data={"unlabeled": None})
    distilled = write("distilled", 0.25, data={"unlabeled": {"ann_file": "pseudo.json"}}, distill=TEACHER)
    assert gains(tmp_path) == [pytest.approx(5.0)]
    assert load_run(alone).student == load_run(distilled).student
