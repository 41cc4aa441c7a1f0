"""Workers that load images need open files: the limit is raised where it can be, else it is named with the way out."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys

import pytest

from cskd_train.engine import open_files
from cskd_train.engine.failures import explained_failures
from cskd_train.engine.open_files import allow_open_files, too_many_open_files
from cskd_train.errors import TrainError


@pytest.fixture
def limits(monkeypatch):
    """`limits(soft, hard)` are the system's; gives the list of those that are set."""
    made = []

    def put(soft, hard):
        monkeypatch.setattr(open_files.resource, "getrlimit", lambda which: (soft, hard))
        monkeypatch.setattr(open_files.resource, "setrlimit", lambda which, both: made.append(both))
        return made

    return put


@pytest.mark.parametrize(
    ("soft", "hard", "workers", "batch_size", "made"),
    [
        (1024, 1024, 4, 4, []),  # 168 are enough
        (100, 1024, 4, 4, [(168, 1024)]),
        (100, resource.RLIM_INFINITY, 4, 4, [(168, resource.RLIM_INFINITY)]),
        (100, 120, 4, 4, [(120, 120)]),  # less than wanted, enough for the pipes
        (100, 1024, 2, 16, [(212, 1024)]),
        (16, 16, 0, 4, []),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 64, 64, []),
    ],
)
def test_the_limit_is_raised_as_far_as_workers_need_and_the_system_lets_it(
    limits, soft, hard, workers, batch_size, made
):
    found = limits(soft, hard)
    allow_open_files(workers, batch_size)
    assert found == made


def test_a_limit_too_low_for_the_workers_is_refused_with_the_ways_out(limits):
    limits(48, 48)
    with pytest.raises(TrainError, match=r"may open 48 files, and 4 workers .* about 168: .*ulimit -n 4096.*=0"):
        allow_open_files(4, 4)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EMFILE, "Too many open files"), True),
        (OSError(errno.ENFILE, "Too many open files in system"), True),
        (RuntimeError("unable to open shared memory object </torch_1>: Too many open files (24)"), True),
        (RuntimeError("received 0 items of ancdata"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("shapes differ"), False),
    ],
)
def test_an_exhausted_limit_is_known_by_number_and_words_and_other_errors_pass(error, expected):
    assert too_many_open_files(error) is expected
    with pytest.raises(TrainError if expected else type(error)) as raised, explained_failures(None):
        raise error
    assert ("ulimit -n" in str(raised.value)) is expected


@pytest.mark.parametrize("command", ["run", "test"])
def test_a_command_under_a_hard_limit_stops_with_one_message(tmp_path, tiny_config, shapes_root, train_tiny, command):
    code, _, err = train_tiny(tmp_path / "work", "--set", "runner.max_epochs=1")
    assert code == 0, err
    words = (
        ["run", str(tiny_config), "--work-dir", str(tmp_path / "limited")]
        if command == "run"
        else ["test", str(tmp_path / "work" / "best.pth")]
    )
    settings = ["--set", f"data_root={shapes_root}", "--set", "data.workers_per_gpu=20"]
    done = subprocess.run(
        [sys.executable, "-m", "cskd_train", *words, *settings],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128)),
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "this process may open 128 files, and 20 workers" in line
