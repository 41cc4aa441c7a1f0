"""`--resume`: a run that was stopped ends where it would have ended."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from cskd_train.engine import prepare, run
from cskd_train.engine.records import forget_after, read_log
from cskd_train.engine.signals import Interrupted
from cskd_train.errors import TrainError
from cskd_train.files import checkpoints

from .runs import STEPS, train


def curve(work_dir):
    """Every number of the log that does not measure time."""
    return [
        {name: value for name, value in record.items() if name not in ("time", "data_time", "seconds")}
        for record in read_log(work_dir / "log.jsonl")
    ]


def one_more(epochs=3):
    return ["--resume", "--set", f"runner.max_epochs={epochs}"]


def test_one_epoch_and_one_more_are_two(train_tiny, trained, tmp_path):
    assert train_tiny(tmp_path, "--set", "runner.max_epochs=1")[0] == 0
    code, _, err = train_tiny(tmp_path, "--resume")
    assert code == 0
    assert "runner.max_epochs: 1 -> 2" in err
    assert curve(tmp_path) == curve(trained)
    whole, resumed = (checkpoints.read(folder / "last.pth") for folder in (trained, tmp_path))
    assert all(torch.equal(value, resumed["state_dict"][key]) for key, value in whole["state_dict"].items())
    for parameter, state in whole["optimizer"]["state"].items():
        assert torch.equal(state["exp_avg"], resumed["optimizer"]["state"][parameter]["exp_avg"])
    results = [json.loads((folder / "result.json").read_text()) for folder in (trained, tmp_path)]
    assert all(results[0][key] == results[1][key] for key in ("last", "best", "best_epoch", "iterations", "seed"))


def test_a_distilled_run_resumes_to_the_same_loss(train_tiny, tiny_config, trained, tmp_path):
    config = tmp_path / "tiny_distill.py"
    config.write_text(
        f"_base_ = [{str(tiny_config)!r}]\ndistill = dict(teacher=dict(checkpoint={str(trained / 'best.pth')!r}), "
        "pyramid=dict(full=(1, 0.5)), prediction=(1, 0.5), assistant=True)\n"
    )
    assert train_tiny(tmp_path / "whole", config=config)[0] == 0
    assert train_tiny(tmp_path / "parts", "--set", "runner.max_epochs=1", config=config)[0] == 0
    assert train_tiny(tmp_path / "parts", "--resume", config=config)[0] == 0
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    whole, parts = (checkpoints.read(tmp_path / name / "last.pth") for name in ("whole", "parts"))
    assert all(torch.equal(value, parts["distiller"][key]) for key, value in whole["distiller"].items())


def test_records_past_the_last_checkpoint_are_dropped(train_tiny, trained, used):
    with (used / "log.jsonl").open("a") as log:
        log.write('{"mode": "train", "epoch": 3, "iter": 7, "loss": 9.0}\n{"mode": "train", "epo')
    assert train_tiny(used, *one_more())[0] == 0
    assert curve(used)[:8] == curve(trained)
    assert [record["iter"] for record in read_log(used / "log.jsonl")] == [1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9]


def test_a_log_without_anything_past_the_point_is_kept_as_it_is(trained, tmp_path):
    shutil.copy(trained / "log.jsonl", tmp_path / "log.jsonl")
    forget_after(tmp_path / "log.jsonl", 6)
    assert (tmp_path / "log.jsonl").read_bytes() == (trained / "log.jsonl").read_bytes()


def test_a_finished_run_is_told_again_and_left_alone(train_tiny, used):
    before = {path: path.stat().st_mtime_ns for path in used.rglob("*")}
    code, out, err = train_tiny(used, "--resume")
    assert code == 0
    assert "finished already (2 epochs)" in err
    assert f"mAP {json.loads((used / 'result.json').read_text())['best']['bbox_mAP']:.4f}" in out
    assert {path: path.stat().st_mtime_ns for path in used.rglob("*")} == before


def test_a_finished_run_is_told_again_without_last_checkpoint_data_and_teacher(train_tiny, used, tmp_path):
    (used / "last.pth").unlink()
    before = {path: path.stat().st_mtime_ns for path in used.rglob("*")}
    gone = ("--teacher-checkpoint", tmp_path / "gone.pth", "--init", tmp_path / "gone.pth", "--set", "data_root=gone")
    code, out, err = train_tiny(used, "--resume", *gone)
    assert code == 0, err
    assert "finished already (2 epochs)" in err
    assert f"mAP {json.loads((used / 'result.json').read_text())['best']['bbox_mAP']:.4f}" in out
    assert {path: path.stat().st_mtime_ns for path in used.rglob("*")} == before


def test_resume_begins_anew_where_there_is_nothing(train_tiny, trained, tmp_path):
    (tmp_path / "log.jsonl").write_text("{}\n")  # of a run that was stopped in its first epoch
    assert train_tiny(tmp_path, "--resume", "--set", "runner.max_epochs=1")[0] == 0
    assert curve(tmp_path) == curve(trained)[:4]


def test_a_lower_learning_rate_takes_effect_and_is_told(train_tiny, used):
    code, _, err = train_tiny(used, *one_more(), "--set", "optimizer.lr=0.0001", "--set", "lr_config.step=[9]")
    assert code == 0
    assert "warning: a setting has changed since the run began: optimizer.lr: 0.001 -> 0.0001" in err
    assert [record["lr"] for record in curve(used)[8:11]] == [0.0001] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", 5], "--seed 5: the run that is resumed has seed 0; leave it out"),
        (["--set", "seed=5"], "seed = 5: the run that is resumed has seed 0; leave it out"),
        (["--set", "data.samples_per_gpu=6"], "3 batches an epoch, the config now gives 2"),
        (["--set", "model.bbox_head.stacked_convs=3"], "bbox_head.cls_convs.2.conv.weight is missing"),
    ],
)
def test_another_run_is_not_resumed(train_tiny, used, options, message):
    before = {path: path.read_bytes() for path in used.rglob("*") if path.is_file()}
    code, _, err = train_tiny(used, *one_more(), *options)
    assert code == 2
    assert message in err
    assert {path: path.read_bytes() for path in used.rglob("*") if path.is_file()} == before


def test_the_seed_is_told_alike_on_the_command_line_and_in_the_config(small_runs, tmp_path):
    first = small_runs.options(tmp_path, settings={"seed": 3, "runner.max_epochs": 1})
    assert train(first)[0].seed == 3
    longer = {"runner.max_epochs": 2}
    for settings, seed in (({}, 4), ({"seed": 4}, None)):
        again = replace(first, overrides={**longer, **settings}, seed=seed, resume=True)
        assert "the run that is resumed has seed 3" in str(train(again)[0])
    for number, (settings, seed) in enumerate([({}, None), ({"seed": 3}, None), ({"seed": 4}, 3)]):
        more = {"runner.max_epochs": 2 + number}
        result = train(replace(first, overrides={**more, **settings}, seed=seed, resume=True))[0]
        assert (result.seed, result.epochs) == (3, 2 + number)


@pytest.mark.parametrize("stop_after", [7, 9])  # at the end of the first epoch, and in the second
def test_a_run_is_not_ended_before_where_it_is(small_runs, tmp_path, stop_after):
    options = small_runs.options(tmp_path, settings={"runner.max_epochs": 3})
    assert isinstance(train(options, stop_after=7 + stop_after)[0], Interrupted)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    least = 2 if stop_after == 7 else 3
    for epochs in range(1, least):
        error, _ = train(replace(options, overrides={"runner.max_epochs": epochs}, resume=True))
        assert isinstance(error, TrainError)
        assert f"runner.max_epochs = {epochs} (--epochs)" in str(error)
        assert f"trained further, to epoch 2{'' if stop_after == 7 else ', step 17'}. " in str(error)
        assert f"Go on with {least} epochs or more" in str(error)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert train(replace(options, overrides={"runner.max_epochs": least}, resume=True))[0].epochs == least


def test_a_broken_last_checkpoint_is_named(train_tiny, used):
    (used / "last.pth").write_bytes((used / "last.pth").read_bytes()[:5000])
    code, _, err = train_tiny(used, *one_more())
    assert code == 2
    assert "last.pth: cut short" in err


def test_a_best_checkpoint_is_not_lost_where_the_last_is_gone(train_tiny, used):
    (used / "last.pth").unlink()
    code, _, err = train_tiny(used, *one_more())
    assert code == 2
    assert "no last.pth to go on from" in err
    assert "Put last.pth back" in err
    assert (used / "best.pth").exists()


# Processes that are started again after one has failed


@pytest.fixture
def attempt(monkeypatch):
    """`attempt(number, options, **of_train)` runs as a process of torchrun does, for the first time or again."""

    def call(number, options, broken=False, **arguments):
        with monkeypatch.context() as patch:
            patch.setattr(run, "is_worker", lambda: True)
            for module in (run, prepare):
                patch.setattr(module, "is_restart", lambda: number > 0)
            if broken:
                patch.setattr(run, "build_parts", lambda *_: (_ for _ in ()).throw(TrainError("broken")))
            return train(options, **arguments)

    return call


def test_a_restart_before_an_older_run_was_replaced_replaces_it(small_runs, attempt, tmp_path):
    older = small_runs.options(tmp_path / "w")
    assert train(older)[0].seed == 0
    assert isinstance(attempt(0, replace(older, overwrite=True, seed=5), stop_after=3)[0], Interrupted)
    newer = replace(older, overwrite=True, seed=6)  # another launch, beside what the former has left
    assert str(attempt(0, newer, broken=True)[0]) == "broken"
    assert checkpoints.read(tmp_path / "w" / "last.pth")["meta"]["seed"] == 5
    outcome, printed = attempt(1, newer)
    assert (outcome.seed, outcome.iterations) == (6, STEPS)
    assert "all are started again, from step 0" in printed


def test_a_restart_after_an_older_run_was_replaced_goes_on(small_runs, attempt, tmp_path):
    options = small_runs.options(tmp_path / "w")
    train(options)
    options = replace(options, overwrite=True, seed=5)
    assert isinstance(attempt(0, options, stop_after=8)[0], Interrupted)
    outcome, printed = attempt(1, options)
    assert (outcome.seed, outcome.iterations) == (5, STEPS)
    assert "all are started again, from step 9" in printed
    assert not (tmp_path / "w" / ".begun").exists()
