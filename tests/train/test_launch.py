"""What is found before a process is started, and what the launcher makes of processes that failed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from cskd_train.engine import launch as launching
from cskd_train.engine.distributed import LAUNCHED, ConnectionLost, is_launched, is_restart, joined
from cskd_train.engine.loader import Position
from cskd_train.engine.prepare import RunOptions, way_on
from cskd_train.engine.signals import Interrupted, stop_on_signals, taken_signals


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """`launch` writes into the environment, for the processes that it starts."""
    for name in (LAUNCHED, "OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID", "WORLD_SIZE", "RANK", "TORCHELASTIC_ERROR_FILE"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
        if name != "OMP_NUM_THREADS":
            monkeypatch.delenv(name)


@pytest.fixture
def launcher(monkeypatch):
    """torch's launcher without processes: `launcher.then(action)` says what happens instead; `started` lists calls."""

    class Launcher:
        started: list = []  # noqa: RUF012
        action = staticmethod(lambda config: None)

        def then(self, action):
            self.action = action

        def __call__(self, config, python):
            def run(*arguments):
                self.started.append((config, arguments))
                return self.action(config)

            return run

    launcher = Launcher()
    launcher.started = []
    monkeypatch.setattr(launching, "elastic_launch", launcher)
    return launcher


def failure(folder, rank, code, kind=None, message="", at=100):
    """What torch says of a process that failed; with a `kind`, it left a message."""
    file = folder / str(rank) / "error.json"
    file.parent.mkdir(parents=True)
    if kind:
        details = {"py_callstack": "", "timestamp": str(at)}
        report = {"message": message, "extraInfo": details, "errorCode": code, "kind": kind}
        file.write_text(json.dumps({"message": report}))
    found = ProcessFailure(rank, 1000 + rank, code, str(file))
    found.timestamp = at
    return found


def launched(launcher, failures):
    def fail(config):
        raise ChildFailedError("cskd", failures)

    launcher.then(fail)
    with pytest.raises(launching.WorkerFailed) as failed:
        launching.launch(2, ["run"], lambda: "GO ON")
    return failed.value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "no_such.key=1"], "no_such"),
        (["--set", "distill.teacher.checkpoint=/no/teacher.pth"], "/no/teacher.pth"),
        (["--set", "data.train.ann_file=annotations/none.json"], "none.json"),
        (["--set", "runner.max_epochs=0"], "runner.max_epochs = 0"),
    ],
)
def test_bad_input_is_found_before_a_process_is_started(train_tiny, launcher, tmp_path, options, message):
    code, out, err = train_tiny(tmp_path / "w", "--gpus", 2, "--device", "cpu", *options)
    assert code == 2
    assert out == ""
    assert err.count("error:") == 1
    assert message in err
    assert "Traceback" not in err
    assert launcher.started == []


def test_a_used_work_dir_is_found_before_a_process_is_started(train_tiny, launcher, used):
    code, _, err = train_tiny(used, "--gpus", 2, "--device", "cpu")
    assert code == 2
    assert "already holds a finished run" in err
    assert launcher.started == []
    assert train_tiny(used, "--gpus", 2, "--device", "cpu", "--resume")[0] == 0  # the counterpart: one is started
    assert len(launcher.started) == 1


def test_a_missing_checkpoint_is_found_before_a_process_is_started(command_line, launcher, tmp_path):
    code, _, err = command_line("test", tmp_path / "none.pth", "--gpus", 2, "--device", "cpu")
    assert code == 2
    assert "none.pth" in err
    assert launcher.started == []


def test_more_processes_than_gpus_are_refused_with_both_numbers(train_tiny, launcher, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("cuda", "auto"):
        code, _, err = train_tiny(tmp_path / "w", "--gpus", 4, "--device", device)
        assert code == 2
        assert "4 processes on a machine where torch sees 2 GPU(s)" in err
    assert launcher.started == []
    launching.check_processes(2, "cuda")
    launching.check_processes(4, "cpu")


def test_gpus_is_refused_where_torchrun_has_started_the_process(train_tiny, launcher, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    code, _, err = train_tiny(tmp_path / "w", "--gpus", 2, "--device", "cpu")
    assert code == 2
    assert "--gpus starts processes, and torchrun has started this one: leave --gpus out" in err
    assert launcher.started == []


def test_a_process_that_the_launcher_started_does_not_launch(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "cskd-1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not is_launched()
    monkeypatch.setenv(LAUNCHED, "1")
    assert is_launched()
    assert not is_restart()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert is_restart()
    launching.check_processes(2, "cpu")


def test_the_processes_get_the_command_line_and_a_share_of_the_cores(launcher, monkeypatch):
    monkeypatch.setattr(launching, "usable_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    launching.launch(3, ["run", "c.py", "--gpus", "3"], str, max_restarts=2)
    config, arguments = launcher.started[0]
    assert arguments == ("-m", "cskd_train", "run", "c.py", "--gpus", "3")
    assert (config.nproc_per_node, config.max_nodes, config.max_restarts) == (3, 1, 2)
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert os.environ[LAUNCHED] == str(os.getpid())
    assert not Path(config.logs_specs.root_log_dir).exists()
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    launching.launch(3, [], str)
    assert os.environ["OMP_NUM_THREADS"] == "5"


def test_the_message_is_that_of_the_process_that_failed_first(launcher, tmp_path):
    found = launched(
        launcher,
        {
            0: failure(tmp_path, 0, 2, ConnectionLost.__name__, "the connection is lost", at=99),
            1: failure(tmp_path, 1, 2, "TrainError", "image 7.jpg cannot be read", at=100),
            2: failure(tmp_path, 2, 2, "TrainError", "later", at=101),
        },
    )
    assert str(found) == "image 7.jpg cannot be read"
    assert found.exit_code == 2


@pytest.mark.parametrize("ended", ["by the launcher's signal", "with a message about it"])
def test_a_process_that_the_launcher_ended_is_not_the_reason(launcher, tmp_path, ended):
    if ended == "with a message about it":
        other = failure(tmp_path, 0, 143, Interrupted.__name__, "stopped by SIGTERM", at=100)
    else:
        other = failure(tmp_path, 0, -signal.SIGTERM, at=100)
    found = launched(launcher, {0: other, 1: failure(tmp_path, 1, -signal.SIGKILL, at=100)})
    assert str(found) == (
        "process 1 of the run was ended by SIGKILL (by the kernel, perhaps, for want of memory), and the others with "
        "it; GO ON"
    )
    assert found.exit_code == 137


def test_a_process_that_somebody_stopped_says_so(launcher, tmp_path):
    found = launched(
        launcher, {rank: failure(tmp_path, rank, 143, Interrupted.__name__, "stopped by SIGTERM") for rank in (0, 1)}
    )
    assert (str(found), found.exit_code) == ("stopped by SIGTERM", 143)


def test_a_fault_of_the_program_leaves_its_traceback_and_exit_code_1(launcher, tmp_path):
    lost = failure(tmp_path, 0, 2, ConnectionLost.__name__, "the connection is lost")
    found = launched(launcher, {0: lost, 1: failure(tmp_path, 1, 1)})
    assert str(found) == "process 1 of the run ended with exit code 1; its traceback is above; GO ON"
    assert found.exit_code == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_the_first_signal_goes_to_the_processes_and_the_next_ones_nowhere(launcher, number):
    before = signal.getsignal(number)

    def stopped(config):
        try:
            signal.raise_signal(number)
        except SignalException as error:
            for again in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
                signal.raise_signal(again)  # while the processes save
            raise error from None

    launcher.then(stopped)
    with pytest.raises(Interrupted, match=f"stopped by {number.name}; GO ON") as interrupted:
        launching.launch(2, ["run"], lambda: "GO ON")
    assert interrupted.value.exit_code == 128 + number
    assert signal.getsignal(number) is before


def test_what_kept_a_stopped_process_from_saving_is_told(launcher):
    def stopped(config):
        folder = Path(config.logs_specs.root_log_dir) / "run" / "attempt_0"
        failure(folder, 0, 2, "TrainError", "last.pth: no space left on device")
        failure(folder, 1, 143, Interrupted.__name__, "stopped by SIGTERM")
        raise SignalException("stopped", signal.SIGTERM)

    launcher.then(stopped)
    with pytest.raises(Interrupted, match=r"stopped by SIGTERM; last\.pth: no space left on device; GO ON"):
        launching.launch(2, ["run"], lambda: "GO ON")


def test_a_run_under_nohup_outlives_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in taken_signals()
        with stop_on_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.SIGHUP in taken_signals()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process that its parent is gone")
def test_a_process_whose_launcher_is_killed_gets_sigterm(tmp_path):
    worker = (
        "import pathlib, signal, sys, time\nfrom cskd_train.engine.launch import end_with_launcher\n"
        "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path('stopped').touch(), sys.exit()))\n"
        "end_with_launcher()\npathlib.Path('ready').touch()\ntime.sleep(60)"
    )
    parent = (
        "import os, subprocess, sys\nos.environ['CSKD_LAUNCHED'] = str(os.getpid())\n"
        f"subprocess.run([sys.executable, '-c', {worker!r}])"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=tmp_path)
    for name in ("ready", "stopped"):
        deadline = time.monotonic() + 60
        while not (tmp_path / name).exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (tmp_path / name).exists(), name
        process.kill()
    process.wait()


def test_the_way_on_names_gpus_where_they_were_given_and_torchrun_where_it_was_used(monkeypatch, tmp_path):
    options = RunOptions("c.py", tmp_path, command="cskd-train run c.py --gpus 2 --overwrite")
    saved = Position(epoch=1, batches=4, inner=2, step=7)
    assert way_on(options, saved).endswith("Go on with: cskd-train run c.py --gpus 2 --resume")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert way_on(options, saved) == (
        f"epoch 1, step 7 is saved in {tmp_path / 'last.pth'}. Go on by starting all processes again, with --resume"
    )


def test_a_lost_connection_is_an_error_of_its_own(monkeypatch):
    monkeypatch.setattr("cskd_train.engine.distributed.is_worker", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr("cskd_train.engine.distributed._join", lambda backend: None)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for error in (
        RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4242"),
        torch.distributed.DistBackendError("NCCL error: remote process exited"),
        torch.distributed.DistStoreError("wait timeout"),
    ):
        with pytest.raises(ConnectionLost, match="see that one's message"), joined("cpu"):
            raise error
    with pytest.raises(RuntimeError, match="a fault"), joined("cpu"):
        raise RuntimeError("a fault in the program")
