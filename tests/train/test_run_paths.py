"""What a run names by a relative path is looked for beside the run, from whichever folder it is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from cskd_data.files import sha256_of_file
from cskd_train.files.overrides import move_root
from cskd_train.report.detected import Asked, look
from cskd_train.report.runs import read_subject
from cskd_train.tables.paths import located, started_in
from cskd_train.tables.work_dirs import find_in_work_dirs

CONFIG = {"model": {}, "data_root": "data/", "data": {"val": {"ann_file": "v"}}, "runner": {"max_epochs": 1}}


def write_run(root, name, score, *, stated="work_dirs/{}", seed=0, started="", result=None, **config):
    folder = root / "work_dirs" / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (folder / "best.pth").write_text(str(score))
    (folder / "log.jsonl").write_text(json.dumps({"mode": "val", "epoch": 1, "iter": 1, "bbox_mAP": score}) + "\n")
    best = {
        "config": "c.py",
        "seed": seed,
        "best": {"bbox_mAP": score},
        "last": {"bbox_mAP": score},
        "best_epoch": 1,
        "started": started,
    }
    best |= {"work_dir": stated.format(name) if "{}" in stated else stated, **(result or {})}
    (folder / "result.json").write_text(json.dumps(best))


def experiment(root, score, teacher="work_dirs/teacher/best.pth", seed=0):
    """A teacher, a student alone and the same under the teacher, which is named from the folder of the experiment."""
    write_run(root, "teacher", score, model={"t": score})
    write_run(root, "alone", score + 0.01, seed=seed)
    block = {"teacher": {"checkpoint": teacher, "config": "teacher.py"}}
    alone = {"baseline": {"work_dir": "work_dirs/alone", "seed": seed, "bbox_mAP": score + 0.01}}
    write_run(root, "distilled", score + 0.02, distill=block, result=alone, seed=seed)
    (root / "teacher.py").touch()
    return root


@pytest.fixture
def two(tmp_path):
    """Two experiments of one layout, of other teachers."""
    return [experiment(tmp_path / name, score) for name, score in (("one", 0.5), ("two", 0.1))]


@pytest.mark.parametrize("called_in", ["one", "two", "."])
@pytest.mark.parametrize("way", ["absolute", "relative", "linked"])
def test_a_report_has_the_runs_own_teacher_and_student_alone(called_in, way, two, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / called_in)
    folder = two[0] / "work_dirs" / "distilled"
    if way == "relative":
        folder = Path("..", "one", "work_dirs", "distilled") if called_in != "." else Path("one/work_dirs/distilled")
    if way == "linked":
        (tmp_path / "latest").symlink_to(folder)
        folder = tmp_path / "latest"
    subject = read_subject(folder)
    assert subject.teacher.checkpoint.resolve() == two[0] / "work_dirs" / "teacher" / "best.pth"
    assert subject.teacher.run.best["bbox_mAP"] == 0.5
    assert subject.alone.run.best["bbox_mAP"] == 0.51
    assert Path(subject.teacher.config).resolve() == two[0] / "teacher.py"


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("called_in", ["one", "two"])
def test_a_table_has_the_own_teacher_in_each_row(order, called_in, two, tmp_path, monkeypatch):
    """The students are trained alike; one teacher's students are no seeds of the other's."""
    monkeypatch.chdir(tmp_path / called_in)
    shutil.rmtree(two[1])
    experiment(two[1], 0.1, seed=1)
    said = []
    rows = find_in_work_dirs([root / "work_dirs" for root in two[::order]], said.append)
    assert sorted((row.teacher.mean, row.distilled.mean) for row in rows) == [(10.0, pytest.approx(12.0)), (50.0, 52.0)]
    assert said == []


def test_students_of_copies_of_one_teacher_are_seeds_of_one_row(tmp_path):
    for seed in (0, 1):
        experiment(tmp_path / f"machine{seed}", 0.5, seed=seed)
    (row,) = find_in_work_dirs([tmp_path / f"machine{seed}" / "work_dirs" for seed in (0, 1)], print)
    assert (len(row.distilled.by_seed), row.teacher.mean) == (2, 50.0)


def test_several_runs_that_say_they_were_the_teacher_are_named_and_none_is_taken(two, tmp_path):
    for root in two:
        (root / "work_dirs" / "teacher").rename(root / "work_dirs" / "first")
    (tmp_path / "apart").mkdir()
    (two[0] / "work_dirs" / "distilled").rename(tmp_path / "apart" / "distilled")
    shutil.rmtree(two[1] / "work_dirs" / "distilled")
    said = []
    folders = [tmp_path / "apart", *(root / "work_dirs" for root in two)]
    rows = {row.sources[0]: row for row in find_in_work_dirs(folders, said.append)}
    assert rows[str(tmp_path / "apart" / "distilled")].teacher is None
    (line,) = (one for one in said if one.endswith("says that it was: no teacher is named"))
    assert "one/work_dirs/first, " in line
    assert "two/work_dirs/first says" in line
    (row,) = [row for row in find_in_work_dirs(folders[:2], print) if row.distilled]
    assert row.teacher.mean == 50.0


@pytest.mark.parametrize(
    ("path", "stated", "found"),
    [
        ("work_dirs/t/best.pth", "work_dirs/d", "a/work_dirs/t/best.pth"),
        ("teachers/t/best.pth", "work_dirs/d", "a/teachers/t/best.pth"),
        ("work_dirs/t/best.pth", "", "a/work_dirs/t/best.pth"),  # of a run under way
        ("work_dirs/t/best.pth", "/gone/work_dirs/d", "a/work_dirs/t/best.pth"),
        ("/gone/a/work_dirs/t/best.pth", "/gone/a/work_dirs/d", "a/work_dirs/t/best.pth"),
        ("/gone/a/teachers/t/best.pth", "/gone/a/work_dirs/d", "a/teachers/t/best.pth"),
        ("{root}/b/work_dirs/t/best.pth", "/gone/a/work_dirs/d", "b/work_dirs/t/best.pth"),
        ("only/best.pth", "work_dirs/d", "b/only/best.pth"),
        ("{root}/b/work_dirs/t/best.pth", "{root}/b/work_dirs/d", "b/work_dirs/t/best.pth"),  # moved alone
        ("https://example.org/t/best.pth", "work_dirs/d", None),
        ("nowhere/best.pth", "work_dirs/d", None),
    ],
)
def test_paths_are_looked_for_beside_the_run_first(path, stated, found, tmp_path, monkeypatch):
    for one in ("a/work_dirs/t", "a/teachers/t", "b/work_dirs/t", "b/teachers/t", "b/only", "a/work_dirs/d"):
        (tmp_path / one).mkdir(parents=True)
        (tmp_path / one / "best.pth").touch()
    monkeypatch.chdir(tmp_path / "b")
    way = located(path.format(root=tmp_path), tmp_path / "a" / "work_dirs" / "d", stated.format(root=tmp_path))
    assert (way and way.resolve()) == (found and tmp_path / found)


def by_absolute_paths(root, score, day=1):
    """An experiment that names everything from the root on; its student ends a day after its teacher."""
    stated, images = f"{root}/work_dirs/{{}}", {"started": f"2026-01-{day:02d}T00:00:00+00:00"}
    for name, at in (("teacher", score), ("alone", score + 0.01)):
        write_run(root, name, at, stated=stated, model={"t": at}, **images)
    block = {"teacher": {"checkpoint": f"{root}/work_dirs/teacher/best.pth"}}
    alone = {"baseline": {"work_dir": f"{root}/work_dirs/alone", "seed": 0, "bbox_mAP": score + 0.01}}
    ended = f"2026-01-{day + 1:02d}T00:00:00+00:00"
    write_run(root, "distilled", score + 0.02, stated=stated, distill=block, result=alone, started=ended)
    return root


def teachers(folder, *others):
    """Of a distilled run, as report and table have it, and the student alone of the report; mAP in points."""
    subject = read_subject(folder)
    (row,) = (row for row in find_in_work_dirs([folder, *others], print) if row.distilled)
    return [subject.teacher.run.best["bbox_mAP"] * 100, row.teacher.mean, subject.alone.run.best["bbox_mAP"] * 100]


def test_a_copied_experiment_has_its_own_teacher_though_the_first_one_is_still_there(tmp_path):
    root = by_absolute_paths(tmp_path / "one", 0.5)
    copy = shutil.copytree(root, tmp_path / "two") / "work_dirs"
    write_result(copy / "teacher", best={"bbox_mAP": 0.3})  # other figures, to tell the two apart
    assert teachers(copy / "distilled") == [30.0, 30.0, 51.0]
    assert read_subject(copy / "distilled").alone.run.folder == copy / "alone"


def test_a_run_that_was_moved_alone_has_the_teacher_that_it_names(tmp_path):
    """Beside files of the same names."""
    root, other = by_absolute_paths(tmp_path / "one", 0.5), by_absolute_paths(tmp_path / "two", 0.1)
    shutil.rmtree(other / "work_dirs" / "distilled")
    moved = shutil.move(root / "work_dirs" / "distilled", other / "work_dirs" / "distilled")
    assert teachers(moved) == [50.0, 50.0, 51.0]
    write_run(root, "distilled", 0.9, stated=f"{root}/work_dirs/{{}}")  # another one since, where it was
    assert teachers(moved) == [50.0, 50.0, 51.0]


def test_an_experiment_that_was_moved_has_its_own_teacher_though_another_was_trained_since_where_it_was(tmp_path):
    by_absolute_paths(tmp_path / "one", 0.5).rename(tmp_path / "kept")
    by_absolute_paths(tmp_path / "one", 0.1, day=9)
    assert teachers(tmp_path / "kept" / "work_dirs" / "distilled") == [50.0, 50.0, 51.0]


@pytest.mark.parametrize("taught", ["one", "two"])
def test_the_hash_that_a_project_has_kept_of_its_teacher_decides(taught, tmp_path):
    root = by_absolute_paths(tmp_path / "one", 0.5)
    by_absolute_paths(tmp_path / "two", 0.1)
    for name in ("distilled", "alone"):
        shutil.rmtree(tmp_path / "two" / "work_dirs" / name)
        shutil.move(root / "work_dirs" / name, tmp_path / "two" / "work_dirs" / name)
    digest = sha256_of_file(tmp_path / taught / "work_dirs" / "teacher" / "best.pth")
    state = tmp_path / "two" / "work_dirs" / "distill.json"
    state.write_text(json.dumps({"made": {"distilled": digest}}))
    score = {"one": 50.0, "two": 10.0}[taught]
    assert teachers(tmp_path / "two" / "work_dirs" / "distilled") == [score, score, 51.0]


def write_result(folder, **changes):
    file = folder / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("named", ["other", "own", "own, gone", "gone"])
def test_who_taught_in_a_project_is_what_the_distilled_run_says(named, tmp_path):
    """Whatever lies in the folder in which a teacher of the project's own would be trained."""
    root = by_absolute_paths(tmp_path / "project", 0.5)
    (root / "distilled.py").touch()
    other = tmp_path / "better" / "best.pth"
    if named == "other":
        write_run(tmp_path, "better", 0.8)
        other = tmp_path / "work_dirs" / "better" / "best.pth"
    if named in ("other", "gone"):
        config = json.loads((root / "work_dirs" / "distilled" / "config.json").read_text())
        config["distill"]["teacher"]["checkpoint"] = str(other)
        (root / "work_dirs" / "distilled" / "config.json").write_text(json.dumps(config))
    if named == "own, gone":
        (root / "work_dirs" / "teacher" / "best.pth").unlink()
    teacher = read_subject(root).teacher
    score = {"other": 0.8, "gone": None}.get(named, 0.5)
    assert (teacher.run and teacher.run.best["bbox_mAP"]) == score
    expected = {"other": other, "own": root / "work_dirs" / "teacher" / "best.pth"}
    assert teacher.checkpoint == expected.get(named)


@pytest.mark.parametrize(
    ("stated", "start"),
    [("w/d", "a"), ("d/", "a/w"), ("./w/d", "a"), ("", None), ("v/d", None), ("../w/d", None), ("/a/w/d", None)],
)
def test_where_a_run_was_started_is_known_by_where_it_said_that_it_was(stated, start, tmp_path):
    assert started_in(tmp_path / "a" / "w" / "d", stated) == (start and tmp_path / start)


@pytest.mark.parametrize("called_in", ["one", "two"])
def test_detectors_are_looked_at_on_the_data_of_their_own_experiment(
    called_in, trained, shapes_root, tmp_path, monkeypatch
):
    """The other one has three validation images in a file of the same name."""
    contents = torch.load(trained / "best.pth", weights_only=True)
    contents["meta"]["config"] = move_root(contents["meta"]["config"], str(shapes_root), "data")
    for name, images in (("one", 6), ("two", 3)):
        work_dir = shutil.copytree(trained, tmp_path / name / "work_dirs" / "student")
        torch.save(contents, work_dir / "best.pth")
        said = json.loads((work_dir / "result.json").read_text())
        (work_dir / "result.json").write_text(json.dumps({**said, "work_dir": "work_dirs/student"}))
        file = shutil.copytree(shapes_root, tmp_path / name / "data") / "annotations" / "val.json"
        data = json.loads(file.read_text())
        data["images"] = data["images"][:images]
        kept = {one["id"] for one in data["images"]}
        data["annotations"] = [one for one in data["annotations"] if one["image_id"] in kept]
        file.write_text(json.dumps(data))
    monkeypatch.chdir(tmp_path / called_in)
    subject = read_subject(tmp_path / "one" / "work_dirs" / "student")
    asked = Asked("val", 1, {}, torch.device("cpu"), tmp_path, lambda *_: None)
    looked = look([], subject.main, ("", ""), asked)
    assert (looked.of, looked.missing) == (6, [])
