"""`cskd-train distill`: the whole way of a project, stopped and gone on with, in a budget, moved, and refused."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import cskd_train
from cskd_train.engine.signals import Interrupted
from cskd_train.engine.step import TrainStep
from cskd_train.engine.timing import Cost
from cskd_train.errors import TrainError
from cskd_train.files.checkpoints import load_checkpoint
from cskd_train.project import deployed, shown
from cskd_train.project import distill as module
from cskd_train.project.budget import duration, fitting_epochs, labelling, parse_duration, slowdown
from cskd_train.project.distill import distill
from cskd_train.project.outcome import Distilled, Row
from cskd_train.project.state import data_hashes

from .reported import Page

TINY = Path(__file__).parent / "tiny_retinanet.py"
TERMS = "pyramid=dict(full=(1, 0.5), roi=(1, 0.5)), tower=dict(cls=(1, 0.5)), prediction=(1, 0.5), assistant=True"


def write_project(folder, shapes_root):
    """Upright images for training, and other ones for the test; two epochs of six steps; the teacher is wider.

    Images lie in the folders of their splits, and each annotation file says where from, as `new` writes a YOLO set.
    """
    (folder / "data").mkdir(parents=True)
    for name, split in {"train": "train", "val": "val", "test": "val"}.items():
        data = json.loads((shapes_root / "annotations" / f"{split}.json").read_text())
        if name == "test":
            data["images"] = data["images"][:4]
            kept = {one["id"] for one in data["images"]}
            data["annotations"] = [one for one in data["annotations"] if one["image_id"] in kept]
        (folder / "photos" / name / "images").mkdir(parents=True)
        for image in data["images"]:
            file = f"{name}/images/{image['file_name']}"
            shutil.copy(shapes_root / "images" / image["file_name"], folder / "photos" / file)
            image["file_name"] = file
        data["info"] = {**data.get("info", {}), "image_root": "../photos"}
        (folder / "data" / f"{name}.json").write_text(json.dumps(data))
    sources = ", ".join(f"{name}=dict(ann_file='{name}.json', img_prefix=None)" for name in ("train", "val", "test"))
    (folder / "student.py").write_text(
        f"_base_ = [{str(TINY)!r}]\ndata_root = '{{{{ fileDirname }}}}/data'\n"
        f"data = dict(samples_per_gpu=2, workers_per_gpu=0, {sources})\n"
    )
    wide = "backbone=dict(base_channels=24), neck=dict(in_channels=[24, 48, 96, 192])"
    (folder / "teacher.py").write_text(f"_base_ = ['student.py']\nmodel = dict({wide})\n")
    teacher = "teacher=dict(checkpoint='{{ fileDirname }}/work_dirs/teacher/best.pth')"
    (folder / "distilled.py").write_text(f"_base_ = ['student.py']\ndistill = dict({teacher}, {TERMS})\n")
    return folder


@pytest.fixture(scope="module")
def whole(shapes_root, tmp_path_factory):
    """A project that went the whole way, with what came of it. Not to be changed."""
    folder = write_project(tmp_path_factory.mktemp("whole") / "cells", shapes_root)
    return folder, distill(folder)


@pytest.fixture
def project(whole, tmp_path):
    """The same project before its first call, free to be changed."""
    folder = shutil.copytree(whole[0], tmp_path / "cells", ignore=shutil.ignore_patterns("work_dirs", "report*"))
    for name in ("student.onnx", "detections.png"):
        (folder / name).unlink()
    return folder


@pytest.fixture
def done(whole, tmp_path):
    """The same project after it, free to be changed."""
    return shutil.copytree(whole[0], tmp_path / "done")


@pytest.fixture
def no_deploy(monkeypatch):
    """Nothing after the test split: no file is exported, and the report is empty."""
    monkeypatch.setattr(deployed, "installed", lambda: False)
    monkeypatch.setattr(shown, "write_report", lambda folder, **_: (folder / "report.html").touch())


def files_of(folder):
    return {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in folder.rglob("*") if file.is_file()}


def test_the_table_has_what_was_measured(whole):
    folder, outcome = whole
    assert [row.role for row in outcome.rows] == ["teacher", "student", "distilled"]
    for row in outcome.rows:
        work_dir = folder / "work_dirs" / row.role
        result, test = (json.loads((work_dir / name).read_text()) for name in ("result.json", "test.json"))
        assert (row.epochs, row.seconds, row.val) == (2, result["seconds"], result["best"])
        assert row.test == test["metrics"]
        assert test["images"] == outcome.test_images == 4
        assert test["checkpoint"] == load_checkpoint(work_dir / "best.pth").sha256
    evaluated = json.loads((folder / "work_dirs/distilled/eval.json").read_text())
    assert outcome.file["metrics"] == evaluated["metrics"]
    assert evaluated["drop_points"] == outcome.file["drop_points"] == pytest.approx(0, abs=0.05)
    assert [one["backend"] for one in outcome.file["latency"]] == ["onnxruntime", "pytorch"]
    text = str(outcome)
    assert "On 4 test images" in text
    assert f"{outcome.gain:+.1f} points" in text
    for file in outcome.files:
        assert Path(file).is_file(), file
        assert file in text
    assert not outcome.test_is_val


def test_a_page_of_all_three_lies_in_the_project_and_the_next_command_is_its_own(whole):
    folder, outcome = whole
    page = Page(folder / "report.html")
    names = ["teacher", "student alone", "student distilled"]
    assert [*page.table("Overview")] == [*page.table("AP of each class")["circle"]] == names
    assert [*page.table("Exported forms")]
    assert outcome.report == outcome.files[-1] == str(folder / "report.html")
    assert str(outcome).endswith(f"  cskd-train report {folder}")
    assert f"Next, open {folder / 'report.html'}:" in str(outcome)
    without = str(replace(outcome, report=None))
    assert without.endswith(f"  cskd-train report {folder}")
    assert "Next, open" not in without


def test_a_report_that_fails_is_a_warning_and_the_next_call_makes_it(done, no_deploy, command_line, monkeypatch):
    def failing(*_, **__):
        raise ValueError("no font")

    monkeypatch.setattr(shown, "write_report", failing)
    code, out, err = command_line("distill", done)  # without the file that the old page shows
    assert code == 0
    assert "warning: no report was written: ValueError: no font\n" in err
    assert out.endswith(f"  cskd-train report {done}\n")
    assert "Next, open" not in out
    assert not (done / "report.html").exists()
    monkeypatch.undo()
    monkeypatch.setattr(deployed, "installed", lambda: False)
    assert distill(done).report == str(done / "report.html")
    assert [*Page(done / "report.html").table("Overview")] == ["teacher", "student alone", "student distilled"]


def test_a_signal_in_the_report_leaves_no_half_of_it(done, monkeypatch):
    """The report takes a signal for a detector that cannot be looked at."""
    write = shown.write_report

    def stopped(*arguments, **options):
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
        return write(*arguments, **{**options, "images": 0})

    (done / "report.html").unlink()
    monkeypatch.setattr(shown, "write_report", stopped)
    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        distill(done)
    assert not (done / "report.html").exists()
    assert (done / "detections.png").exists()


def test_a_second_call_makes_nothing_again(whole):
    folder, outcome = whole
    before = files_of(folder)
    again = distill(folder)
    assert again == outcome
    assert {file.name for file, at in files_of(folder).items() if before.get(file) != at} <= {"distill.json"}


def test_stopped_and_gone_on_with_it_comes_to_the_same(whole, project, no_deploy, monkeypatch):
    """A signal in the middle of the student: its step is kept, and the next call gives the undisturbed weights."""
    step, count = TrainStep.__call__, iter(range(1000))

    def stopping(self, *arguments):
        if next(count) == 12 + 8:  # of the teacher, and of the student in its second epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)

    monkeypatch.setattr(module, "measure", lambda *_: Cost(1.0, 6, 1.0))
    monkeypatch.setattr(TrainStep, "__call__", stopping)
    with pytest.raises(Interrupted, match=rf"step 10 is saved in .*student.*Go on with: cskd-train distill {project}$"):
        distill(project)
    outcome = distill(project)
    assert [row.test for row in outcome.rows] == [row.test for row in whole[1].rows]
    assert outcome.file is None
    monkeypatch.undo()
    for role in ("student", "distilled"):
        gone_on, undisturbed = (load_checkpoint(root / "work_dirs" / role / "best.pth") for root in (project, whole[0]))
        assert all((gone_on.state_dict[key] == one).all() for key, one in undisturbed.state_dict.items())


def test_without_cskd_deploy_there_is_one_sentence(done, no_deploy, command_line):
    (done / "student.onnx").unlink()
    code, out, err = command_line("distill", done)
    assert code == 0
    assert "student alone, RetinaNet ResNet-18" in out
    assert "exported file" not in out
    assert err.count("cskd-deploy is not installed") == 1


def test_what_was_made_from_another_checkpoint_is_made_again(done, no_deploy):
    best = done / "work_dirs/distilled/best.pth"
    before = (done / "work_dirs/distilled/test.json").read_text()
    shutil.copy(done / "work_dirs/student/best.pth", best)
    outcome = distill(done)
    assert outcome.rows[2].test == outcome.rows[1].test
    assert (done / "work_dirs/distilled/test.json").read_text() != before


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "student.py",
            "samples_per_gpu=2",
            "samples_per_gpu=3",
            "teacher was trained with other settings .*samples_per",
        ),
        ("distilled.py", "(1, 0.5), roi", "(2, 0.5), roi", "distilled was trained .*distill.pyramid.full was"),
        ("data/val.json", "{", " {", "data/val.json has changed since .*teacher was trained on it"),
    ],
)
def test_what_has_changed_since_the_runs_is_refused(done, command_line, file, old, new, message):
    path = done / file
    path.write_text(path.read_text().replace(old, new, 1))
    before = files_of(done)
    code, _, err = command_line("distill", done)
    assert code == 2
    assert "Traceback" not in err
    assert "emove" in err
    assert re.search(message, err.replace("\n", " ")), err
    assert files_of(done) == before


def test_another_teacher_is_refused(done):
    shutil.copy(done / "work_dirs/student/best.pth", done / "work_dirs/teacher/best.pth")
    with pytest.raises(TrainError, match=r"distilled was trained under another teacher .*remove .*distilled to train"):
        distill(done)


def test_workers_and_more_epochs_may_change(done, no_deploy):
    """Longer epochs prolong the runs; both students, whose config it is."""
    path = done / "student.py"
    path.write_text(
        path.read_text().replace("workers_per_gpu=0", "workers_per_gpu=1") + "runner = dict(max_epochs=3)\n"
    )
    outcome = distill(done, baseline=True)
    assert [row.epochs for row in outcome.rows] == [3, 3, 3]


def test_no_project(tmp_path, command_line):
    code, _, err = command_line("distill", tmp_path)
    assert (code, list(tmp_path.iterdir())) == (2, [])
    assert "no project" in err
    assert "cskd-train new" in err


def test_a_failing_export_says_how_to_go_on(done, command_line, monkeypatch):
    (done / "student.onnx").unlink()
    monkeypatch.setattr(deployed.sys, "executable", shutil.which("false"))
    code, out, err = command_line("distill", done)
    assert (code, out) == (2, "")
    assert "cskd-deploy export" in err
    assert "the same command goes on from here" in err.replace("\n", " ")


def let_last(project, monkeypatch):
    """Twenty epochs of 10 s for each."""
    for name in ("teacher.py", "student.py"):
        text = (project / name).read_text()
        (project / name).write_text(f"{text}runner = dict(max_epochs=20)\nlr_config = dict(step=[10, 18])\n")
    monkeypatch.setattr(module, "measure", lambda *_: Cost(1.0, 6, 4.0))
    monkeypatch.setattr(deployed, "SECONDS", 0.0)


@pytest.mark.parametrize(("share", "epochs"), [(1, 4), (0, 5)])
def test_tests_and_report_have_their_share_of_the_budget(share, epochs, project, monkeypatch):
    """A second too few for five epochs, after three tests, one of the file, and the report of three detectors."""
    assert [shown.share(images) for images in (6, 100, 400)] == [1, 1, 0.25]
    let_last(project, monkeypatch)
    monkeypatch.setattr(shown, "share", lambda images: share if images == 6 else None)
    monkeypatch.setattr(module._Way, "_train", lambda *_: (_ for _ in ()).throw(TrainError("far enough")))
    console = Console(record=True, width=300, file=io.StringIO())
    with pytest.raises(TrainError, match="far enough"):
        distill(project, budget=(5 * 3 * 10 - 1 + 4 * 4 + 3 * 4) / 0.95, console=console)
    chosen = json.loads((project / "work_dirs/distill.json").read_text())["epochs"]
    assert chosen == dict.fromkeys(("teacher", "student", "distilled"), epochs)
    assert f"note: {5 * epochs}% of the epochs that were planned: far from the best" in console.export_text()


def test_half_of_the_planned_epochs_are_not_remarked_on(project, monkeypatch):
    let_last(project, monkeypatch)
    monkeypatch.setattr(module._Way, "_train", lambda *_: (_ for _ in ()).throw(TrainError("far enough")))
    console = Console(record=True, width=300, file=io.StringIO())
    with pytest.raises(TrainError, match="far enough"):
        distill(project, budget=(10 * 3 * 10 + 4 * 4 + 3 * 4) / 0.95, console=console)
    said = console.export_text()
    assert "  student alone: 10 of 20 epochs" in said
    assert "were planned" not in said


@pytest.mark.parametrize(("slower", "said"), [(3.0, "student alone: 4 of 20 epochs, 3 s a step"), (1.0, None)])
def test_epochs_that_the_teachers_time_changes_are_said(slower, said, project, monkeypatch):
    let_last(project, monkeypatch)
    console = Console(record=True, width=300, file=io.StringIO())
    way = module._Way(project, None, True, None, "cpu", console)
    costs = dict.fromkeys(module.ROLES, Cost(1.0, 6, 4.0))
    way.state.budget = (10 * 3 * 10 + 4 * 4 + 3 * 4) / 0.95
    way.state.costs = {role: vars(cost) for role, cost in costs.items()}
    way.state.epochs = dict.fromkeys(module.ROLES, 10)
    (project / "work_dirs" / "teacher").mkdir(parents=True)
    (project / "work_dirs" / "teacher" / "last.pth").touch()
    monkeypatch.setattr(module, "read_json", lambda _: {})
    monkeypatch.setattr(module.budgets, "slowdown", lambda *_: (slower, 1.0))
    way._plan_again()
    text = console.export_text()
    assert ("by the time that the teacher took, the budget holds:" in text) == (said is not None)
    assert said is None or said in text
    assert way.state.epochs["student"] == way.state.epochs["distilled"] == (10 if said is None else 4)


@pytest.mark.reliability
def test_a_budget_shortens_all_runs_alike(project, no_deploy, monkeypatch):
    """Students stay equally long, and the rate falls at the same shares."""
    let_last(project, monkeypatch)
    outcome = distill(project, budget=(4 * 3 * 10 + 16 + 12) / 0.95)
    assert outcome.rows[0].epochs == 4
    students = {row.epochs for row in outcome.rows[1:]}
    assert len(students) == 1
    student = load_checkpoint(project / "work_dirs/student/last.pth").config
    epochs = students.pop()
    assert epochs > 4  # the teacher was much faster than these ten seconds
    assert student["lr_config"]["step"] == [round(10 * epochs / 20), round(18 * epochs / 20)]
    with pytest.raises(TrainError, match=r"begun with a budget of .*go on without --budget"):
        distill(project, budget="3h")


def test_measuring_leaves_nothing_and_says_how_long(project, no_deploy, monkeypatch):
    """The distilled run is measured under a teacher that has not learnt anything yet."""
    console = Console(record=True, width=200, file=io.StringIO())
    monkeypatch.setattr(module._Way, "_train", lambda *_: (_ for _ in ()).throw(TrainError("far enough")))
    with pytest.raises(TrainError, match="far enough"):
        distill(project, console=console)
    said = console.export_text()
    for title in module.ROLES.values():
        assert f"  {title}: 2 epochs, " in said
    assert sorted(file.name for file in (project / "work_dirs").rglob("*")) == ["distill.json"]
    costs = json.loads((project / "work_dirs/distill.json").read_text())["costs"]
    assert costs["distilled"]["step"] > costs["student"]["step"] > 0
    assert all(cost["steps"] == 6 and cost["evaluation"] > 0 for cost in costs.values())


def test_pictures_without_labels_are_labelled_by_the_teacher(project, shapes_root, no_deploy):
    """Before they are, the measured epoch has their steps too: half of each batch of two."""
    path = project / "distilled.py"
    images = f"images={str(shapes_root / 'images')!r}"
    path.write_text(f"{path.read_text()}data = dict(unlabeled=dict(ann_file='unlabeled.json', {images}, share=0.5))\n")
    outcome = distill(project)
    costs = json.loads((project / "work_dirs/distill.json").read_text())["costs"]
    assert [costs[role]["steps"] for role in ("student", "distilled")] == [6, 12]
    made = project / "data" / "unlabeled.json"
    said = json.loads(made.read_text())["info"]
    assert load_checkpoint(project / "work_dirs/teacher/best.pth").sha256 in str(said)
    result = json.loads((project / "work_dirs/distilled/result.json").read_text())
    assert result["images"] == {"train": 12, "unlabeled": 18, "val": 6}
    assert (outcome.unlabeled, "; it saw 18 pictures without labels too. One seed" in str(outcome)) == (18, True)
    before = made.stat().st_mtime_ns
    assert distill(project) == outcome
    assert made.stat().st_mtime_ns == before
    others = ["data/test.json", "data/train.json", "data/val.json"]
    assert sorted(data_hashes(project, made)) == others
    assert sorted(data_hashes(project, Path())) == sorted([*others, "data/unlabeled.json"])


def test_several_gpus_train_through_the_launcher(done, no_deploy, monkeypatch):
    """Each run is the command `run`, in so many processes, with the epochs of the budget."""
    calls = []
    monkeypatch.setattr(module, "check_processes", lambda *_: None)
    monkeypatch.setattr(module, "launch", lambda processes, words, way_on: calls.append((processes, words, way_on())))
    distill(done, gpus=2, device="cpu")
    assert [(processes, words[1]) for processes, words, _ in calls] == [
        (2, str(done / f"{role}.py")) for role in module.ROLES
    ]
    assert all(words[0] == "run" and "--resume" in words for _, words, _ in calls)
    assert all(words[words.index("--gpus") + 1] == "2" and "--device" in words for _, words, _ in calls)
    assert all(way.endswith(f"Go on with: cskd-train distill {done} --gpus 2 --device cpu") for _, _, way in calls)


def test_the_door_is_the_command(whole):
    assert cskd_train.distill is distill


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("1.5 h", 5400), ("45s", 45), ("1d", 86400)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "2 weeks", "-1h", "0m", "1.2.3h", "2h later"])
def test_no_durations(text):
    with pytest.raises(TrainError, match="expected a time such as 2h"):
        parse_duration(text)


def test_durations_for_a_person():
    assert [duration(one) for one in (12.4, 59.9, 61, 3599, 3660, 90000)] == [
        "12 s", "60 s", "1 min", "1 h 00 min", "1 h 01 min", "25 h 00 min"
    ]  # fmt: skip


COSTS = {"teacher": Cost(2.0, 10, 5.0), "student": Cost(1.0, 10, 5.0), "distilled": Cost(3.0, 10, 5.0)}
PLANNED = {"teacher": 30, "student": 20, "distilled": 20}


def seconds_of(epochs):
    return sum(COSTS[name].seconds(number) for name, number in epochs.items())


@pytest.mark.parametrize("seconds", [80, 200, 500, 1000, 1500, 1999, 2000, 5000])
def test_epochs_fit_and_no_more_would(seconds):
    epochs = fitting_epochs(PLANNED, COSTS, seconds)
    assert seconds_of(epochs) <= seconds
    assert epochs["student"] == epochs["distilled"]
    if epochs != PLANNED:
        more = {name: min(number + 1, PLANNED[name]) for name, number in epochs.items()}
        assert seconds_of(more) > seconds
        assert abs(epochs["teacher"] / 30 - epochs["student"] / 20) <= 1 / 20


def test_steps_and_evaluations_are_held_against_what_a_run_took_of_each():
    """Four epochs of 10 steps of 2 s and evaluations of 5 s were expected; 1.5 s and 15 s they took."""
    result = {"epochs": 4, "iterations": 40, "images_per_second": 2 / 1.5, "seconds": 4 * 15 + 4 * 15}
    assert slowdown(COSTS["teacher"], result, 2) == pytest.approx((0.75, 3.0))
    assert slowdown(COSTS["teacher"], {**result, "images": {"train": 500}}, 2) == pytest.approx((0.75, 3.0))
    assert slowdown(Cost(2.0, 10, 0.0), {**result, "seconds": 60}, 2) == pytest.approx((0.75, 1.0))
    slower = COSTS["student"].times(2, 3)
    assert (slower.step, slower.evaluation, slower.seconds(2)) == (2.0, 15.0, 2 * (20 + 15))


def test_pictures_are_labelled_within_the_budget(shapes_root):
    """18 pictures and 5 validation images at a second each, as the slowest evaluation has it."""
    assert labelling(shapes_root / "images", 5, [Cost(1.0, 1, 2.0), Cost(1.0, 1, 5.0)]) == pytest.approx(23)


def test_too_small_a_budget_is_refused_with_what_is_needed():
    with pytest.raises(
        TrainError,
        match=r"50 s are left for training, after tests and export, and one epoch of each .* takes 1 min.*budget",
    ):
        fitting_epochs(PLANNED, COSTS, 50)


def row(role, score):
    metrics = {"bbox_mAP": score, "bbox_mAP_50": 2 * score}
    return Row(role, role, 4, 61.0, role == "student" and score > 0.249, metrics, metrics)


def outcome_of(*rows):
    return Distilled("cells", 0, "test.json", 7, False, rows, None, None, ())


def test_a_teacher_below_the_student_is_said():
    worse = str(outcome_of(row("teacher", 0.20), row("student", 0.25), row("distilled", 0.26)))
    assert "warning: the teacher is 5.0 points below the student alone" in worse
    assert "+1.0 points" in worse
    assert "Still rising at the end: student. More epochs" in worse
    assert "with a larger max_epochs in student.py the same command goes on with the runs.\n" in worse
    better = str(outcome_of(row("teacher", 0.30), row("student", 0.25), row("distilled", 0.24)))
    assert "warning" not in better
    assert "-1.0 points of mAP: same recipe, same seed (0)" in better


def test_a_teacher_that_still_rises_is_trained_on_and_its_student_anew():
    rising = replace(row("teacher", 0.30), improving=True)
    said = str(outcome_of(rising, row("student", 0.25), row("distilled", 0.26)))
    assert "with a larger max_epochs in teacher.py and student.py the same command goes on" in said
    assert "anew under a teacher that has changed: remove cells/work_dirs/distilled for that." in said


def test_students_of_other_epochs_are_not_said_to_have_the_same_recipe():
    shorter = replace(row("distilled", 0.26), epochs=3)
    assert "+1.0 points of mAP: but 3 epochs against 4 alone, same seed" in str(
        outcome_of(row("student", 0.25), shorter)
    )


def test_without_a_baseline_no_change_is_claimed():
    outcome = outcome_of(row("teacher", 0.30), row("distilled", 0.24))
    assert outcome.gain is None
    assert "Distilling changed" not in str(outcome)
    assert "rising" not in str(outcome)
    assert outcome.to_dict()["gain_points"] is None
