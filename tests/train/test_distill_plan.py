"""What `cskd-train distill` plans for runs that have not begun: their epochs in a budget, by costs measured on them."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from cskd_train.engine.timing import Cost
from cskd_train.errors import TrainError
from cskd_train.files.config import config_to_json
from cskd_train.project import deployed
from cskd_train.project import distill as module
from cskd_train.project.state import State

from .test_distill import write_project

COST = Cost(1.0, 6, 4.0)
BUDGET = (10 * 3 * 10 + 4 * 4 + 3 * 4) / 0.95  # ten epochs of three runs, the tests and the report


@pytest.fixture
def project(shapes_root, tmp_path, monkeypatch):
    """Twenty epochs of each; one of them takes 10 s."""
    folder = write_project(tmp_path / "cells", shapes_root)
    for name in ("teacher.py", "student.py"):
        text = (folder / name).read_text()
        (folder / name).write_text(f"{text}runner = dict(max_epochs=20)\nlr_config = dict(step=[10, 18])\n")
    monkeypatch.setattr(deployed, "SECONDS", 0.0)
    return folder


@pytest.fixture
def measured(monkeypatch):
    """The configs of the runs that are measured, in their order."""
    names = []

    def measure(options, stand_in=None):
        names.append(options.work_dir.name)
        if stand_in is not None:
            stand_in.touch()
        return COST

    monkeypatch.setattr(module, "measure", measure)
    return names


def a_way(project, budget=None, baseline=True):
    way = module._Way(project, budget, baseline, None, "cpu", Console(file=io.StringIO()))
    way._refuse_changes()
    way._check_budget()
    way._plan()
    return way


def begin(way, *roles, seconds=100.0):
    """Runs that are through, as far as a plan looks at them."""
    for role in roles:
        work_dir = way._work_dir(role)
        work_dir.root.mkdir(parents=True)
        work_dir.last.touch()
        work_dir.best.touch()
        work_dir.config.write_text(json.dumps(config_to_json(module.config_to_data(way.configs[role]))))
        work_dir.result.write_text(json.dumps({"seconds": seconds, "epochs": way._epochs(role)}))


@pytest.mark.parametrize("first", ["distilled", "student"])
@pytest.mark.parametrize("budget", [BUDGET, None])
def test_a_student_that_is_trained_later_has_the_epochs_of_the_other(first, budget, project, measured):
    """Also where the first call left one of them out."""
    way = a_way(project, budget, baseline=first != "distilled")
    begin(way, "teacher", first)
    chosen = way._epochs(first)
    assert (chosen < 20) == (budget is not None)
    later = a_way(project, baseline=first == "distilled")
    other = {"distilled": "student", "student": "distilled"}[first]
    assert later._epochs(other) == chosen
    assert module.budgets.schedule(later.configs[other], later._epochs(other)).get("runner.max_epochs", 20) == chosen
    assert State.read(project / "work_dirs" / "distill.json").epochs == later.state.epochs


def test_epochs_planned_before_the_other_student_began_do_not_count(project, measured):
    """Both were planned; then one was trained alone, in more epochs, as there was more time for it."""
    begin(a_way(project, BUDGET), "teacher", seconds=10.0)
    alone = a_way(project, baseline=False)
    begin(alone, "distilled")
    assert alone._epochs("distilled") > 10
    assert a_way(project)._epochs("student") == alone._epochs("distilled")


def test_students_that_were_to_have_other_epochs_keep_the_ratio(project, measured):
    path = project / "distilled.py"
    path.write_text(f"{path.read_text()}runner = dict(max_epochs=10)\n")
    way = a_way(project, BUDGET / 2, baseline=False)
    begin(way, "teacher", "distilled")
    assert a_way(project)._epochs("student") == 2 * way._epochs("distilled") < 20


def test_a_budget_is_that_of_a_student_that_this_call_leaves_out(project, measured):
    begin(a_way(project, BUDGET), "teacher", "student")
    with pytest.raises(TrainError, match=r"were begun with a budget of .*go on without --budget"):
        a_way(project, 2 * BUDGET, baseline=False)


def raise_epochs(project, files, number):
    for name in files:
        text = (project / name).read_text()
        (project / name).write_text(text.replace("max_epochs=20", f"max_epochs={number}"))


@pytest.mark.parametrize("budget", [BUDGET, 3 * BUDGET])
@pytest.mark.parametrize("files", [["student.py"], ["teacher.py", "student.py"]])
def test_after_a_budget_more_epochs_of_the_configs_are_trained(files, budget, project, measured):
    """Also where the budget held all of them; the runs of the other config stay as they were."""
    way = a_way(project, budget)
    chosen = way._epochs("student")
    assert (chosen == 20) == (budget > BUDGET)
    begin(way, "teacher", "student", "distilled")
    raise_epochs(project, files, 40)
    later = a_way(project)
    longer = {"teacher"} & {file.removesuffix(".py") for file in files} | {"student", "distilled"}
    assert {role: later._epochs(role) for role in later.roles} == {
        role: 40 if role in longer else chosen for role in later.roles
    }
    said = later.console.file.getvalue()
    assert f"student alone: max_epochs has changed, {chosen} epochs become 40" in said
    assert ("teacher: max_epochs has changed" in said) == ("teacher.py" in files)
    assert a_way(project)._epochs("distilled") == 40


def test_epochs_are_chosen_anew_where_max_epochs_has_changed_before_the_run(project, measured):
    way = a_way(project, BUDGET)
    chosen = {role: way._epochs(role) for role in way.roles}
    raise_epochs(project, ["teacher.py", "student.py"], 12)
    way = a_way(project, BUDGET)
    assert {role: way._epochs(role) for role in way.roles} == chosen
    assert set(way.state.planned.values()) == {12}
    assert "has changed" not in way.console.file.getvalue()


def test_another_budget_of_finished_runs_is_refused_with_the_way_to_more_epochs(project, measured):
    begin(a_way(project, BUDGET), "teacher", "student", "distilled")
    with pytest.raises(TrainError, match=r"For more epochs of these runs raise max_epochs in teacher\.py, student\.py"):
        a_way(project, 2 * BUDGET)


def test_a_project_that_was_begun_by_run_notices_what_changes_from_the_first_call_on(project, measured):
    """Its data, and where it lies."""
    begin(module._Way(project, None, True, None, "cpu", Console(quiet=True)), "teacher")
    a_way(project)
    moved = project.rename(project.with_name("moved"))
    a_way(moved)
    data = moved / "data" / "train.json"
    data.write_text(f" {data.read_text()}")
    with pytest.raises(TrainError, match=r"data/train\.json has changed since .*teacher was trained on it"):
        a_way(moved)


def test_what_a_run_costs_is_measured_anew_when_its_config_has_changed(project, measured):
    """The advice that was followed: the student's settings were changed, and its runs removed."""
    begin(a_way(project, BUDGET), "teacher")
    assert measured == ["teacher", "student", "distilled"]
    a_way(project)
    assert len(measured) == 3
    path = project / "distilled.py"
    path.write_text(f"{path.read_text()}accumulate = 2\n")
    way = a_way(project)
    assert measured[3:] == ["student", "distilled"]
    assert sorted(way.state.costs) == ["distilled", "student", "teacher"]  # the teacher's time goes by them
    a_way(project)
    assert len(measured) == 5


def test_on_another_device_the_costs_are_others(project, measured):
    begin(a_way(project, BUDGET), "teacher")
    way = module._Way(project, None, True, None, "auto", Console(file=io.StringIO()))
    way._plan()
    assert measured[3:] == ["student", "distilled"]


def test_a_teacher_under_way_without_a_checkpoint_is_stood_in_for(project, measured):
    way = a_way(project, BUDGET)
    begin(way, "teacher")
    for name in ("best", "result"):
        getattr(way._work_dir("teacher"), name).unlink()
    path = project / "distilled.py"
    path.write_text(f"{path.read_text()}accumulate = 2\n")
    a_way(project)
    assert measured[3:] == ["teacher", "student", "distilled"]
