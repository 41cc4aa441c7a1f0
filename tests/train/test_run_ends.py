"""What ends a run before its end: numbers that are not finite, and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from cskd_train.engine.records import read_log
from cskd_train.engine.signals import Interrupted, stop_on_signals
from cskd_train.files import checkpoints


def losses(work_dir):
    return [record["loss"] for record in read_log(work_dir / "log.jsonl") if record["mode"] == "train"]


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_epoch(train_tiny, used):
    before = (used / "last.pth").read_bytes()
    code, _, err = train_tiny(used, "--resume", "--set", "runner.max_epochs=4", "--set", "optimizer.lr=1e30")
    assert code == 2
    message = err[err.index("error: ") :]
    assert "the loss is not finite: loss_" in message
    assert "at epoch 3, in the step on images" in message
    assert ".jpg" in message
    assert "last.pth still holds epoch 2" in message
    assert "Lower the learning rate" in message
    assert (used / "last.pth").read_bytes() == before


def test_weights_that_are_not_finite_are_never_saved(train_tiny, tmp_path):
    # In the last iteration of an epoch no loss follows that could tell: here the epoch has but one.
    sgd = {"type": "SGD", "lr": 1e30, "weight_decay": 1e30}
    options = [f"optimizer={sgd}", "optimizer_config=None", "lr_config=None", "data.samples_per_gpu=12"]
    code, _, err = train_tiny(tmp_path, *[part for option in options for part in ("--set", option)])
    assert code == 2
    assert "is not finite after step 1. Nothing had been saved yet" in err
    assert not (tmp_path / "last.pth").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_before_the_first_step_a_signal_ends_the_run_at_once(number):
    with stop_on_signals(), pytest.raises(Interrupted) as stopped:
        signal.raise_signal(number)
    assert stopped.value.exit_code == 128 + number


def test_the_first_signal_waits_for_the_step_and_the_second_does_not():
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals() as stop:
        stop.deferred = True
        stop.check()
        signal.raise_signal(signal.SIGINT)
        assert stop.requested()
        with pytest.raises(Interrupted, match="stopped by SIGINT") as stopped:
            stop.check()
        assert stopped.value.exit_code == 130
        with pytest.raises(Interrupted, match="stopped by SIGTERM"):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_signal_cuts_off_no_file(train_tiny, tmp_path, monkeypatch):
    save = checkpoints.save

    def signalled(path, contents):
        for _ in range(2):  # as where one goes to the process group, and the parent passes it on too
            signal.raise_signal(signal.SIGTERM)
        save(path, contents)

    monkeypatch.setattr(checkpoints, "save", signalled)
    code, _, err = train_tiny(tmp_path, "--set", "evaluation.interval=2")
    assert code == 143, err
    assert "stopped by SIGTERM; epoch 1 is saved" in err
    assert checkpoints.load_checkpoint(tmp_path / "last.pth").meta["epoch"] == 1


def test_sigterm_ends_the_run_and_resume_goes_on(train_tiny, trained, shapes_root, tiny_config, tmp_path):
    work_dir = tmp_path / "w"
    options = ["--set", f"data_root={shapes_root}", "--set", "runner.max_epochs=500"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cskd_train.cli", "run", str(tiny_config), "--work-dir", str(work_dir), *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 200
    while not (work_dir / "last.pth").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "error: stopped by SIGTERM; epoch " in err
    assert f"Go on with: cskd-train run {tiny_config} --work-dir {work_dir} " in err
    assert "runner.max_epochs=500 --resume" in err
    assert "Traceback" not in err
    done = checkpoints.load_checkpoint(work_dir / "last.pth").meta["epoch"]
    assert train_tiny(work_dir, "--resume", "--set", f"runner.max_epochs={done + 1}")[0] == 0
    assert len(losses(work_dir)) == 3 * (done + 1)
    assert losses(work_dir)[:3] == losses(trained)[:3]
