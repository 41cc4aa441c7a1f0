"""A process that dies by SIGKILL at any moment of a save leaves the older file or the new one, whole."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cskd_data.files import sweep
from cskd_train.files.checkpoints import read

from .killed_save import expected, save

pytestmark = pytest.mark.reliability

KILLS = 25  # of each writer


def start(*arguments):
    return subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed_save.py")), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module", params=["train", "deploy"])
def writer(request):
    return request.param


@pytest.fixture(scope="module")
def operations(writer, tmp_path_factory):
    """The file operations of a save that nobody disturbs, in their order."""
    done = start(writer, tmp_path_factory.mktemp("undisturbed") / "last.pth", 0)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.fixture(scope="module")
def moments(operations):
    """Where to kill: before and after each operation, of the writes only so many that there are `KILLS` in all."""
    writes = [place for place, name in enumerate(operations) if name == "write"]
    chosen = [(place, when) for place, name in enumerate(operations) if name != "write" for when in ("before", "after")]
    left = KILLS - len(chosen)
    assert left >= 7
    spread = [writes[round(i * (len(writes) - 1) / (left - 1))] for i in range(left)]
    return chosen + [(place, "after" if i % 2 else "before") for i, place in enumerate(spread)]


def test_the_moments_are_spread_over_every_operation(writer, operations, moments):
    flush = ["flush"] * (2 if writer == "train" else 1)  # one is torch.save's own
    order = ["open", "lock", "write", *flush, "fsync file", "chmod", "rename", "close", "fsync folder"]
    assert re.sub(r"(write )+", "write ", " ".join(operations)) == " ".join(order)
    assert len(set(moments)) == KILLS
    places = [place for place, _ in moments]
    writes = [place for place, name in enumerate(operations) if name == "write"]
    assert {writes[0], writes[-1]} <= set(places)
    assert any(abs(place - (writes[0] + writes[-1]) / 2) <= len(writes) / 8 for place in places)


@pytest.mark.parametrize("kill", range(KILLS))
def test_a_kill_leaves_the_older_file_or_the_new_one_and_the_next_save_sweeps(
    writer, operations, moments, kill, tmp_path
):
    target, number = tmp_path / "last.pth", kill + 1
    target.write_bytes(expected(number - 1))
    place, when = moments[kill]

    killed = start(writer, target, number, place, when)

    assert killed.returncode == -signal.SIGKILL, killed.stderr
    rename = operations.index("rename")
    renamed = place > rename or (place, when) == (rename, "after")
    held = number if renamed else number - 1
    assert target.read_bytes() == expected(held)
    assert read(target)["meta"]["epoch"] == held
    leftovers = [name for name in os.listdir(tmp_path) if name != "last.pth"]
    opened = (place, when) != (0, "before")
    assert len(leftovers) == (1 if opened and not renamed else 0)

    sweep([target])
    save(writer, target, number)()
    assert os.listdir(tmp_path) == ["last.pth"]
    assert target.read_bytes() == expected(number)
