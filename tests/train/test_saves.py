"""What is on disk when a run is stopped, fails, or finds the disk full; and going on from files of version 0.1.0."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import signal
from dataclasses import replace

import pytest
from mmdet.datasets.builder import PIPELINES

from cskd_data import files
from cskd_train.cli import main
from cskd_train.engine import run
from cskd_train.engine.progress import ProgressDisplay
from cskd_train.engine.signals import Interrupted
from cskd_train.errors import TrainError
from cskd_train.files import checkpoints

from .runs import STEPS, differences, last, log, train


@pytest.fixture(scope="module")
def whole(small_runs, tmp_path_factory):
    """The work dir of an undisturbed run."""
    work_dir = tmp_path_factory.mktemp("whole") / "w"
    assert train(small_runs.options(work_dir))[0].iterations == STEPS
    return work_dir


def same_as(work_dir, whole):
    assert log(work_dir) == log(whole)
    assert differences(last(work_dir), last(whole)) == []
    results = [json.loads((folder / "result.json").read_text()) for folder in (work_dir, whole)]
    assert all(results[0][key] == results[1][key] for key in ("last", "best", "best_epoch", "iterations"))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Signals

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_a_step_saves_that_step_and_gives_the_command_that_goes_on(
    small_runs, whole, tmp_path, number, capsys
):
    options = small_runs.options(tmp_path / "w")
    command = shlex.join(["cskd-train", "run", options.config, "--work-dir", str(tmp_path / "w"), "--device", "cpu"])
    outcome, _ = train(replace(options, command=command), stop_after=3, number=number)
    assert isinstance(outcome, Interrupted)
    assert outcome.exit_code == 128 + number
    name = signal.Signals(number).name
    start = f"stopped by {name}; step 4 is saved in {tmp_path / 'w' / 'last.pth'}. Go on with: "
    assert str(outcome) == f"{start}{command} --resume"
    assert last(tmp_path / "w")["position"] == {"epoch": 0, "batches": 4, "inner": 4, "step": 4}
    if number == signal.SIGHUP:
        with pytest.raises(SystemExit) as ended:
            main(shlex.split(str(outcome).removeprefix(start))[1:])
        assert ended.value.code in (None, 0), capsys.readouterr().err
        same_as(tmp_path / "w", whole)


@PIPELINES.register_module()
class SignalAsItIsBuilt:
    """mmcv makes an exception of the same type of what it sees here, which not every type bears."""

    number = None

    def __init__(self):
        if self.number:
            signal.raise_signal(self.number)

    def __call__(self, results):
        return results


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_the_first_step_ends_the_run_with_the_command_that_begins(
    small_runs, tmp_path, monkeypatch, number
):
    monkeypatch.setattr(SignalAsItIsBuilt, "number", number)
    settings = {"data.train.pipeline": [{"type": "SignalAsItIsBuilt"}]}
    options = small_runs.options(tmp_path / "w", settings=settings)
    outcome, _ = train(options)
    assert isinstance(outcome, Interrupted), repr(outcome)
    assert outcome.exit_code == 128 + number
    assert f"stopped by {signal.Signals(number).name} before the first step; nothing is saved" in str(outcome)
    words = shlex.join([*options.words, "--resume"])
    assert str(outcome).endswith(f"Go on with: {words}")
    assert words.startswith(f"cskd-train run {options.config} --work-dir {tmp_path / 'w'} --device cpu --set ")
    assert names(tmp_path / "w") == []


@pytest.mark.parametrize(
    ("flag", "said"), [("resume", "last.pth is as it was. Go on with:"), ("overwrite", "is as it was. Begin with:")]
)
def test_a_signal_before_the_first_step_leaves_an_older_run_as_it_was(small_runs, used_up, monkeypatch, flag, said):
    before = {path: path.read_bytes() for path in used_up.rglob("*") if path.is_file()}
    build = run.build_parts
    monkeypatch.setattr(run, "build_parts", lambda *a: (signal.raise_signal(signal.SIGTERM), build(*a)))
    outcome, _ = train(small_runs.options(used_up, settings={"runner.max_epochs": 3}, **{flag: True}))
    assert isinstance(outcome, Interrupted)
    assert said in str(outcome)
    assert str(outcome).endswith(f"--{flag}")
    assert {path: path.read_bytes() for path in used_up.rglob("*") if path.is_file()} == before


@pytest.fixture
def used_up(whole, tmp_path):
    """A copy of the undisturbed run."""
    return shutil.copytree(whole, tmp_path / "used")


def disturb_evaluation(monkeypatch, disturb):
    """Call `disturb` after the second image of the first evaluation."""
    calls = []

    def evaluating(self, done, total):
        calls.append(done)
        if len(calls) == 2:
            disturb()

    monkeypatch.setattr(ProgressDisplay, "evaluating", evaluating)


def interrupt():
    signal.raise_signal(signal.SIGINT)


def fail():
    raise TrainError("an image that cannot be read")


def crash():
    raise AttributeError("as mmdet's datasets raise it")


@pytest.mark.parametrize(
    "disturb",
    [interrupt, lambda: (interrupt(), interrupt()), fail, crash],
    ids=["signal", "two signals", "error", "crash"],
)
def test_what_ends_an_evaluation_loses_nothing_and_resume_evaluates_first(
    small_runs, whole, tmp_path, monkeypatch, disturb
):
    options = small_runs.options(tmp_path / "w")
    with monkeypatch.context() as patch:
        disturb_evaluation(patch, disturb)
        if disturb is crash:
            with pytest.raises(AttributeError):
                train(options)
        else:
            outcome, _ = train(options)
            assert isinstance(outcome, TrainError)
            if disturb is not fail:
                assert f"epoch 1 is saved in {tmp_path / 'w' / 'last.pth'}" in str(outcome)
    saved = last(tmp_path / "w")
    assert saved["position"] == {"epoch": 1, "batches": 0, "inner": 0, "step": 7}
    assert saved["run"]["evaluated_epoch"] is None
    assert not (tmp_path / "w" / "best.pth").exists()
    assert [record["mode"] for record in log(tmp_path / "w")] == ["train"] * 7
    order = []
    for name in ("_train_epoch", "_evaluate"):
        method = getattr(run.Run, name)
        monkeypatch.setattr(run.Run, name, lambda self, name=name, method=method: (order.append(name), method(self))[1])
    train(replace(options, resume=True))
    assert order == ["_evaluate", "_train_epoch", "_evaluate"]
    same_as(tmp_path / "w", whole)


def test_one_signal_lets_a_save_finish_and_the_next_step_is_saved_too(small_runs, whole, tmp_path, monkeypatch):
    options = small_runs.options(tmp_path / "w", checkpoint_every=2)
    with monkeypatch.context() as patch:
        in_a_save(patch, interrupt, at=(2,))
        outcome, _ = train(options)
    assert isinstance(outcome, Interrupted)
    assert last(tmp_path / "w")["position"]["step"] == 3
    train(replace(options, resume=True))
    same_as(tmp_path / "w", whole)


@pytest.mark.parametrize("part", ["write", "fsync"])
def test_a_second_signal_in_a_save_waits_for_the_file_and_for_no_other_step(
    small_runs, whole, tmp_path, monkeypatch, part
):
    options = small_runs.options(tmp_path / "w", checkpoint_every=2)
    with monkeypatch.context() as patch:
        in_a_save(patch, lambda: (interrupt(), interrupt()), at=(4,), part=part)
        outcome, _ = train(options)
    assert isinstance(outcome, Interrupted)
    assert "stopped by SIGINT; step 4 is saved in" in str(outcome)
    assert last(tmp_path / "w")["position"]["step"] == 4
    assert [name for name in names(tmp_path / "w") if name.startswith(".")] == []
    train(replace(options, resume=True))
    same_as(tmp_path / "w", whole)


def in_a_save(patch, disturb, at, part="write"):
    """Call `disturb` in the middle of writing the `last.pth` of a step."""
    save, fsync = checkpoints.save, os.fsync

    def saved(path, contents):
        if path.name == "last.pth" and contents["position"]["step"] in at:
            with pytest.MonkeyPatch.context() as inner:
                if part == "fsync":
                    inner.setattr(files.os, "fsync", lambda descriptor: (disturb(), fsync(descriptor)))
                else:
                    inner.setattr(checkpoints.torch, "save", lambda *a: halfway(*a, disturb))
                save(path, contents)
        else:
            save(path, contents)

    patch.setattr(checkpoints, "save", saved)


def halfway(contents, file, disturb, save=checkpoints.torch.save):
    """torch's writer, disturbed after it has written some records."""
    write, count = file.write, itertools.count()

    class Disturbed:
        def write(self, data):
            if next(count) == 5:
                disturb()
            return write(data)

        def __getattr__(self, name):
            return getattr(file, name)

    save(contents, Disturbed())
    assert next(count) > 6


def test_what_a_killed_save_left_is_swept_when_the_run_goes_on(small_runs, tmp_path):
    outcome, _ = train(small_runs.options(tmp_path), stop_after=2)
    assert isinstance(outcome, Interrupted)
    for name in (".last.pth.k7x_2abc.tmp", ".best.pth.q1.tmp", ".log.jsonl.zz.tmp", ".hidden"):
        (tmp_path / name).write_bytes(b"half")
    assert train(small_runs.options(tmp_path, resume=True))[0].iterations == STEPS
    assert names(tmp_path) == [".hidden", "best.pth", "config.json", "last.pth", "log.jsonl", "result.json", "tf_logs"]


def test_a_checkpoint_takes_the_place_of_a_link_to_that_of_another_run(tmp_path):
    checkpoints.save(tmp_path / "other.pth", {"state_dict": {}, "meta": {"epoch": 1}})
    before = (tmp_path / "other.pth").read_bytes()
    (tmp_path / "last.pth").symlink_to("other.pth")
    checkpoints.save(tmp_path / "last.pth", {"state_dict": {}, "meta": {"epoch": 2}})
    assert (tmp_path / "other.pth").read_bytes() == before
    assert not (tmp_path / "last.pth").is_symlink()
