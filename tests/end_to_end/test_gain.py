"""The study of gains: which runs are made, in what order and once each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tomllib
from click.testing import CliRunner

from cskd_core.plan import DistillPlan, PyramidPlan
from cskd_data.unlabelled import read_unlabelled
from cskd_train.files.config import load_config
from cskd_train.files.overrides import parse_overrides

from .studies import BENCHMARKS, BEST_OF, PLAN, found, run


def test_the_teacher_is_first_and_a_seed_has_its_methods_together(gain):
    runs = list(gain.runs_of(tomllib.loads(PLAN)))
    assert [run.key[1:] for run in runs] == [
        ("teacher", 28, 0),
        *((method, epochs, seed) for epochs in (4, 16) for seed in (0, 1) for method in ("alone", "cskd")),
    ]


@pytest.fixture
def runs_of_the_repository(gain):
    """The runs of the repository's plan; of rivals' weights the later in the plan were the better ones."""
    content = tomllib.loads((BENCHMARKS / "gain.toml").read_text())
    records = [found(gain, one, number / 1000) for number, one in enumerate(gain.runs_of(content, "rival_weights"))]
    return [gain.decided(run, content, records) for run in gain.runs_of(content)]


def test_a_method_may_have_epochs_of_its_own(gain):
    plan = tomllib.loads(PLAN)
    plan["studies"]["lasting"]["methods"]["cskd"]["epochs"] = [40, 16]
    found = [(run.method, run.epochs, run.seed) for run in gain.runs_of(plan)]
    assert found[1:] == [
        *(("alone", 4, seed) for seed in (0, 1)),
        *((method, 16, seed) for seed in (0, 1) for method in ("alone", "cskd")),
        *(("cskd", 40, seed) for seed in (0, 1)),
    ]


def test_the_plan_of_the_repository_names_configs_that_there_are(gain, runs_of_the_repository):
    runs = runs_of_the_repository
    assert len(runs) > 10
    teachers = {run.study for run in runs if run.method == "teacher"}
    assert all(run.teacher_of in teachers and (gain.ROOT / run.config).is_file() for run in runs)
    assert len({run.key for run in runs}) == len({run.name for run in runs}) == len(runs)


def config_of(gain, run, folder):
    words = gain.command_of(run, folder / run.name, folder / "teacher.pth")
    return load_config(words[2], parse_overrides(words[words.index("--set") + 1 :: 2] if "--set" in words else []))


def test_the_settings_of_the_repositorys_plan_are_known(gain, runs_of_the_repository, tmp_path, monkeypatch):
    monkeypatch.setenv("CSKD_CARDS", str(tmp_path))
    plans = {}
    for one in runs_of_the_repository:
        if one.seed == 0 or one.seed == 9:
            cfg = config_of(gain, one, tmp_path)
            assert cfg.runner.max_epochs == one.epochs
            assert bool(cfg.get("distill")) == (one.method not in ("teacher", "alone", "alone_bf16"))
            in_bfloat16 = one.method.endswith("_bf16") or one.study in ("cards", "cards_quarter")
            assert cfg.get("amp") == ("bf16" if in_bfloat16 else None)
            if cfg.get("distill"):
                plans[one.study, one.method] = DistillPlan.parse(cfg.distill)
    assert plans["rival_weights", "cwd_25"].pyramid == PyramidPlan(kind="cwd", weight=25)
    assert [plans["rivals", name].pyramid for name in ("mse", "pkd", "cwd")] == [
        PyramidPlan(kind="mse", weight=100), PyramidPlan(kind="pkd", weight=10), PyramidPlan(kind="cwd", weight=25),
    ]  # fmt: skip
    assert plans["rivals", "pyramid"] == plans["rival_weights", "pyramid_3"]
    assert plans["parts", "unguided"].loss.guidance_min == 2
    parts = [plans["parts", name] for name in ("pyramid", "pyramid_towers", "pyramid_towers_prediction", "cskd")]
    assert [[bool(plan.tower), bool(plan.prediction), bool(plan.assistant)] for plan in parts] == [
        [False, False, False], [True, False, False], [True, True, False], [True, True, True],
    ]  # fmt: skip


def sets_of(cfg):
    """Names of the folders whose annotation files a config reads, but for what a teacher has labelled."""
    splits = [cfg.data[split] for split in ("train", "val", "test") if split in cfg.data]
    files = [Path(split.get("data_root", ""), split.ann_file) for split in splits]
    return {(file.parents[1] if file.parent.name == "annotations" else file.parent).name for file in files}


def test_every_set_that_the_repositorys_plan_names_is_frozen(gain, runs_of_the_repository, tmp_path, monkeypatch):
    for name in ("bccd", "cards"):
        monkeypatch.setenv(f"CSKD_{name.upper()}", str(tmp_path / name))
    named = set()
    # One run of each study and of whatever else is set of its data.
    runs = {
        (run.study, *(f"{key}={run.settings[key]}" for key in run.settings if "data" in key)): run
        for run in runs_of_the_repository
    }
    for one in runs.values():
        named |= sets_of(config_of(gain, one, tmp_path))
        named |= sets_of(config_of(gain, replace(one, settings={**one.settings, **one.test}), tmp_path))
    for study in tomllib.loads((BENCHMARKS / "gain.toml").read_text())["studies"].values():
        for words in map(str.split, study.get("prepare", [])):
            named |= {Path(words[3]).name} if words[1:3] == ["data", "shapes"] else set()
            named |= {Path(words[words.index("--out") + 1]).name} if "--out" in words else set()
    frozen = BENCHMARKS.parent / "docs" / "results" / "sets"
    assert {"shapes_unlabelled", "cards_quarter", "bccd"} <= named
    assert named == {file.stem for file in frozen.glob("*.sha256")}
    page = (frozen / "README.md").read_text()
    assert [name for name in named if f"[{name}.sha256]({name}.sha256)" not in page] == []


def test_a_method_is_the_best_of_another_studys_by_the_mean_of_its_seeds(gain, plan, done, tmp_path):
    plan.write_text(PLAN + BEST_OF)
    content = tomllib.loads(plan.read_text())
    val = {"cskd": (0.9, 0.9), "cskd_1": (0.1, 0.4), "cskd_2": (0.3, 0.3), "cskd_3": (0.39, 0.0)}
    records = [found(gain, one, val[one.method][one.seed]) for one in gain.runs_of(content, "weights")]
    lines = [json.dumps({**one, "seconds": 1.0}) + "\n" for one in records]
    (tmp_path / "gain.jsonl").write_text("".join(lines))
    (tmp_path / "runs" / "lasting" / "teacher").mkdir(parents=True)
    (tmp_path / "runs" / "lasting" / "teacher" / "best.pth").touch()

    assert "rivals/best_4_seed0, weights/cskd_2\n" in run(gain, plan, tmp_path, "--study", "rivals")

    (words,) = [words for words in done if words[1] == "run" and "rivals/best_4" in " ".join(words)]
    assert words[2].endswith("configs/demo/cskd_retina_r50_distill_r18_shapes.py")
    assert {"distill.pyramid.full=(2, 2)", "data.samples_per_gpu=2"} <= set(words)
    alone, best = gain.read(tmp_path / "gain.jsonl")[-2:]
    assert (best["method"], best["chosen"]) == ("best", "weights/cskd_2")
    assert "chosen" not in alone


def test_a_study_is_not_begun_before_what_it_takes_the_best_of_is_recorded(gain, plan, done, tmp_path):
    plan.write_text(PLAN + BEST_OF)
    content = tomllib.loads(plan.read_text())
    records = [
        found(gain, one, 0.1) for one in gain.runs_of(content, "weights") if one.key != ("weights", "cskd_3", 8, 1)
    ]
    (tmp_path / "gain.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    words = [str(plan), "--work-dir", str(tmp_path / "runs"), "--records", str(tmp_path / "gain.jsonl")]
    assert "rivals/best_4_seed0\n" in CliRunner().invoke(gain.main, [*words, "--dry-run"]).output
    for prefix, why in (
        ("weights:cskd_", "and weights/cskd_3_8_seed1 has no record of this machine yet: begin with --study weights"),
        ("weights:csdk_", "and the plan has no such method"),
        ("wieghts:cskd_", "and the plan has no such method"),
    ):
        plan.write_text(PLAN + BEST_OF.replace("weights:cskd_", prefix))
        result = CliRunner().invoke(gain.main, [*words, "--study", "rivals"])
        assert (result.exit_code, done) == (2, [])
        assert f"rivals takes the best of '{prefix}', {why}" in " ".join(result.output.split())


def test_the_labels_of_a_file_are_taken_out_by_a_script_of_the_repository(gain, tmp_path):
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "a.jpg").touch()
    content = {
        "info": {"image_root": "photographs"},
        "images": [{"id": 4, "file_name": "a.jpg", "width": 8, "height": 6}],
        "categories": [{"id": 1, "name": "ace"}],
        "annotations": [{"id": 1, "image_id": 4, "category_id": 1, "bbox": [1, 1, 2, 2]}],
    }
    (tmp_path / "rest.json").write_text(json.dumps(content))
    gain.execute(["benchmarks/without_labels.py", str(tmp_path / "rest.json")])
    dataset = read_unlabelled(tmp_path / "rest_unlabelled.json", ["ace", "king"])
    assert [dataset.path(image) for image in dataset.images] == [tmp_path / "photographs" / "a.jpg"]
    assert (list(dataset.annotations), dataset.classes) == ([], ("ace", "king"))


def test_epochs_stretch_the_schedule_and_a_distilled_run_learns_of_the_studys_teacher(gain, tmp_path):
    teacher, alone, cskd, *_ = gain.runs_of(tomllib.loads(PLAN))
    words = gain.command_of(teacher, tmp_path, tmp_path / "best.pth")
    assert words[words.index("--set") + 1 :: 2] == ["runner.max_epochs=28", "lr_config.step=[22, 26]"]
    assert "distill" not in " ".join(gain.command_of(alone, tmp_path, tmp_path / "best.pth"))
    words = gain.command_of(cskd, tmp_path, tmp_path / "best.pth")
    assert words[words.index("--set") + 1 :: 2] == [
        "runner.max_epochs=4",
        "lr_config.step=[3, 4]",
        "distill.init_student=True",
        f"distill.teacher.checkpoint={tmp_path}/best.pth",
    ]
    assert "--resume" not in words
    (tmp_path / "last.pth").touch()
    assert "--resume" in gain.command_of(cskd, tmp_path, tmp_path / "best.pth")


def test_what_is_recorded_is_not_run_again(gain, plan, done, tmp_path):
    run(gain, plan, tmp_path)
    assert len(done) == 2 * 9
    records = gain.read(tmp_path / "gain.jsonl")
    assert len({gain.key_of(record) for record in records}) == 9
    run(gain, plan, tmp_path)
    assert len(done) == 2 * 9
    (tmp_path / "gain.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records[:-2]))
    run(gain, plan, tmp_path, "--dry-run")
    assert len(done) == 2 * 9


def test_a_record_says_what_was_measured_and_on_what(gain, plan, done, tmp_path):
    run(gain, plan, tmp_path)
    record = gain.read(tmp_path / "gain.jsonl")[1]
    assert (record["val"]["bbox_mAP"], record["test"]["bbox_mAP"], record["split"]) == (0.3, 0.25, "test")
    assert record["curve"] == [{"epoch": 1, "minutes": 2.0, "mAP": 0.1}, {"epoch": 2, "minutes": 4.0, "mAP": 0.3}]
    assert record["processor_minutes"] == 8.0
    assert record["errors"]["dap"] == {"both": 2.5}
    assert record["command"].startswith("cskd-train run configs/demo/retinanet_r18_shapes.py --work-dir ")
    assert {"commit", "processor", "instructions", "versions", "device", "seconds", "threads"} <= set(record)
    log = tmp_path / "runs" / "lasting" / "alone_4_seed0" / "log.jsonl"
    # On a GPU, what passed: 10 steps of 1.5 s, 20 of 3, then 30 of 0.5.
    assert [point["minutes"] for point in gain.curve_of(log)] == [1.25, 1.5]


def test_a_study_makes_its_data_before_its_teacher_and_what_needs_the_teacher_after_it(
    gain, plan, done, tmp_path, monkeypatch
):
    monkeypatch.setenv("THERE", "there")
    more = [
        'prepare = ["cskd-train data shapes here"]',
        'after_teacher = ["cskd-train data x {teacher}"]',
        'set = { "data.workers_per_gpu" = 0 }',
        'test = { data_root = "{root}/$THERE" }',
    ]
    plan.write_text(PLAN.replace('data = "shapes"', "\n".join(['data = "shapes"', *more])))
    run(gain, plan, tmp_path)
    kinds = [words[1] + words[2] if words[1] == "data" else words[1] for words in done]
    assert kinds[:6] == ["datashapes", "run", "test", "datax", "run", "test"]
    assert kinds.count("datashapes") == kinds.count("datax") == 1
    assert done[3][3] == str(tmp_path / "runs" / "lasting" / "teacher" / "best.pth")
    assert all("data.workers_per_gpu=0" in words for words in done if words[1] == "run")
    assert all(words[-2:] == ["--set", f"data_root={gain.ROOT}/there"] for words in done if words[1] == "test")


def test_a_budget_begins_no_run_that_would_not_end_in_it(gain, plan, done, tmp_path, monkeypatch):
    now = iter(range(0, 10000, 20))  # each look at the clock comes 20 s later
    monkeypatch.setattr(gain.time, "monotonic", lambda: float(next(now)))
    said = run(gain, plan, tmp_path, "--budget", "170s")
    # Begun at 0; teacher at 20 (nothing is known of it), 4 epochs at 40 s each, then 16 epochs of 160 s.
    assert [line.partition(",")[0] for line in said.splitlines()[:5]] == [
        "lasting/teacher_28_seed0", "lasting/alone_4_seed0", "lasting/cskd_4_seed0", "lasting/alone_4_seed1",
        "lasting/cskd_4_seed1",
    ]  # fmt: skip
    assert said.splitlines()[5] == ("lasting/alone_16_seed0, about 3 min: 50 s are left; the same command goes on")
    assert len(gain.read(tmp_path / "gain.jsonl")) == 5


def test_a_variable_that_the_environment_lacks_is_refused(gain, plan, tmp_path, monkeypatch):
    monkeypatch.delenv("THERE", raising=False)
    plan.write_text(PLAN.replace('data = "shapes"', 'data = "shapes"\nset = { data_root = "$THERE" }'))
    words = [str(plan), "--work-dir", str(tmp_path), "--records", str(tmp_path / "r")]
    result = CliRunner().invoke(gain.main, words)
    assert result.exit_code == 2
    assert "the plan has '$THERE', and the environment no such variable" in result.output


def test_a_study_may_have_the_teacher_of_another(gain, plan, done, tmp_path):
    one = plan.read_text()
    plan.write_text(
        one
        + one.replace("lasting", "again").replace(one[one.index("teacher = ") :].splitlines()[0], 'teacher = "lasting"')
    )
    words = [str(plan), "--work-dir", str(tmp_path / "runs"), "--records", str(tmp_path / "gain.jsonl")]
    result = CliRunner().invoke(gain.main, [*words, "--study", "again"])
    assert (result.exit_code, done) == (2, [])
    assert "again/alone_4_seed0: lasting has no teacher yet: begin with that study" in result.output

    plan.write_text(plan.read_text().replace("seeds = [0, 1]", "seeds = [2, 3]", 1))
    run(gain, plan, tmp_path)
    again = [" ".join(words) for words in done if "/again/" in " ".join(words) and words[1] == "run"]
    assert len(again) == 8
    assert sum(f"distill.teacher.checkpoint={tmp_path}/runs/lasting/teacher/best.pth" in text for text in again) == 4


def test_a_teacher_that_another_machine_has_is_missed_by_name(gain, plan, done, tmp_path):
    run(gain, plan, tmp_path)
    plan.write_text(PLAN.replace("seeds = [0, 1]", "seeds = [0, 1, 2]"))
    words = [str(plan), "--work-dir", str(tmp_path / "elsewhere"), "--records", str(tmp_path / "gain.jsonl")]
    result = CliRunner().invoke(gain.main, words)
    assert result.exit_code == 2
    missing = tmp_path / "elsewhere" / "lasting" / "teacher" / "best.pth"
    assert f"has the teacher of lasting, and {missing} is not there" in " ".join(result.output.split())


def test_a_run_that_another_study_had_is_taken_over_from_its_record(gain, plan, done, tmp_path):
    again = """
[studies.again]
data = "shapes once more"
detector = "RetinaNet R18"
teacher = "lasting"
epochs = [4, 12]
seeds = [1]
methods.other = { like = "whole", set = { "distill.init_student" = false } }
[studies.again.methods.whole]
config = "configs/demo/cskd_retina_r50_distill_r18_shapes.py"
set = { "distill.init_student" = true }
"""
    plan.write_text(PLAN + again)
    run(gain, plan, tmp_path, "--study", "lasting")
    assert "again/whole_4_seed1: that of lasting/cskd\n" in run(gain, plan, tmp_path, "--study", "again", "--dry-run")
    done.clear()
    assert "again/whole_4_seed1: that of lasting/cskd\n" in run(gain, plan, tmp_path, "--study", "again")
    trained = [words[words.index("--work-dir") + 1] for words in done if words[1] == "run"]
    assert trained == [
        str(tmp_path / "runs" / "again" / name) for name in ("other_4_seed1", "other_12_seed1", "whole_12_seed1")
    ]

    *_, first = (one for one in gain.read(tmp_path / "gain.jsonl") if one["study"] == "lasting" and one["epochs"] == 4)
    again = [one for one in gain.read(tmp_path / "gain.jsonl") if one["study"] == "again"]
    own = {"study": "again", "method": "whole", "data": "shapes once more", "run_of": "lasting/cskd"}
    assert again[1] == {**first, **own}
    assert ["run_of" in one for one in again] == [False, True, False, False]
    assert "all 4 runs are recorded in" in run(gain, plan, tmp_path, "--study", "again", "--dry-run")


@pytest.mark.parametrize("name", [None, "another one"])
def test_a_run_on_another_processor_is_not_taken_over(gain, plan, done, tmp_path, monkeypatch, name):
    """One with other instructions is another, though its name be the same: it computes other sums."""
    run(gain, plan, tmp_path)
    teacher = PLAN[PLAN.index("teacher = ") :].splitlines()[0]
    plan.write_text(PLAN + PLAN.replace("lasting", "again").replace(teacher, 'teacher = "lasting"'))
    here = gain.machine.processor()
    other = {"processor": name or here["processor"], "instructions": [*here["instructions"], "another"]}
    monkeypatch.setattr(gain.machine, "processor", lambda: other)
    assert "that of" not in run(gain, plan, tmp_path)
    assert sum(words[1] == "run" for words in done) == 1 + 8 + 8


@pytest.mark.parametrize(
    "other",
    [
        'prepare = ["cskd-train data shapes other"]',
        'split = "val"',
        'test = { data_root = "other" }',
        "set = { seed = 3 }",
    ],
)
def test_a_run_on_other_data_is_another_one(gain, plan, done, tmp_path, other):
    teacher = PLAN[PLAN.index("teacher = ") :].splitlines()[0]
    again = PLAN.replace("lasting", "again").replace(teacher, f'teacher = "lasting"\n{other}')
    plan.write_text(PLAN + again)
    assert "that of" not in run(gain, plan, tmp_path)
    assert sum(words[1] == "run" for words in done) == 1 + 8 + 8


def test_a_study_that_the_plan_has_not_is_refused(gain, plan, tmp_path):
    words = [str(plan), "--work-dir", str(tmp_path), "--records", str(tmp_path / "r"), "--study", "lastng"]
    result = CliRunner().invoke(gain.main, words)
    assert result.exit_code == 2
    assert "there is no study 'lastng'; the plan has lasting" in result.output
