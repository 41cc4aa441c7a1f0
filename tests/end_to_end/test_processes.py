"""A process that a benchmark has started ends with all that it has started itself."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# Starts another process, says its id in a file, and waits; each ends by SIGTERM as it likes.
FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(100)
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FAMILY


@pytest.fixture
def processes(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("processes")


def ended(file):
    """Whether the process of a file is gone, or will be in a moment."""
    pid = waited_for(file)
    for _ in range(200):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def waited_for(file):
    for _ in range(400):
        if file.exists() and file.read_text():
            return int(file.read_text())
        time.sleep(0.05)
    raise AssertionError(f"{file} was not written")


@pytest.mark.parametrize("script", [FAMILY, STUBBORN], ids=["heeds SIGTERM", "ignores it"])
def test_one_that_takes_too_long_leaves_nothing_behind(processes, tmp_path, script):
    with pytest.raises(subprocess.TimeoutExpired):
        processes.run([sys.executable, "-c", script, tmp_path / "pid"], timeout=3, grace=0.5)
    assert ended(tmp_path / "pid")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_one_leaves_nothing_behind_when_the_benchmark_is_stopped(tmp_path, number):
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # ignored in a shell's background
    way = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})"
    caller = f"{heard}; {way}; import processes; processes.run(sys.argv[1:])"
    # A killed caller tells nobody: the process hears of it from the system and ends its own.
    script = FAMILY.replace("import subprocess", "import signal, subprocess").replace(
        "\ntime.sleep", "\nsignal.signal(signal.SIGTERM, lambda *_: (child.kill(), sys.exit()))\ntime.sleep", 1
    )
    command = [sys.executable, "-c", caller, sys.executable, "-c", script, tmp_path / "pid"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as benchmark:
        waited_for(tmp_path / "pid")
        os.kill(benchmark.pid, number)
        assert benchmark.wait(20) != 0
    assert ended(tmp_path / "pid")


def test_output_and_code_are_those_of_the_command(processes):
    done = processes.run([sys.executable, "-c", "import sys; print('a'); print('b', file=sys.stderr); sys.exit(4)"])
    assert (done.returncode, done.stdout, done.stderr) == (4, "a\n", "b\n")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_part_of_the_benchmarks_of_a_gpu_that_takes_too_long_is_ended_whole(processes, tmp_path):
    gpu = importlib.import_module("gpu")
    arguments = ["-c", FAMILY, str(tmp_path / "pid")]
    found = gpu.measure(gpu.Part("slow", lambda device, out: arguments, gpu.read_lines, longest=3), "cpu")
    assert (found["status"], found["said"]) == ("failed", "stopped after 3 s")
    assert ended(tmp_path / "pid")


def test_a_command_of_the_data_benchmark_ends_with_its_processes_when_it_is_stopped(monkeypatch, processes, tmp_path):
    data_check = importlib.import_module("data_check")
    (tmp_path / "cskd_train").mkdir()
    (tmp_path / "cskd_train" / "__init__.py").touch()
    (tmp_path / "cskd_train" / "__main__.py").write_text(FAMILY)
    monkeypatch.chdir(tmp_path)  # whose package is run in place of the real one
    monkeypatch.setattr(data_check.os, "wait4", lambda *_: waited_for(tmp_path / "pid") and sys.exit("stopped"))
    with pytest.raises(SystemExit, match="stopped"):
        data_check.measured([str(tmp_path / "pid")], str(tmp_path))
    assert ended(tmp_path / "pid")
