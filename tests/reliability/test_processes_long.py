"""Several processes, the long way: every signal, faults and kills, resume at another size, the launcher killed."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from launching import CSKD, alive, arguments_of, check_same_run, command, curve, end, notes, position, start, wait_for

from cskd_data.shapes import generate

pytestmark = pytest.mark.reliability

TINY = Path(__file__).parents[1] / "train" / "tiny_retinanet.py"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Ten training images and 21 of validation."""
    root = tmp_path_factory.mktemp("long") / "shapes"
    generate(root, images=10, val_images=21, size=(128, 128), seed=5)
    return root


@pytest.fixture(scope="module")
def written(root):
    """`written(folder, **disturbance)`, see `arguments_of`."""
    return partial(_written, root)


def _written(root, folder, **disturbance):
    return arguments_of(folder, TINY, root, **disturbance)


@pytest.fixture(scope="module")
def undisturbed(written, tmp_path_factory):
    """The folder of a whole run of two processes, saved every two steps."""
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = command(*written(folder), "--gpus", 2, "--checkpoint-every", 2)
    assert ended.code == 0, ended.err
    return folder


def wait_for_processes(folder, count):
    """Until so many are there, and the last of them is importing."""
    deadline = time.monotonic() + 100
    while len(alive(folder)) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(alive(folder)) == count
    time.sleep(0.5)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_every_signal_to_the_launcher_saves_the_step_and_ends_all(written, tmp_path, undisturbed, name):
    arguments = written(tmp_path, action=[name], to="launcher", step=3)
    ended = command(*arguments, "--gpus", 2)
    assert ended.code == 128 + getattr(signal, name)
    assert ended.err.count("error:") == 1
    assert "Traceback" not in ended.err
    assert "Abort" not in ended.err
    saved = f"step 3 is saved in {tmp_path / 'work/last.pth'}"
    assert f"error: stopped by {name}; {saved}. Go on with: cskd-train run" in ended.err
    assert position(tmp_path) == {"epoch": 0, "batches": 6, "inner": 3, "step": 3}
    assert alive(tmp_path / "work") == []
    if name == "SIGUSR1":  # what Slurm sends before the time is up
        assert command(*arguments, "--gpus", 2, "--resume").code == 0
        check_same_run(tmp_path, undisturbed)


def test_a_terminal_sends_sigint_to_all_and_the_launcher_once_more(written, tmp_path):
    process = start(*CSKD, *written(tmp_path), "--epochs", 400, "--gpus", 2, "--checkpoint-every", 1)
    wait_for(tmp_path / "work/last.pth", process)
    for number in sorted(alive(tmp_path / "work")):
        try:
            os.kill(number, signal.SIGINT)
        except ProcessLookupError:
            continue
    ended = end(process)
    assert ended.code == 130
    assert ended.err.count("error:") == 1
    assert "Traceback" not in ended.err
    step = int(re.search(r"step (\d+) is saved", ended.err).group(1))
    assert position(tmp_path)["step"] == step == len(notes(tmp_path, 0)) == len(notes(tmp_path, 1))
    assert alive(tmp_path / "work") == []


def test_a_signal_while_the_processes_start_ends_them_in_silence(written, tmp_path):
    process = start(*CSKD, *written(tmp_path), "--gpus", 2)
    wait_for_processes(tmp_path / "work", 3)
    process.send_signal(signal.SIGINT)
    ended = end(process)
    assert ended.code == 130
    assert ended.seconds < 25
    assert "Traceback" not in ended.err
    assert "error: stopped by SIGINT; nothing is saved in" in ended.err
    assert alive(tmp_path / "work") == []


def test_processes_whose_launcher_is_killed_save_and_end(written, tmp_path):
    process = start(*CSKD, *written(tmp_path), "--epochs", 400, "--gpus", 2, "--checkpoint-every", 1)
    wait_for(tmp_path / "work/last.pth", process)
    process.kill()
    assert alive(tmp_path / "work", patience=30) == []
    assert position(tmp_path)["step"] == len(notes(tmp_path, 0)) == len(notes(tmp_path, 1))


def test_a_killed_process_ends_the_run_and_resume_is_the_undisturbed_run(written, undisturbed, tmp_path):
    arguments = (*written(tmp_path, action=["SIGKILL"], step=8, rank=1), "--gpus", 2, "--checkpoint-every", 2)
    ended = command(*arguments)
    assert (tmp_path / "once").read_text() == "process 1 of 2, step 8"
    assert ended.code == 137
    assert ended.seconds < 60
    assert "Traceback" not in ended.err
    assert ended.err.count("error:") == 1
    assert "error: process 1 of the run was ended by SIGKILL" in ended.err
    assert "epoch 1, step 6 is saved in" in ended.err
    assert "Go on with: cskd-train run" in ended.err
    assert alive(tmp_path / "work", patience=10) == []
    assert command(*arguments, "--resume").code == 0
    check_same_run(tmp_path, undisturbed)


def test_after_a_fault_of_the_program_all_are_started_again(written, undisturbed, tmp_path):
    arguments = (*written(tmp_path, action="raise", step=4, rank=1), "--gpus", 2, "--checkpoint-every", 2)
    ended = command(*arguments, "--max-restarts", 1)
    assert ended.code == 0, ended.err
    assert ended.err.count("RuntimeError: a fault in the program") == 1
    assert "all are started again, from step 2" in ended.err
    check_same_run(tmp_path, undisturbed)


def test_a_fault_of_the_program_in_one_process_shows_one_traceback(written, tmp_path):
    ended = command(*written(tmp_path, action="raise", step=4, rank=1), "--gpus", 2)
    assert ended.code == 1
    assert ended.err.count("Traceback") == 1
    assert "RuntimeError: a fault in the program" in ended.err
    assert ended.err.count("error: process 1 of the run ended with exit code 1; its traceback is above") == 1
    assert ended.seconds < 60
    assert alive(tmp_path / "work", patience=10) == []


def test_a_stopped_run_goes_on_in_three_processes_and_takes_every_batch_once(written, tmp_path):
    arguments = written(tmp_path, action=["SIGTERM"], to="launcher", step=3)
    assert command(*arguments, "--gpus", 2).code == 143
    before = [name for rank in (0, 1) for note in notes(tmp_path, rank) for name in note["images"]]
    ended = command(*arguments, "--gpus", 3, "--resume", "--epochs", 1)
    assert ended.code == 0, ended.err
    assert "warning: 2 images a step until now, 3 from here on" in ended.err
    # Four batches are left: a step of three, and one that is filled up from the beginning of the epoch's list.
    after = [note["images"] for rank in range(3) for note in notes(tmp_path, rank)[0 if rank == 2 else 3 :]]
    flat = [name for names in after for name in names]
    assert len(before) == len(flat) == 6
    assert len(set(before + flat)) == 10
    assert len(set(flat) - set(before)) == 4
    assert curve(tmp_path / "work")[-1]["iter"] == 5


def test_an_image_that_one_process_cannot_read_is_named_once(written, tmp_path):
    broken = tmp_path / "shapes"
    generate(broken, images=10, val_images=2, size=(128, 128), seed=5)
    names = [image["file_name"] for image in json.loads((broken / "annotations/train.json").read_text())["images"]]
    victim = broken / "images" / names[0]
    whole = victim.read_bytes()
    # Header and end are right, which is what is checked before a run; of the picture itself nothing is left.
    victim.write_bytes(whole[: whole.index(b"\xff\xda")] + b"\xff\xd9")
    for workers in (0, 1):
        folder = tmp_path / str(workers)
        folder.mkdir()
        data = ("--set", f"data_root={broken}", "--workers", workers)
        ended = command(*written(folder), *data, "--gpus", 2)
        assert ended.code == 2
        assert ended.seconds < 60
        assert "learning rate" in ended.err  # not found before the run has begun
        assert ended.err.count("error:") == 1
        assert victim.name in ended.err[ended.err.index("error:") :]
        assert "Traceback" not in ended.err
        assert alive(folder / "work", patience=10) == []


def test_the_command_line_evaluates_alike_with_one_two_and_three_processes(undisturbed, root, tmp_path):
    found = []
    for size in (1, 2, 3):
        out = tmp_path / f"{size}.json"
        options = ("--set", f"data_root={root}", "--device", "cpu", "--json", "--out", out)
        ended = command("test", undisturbed / "work/best.pth", "--gpus", size, *options)
        assert ended.code == 0, ended.err
        result = json.loads(ended.out)
        assert result["processes"] == size
        assert result["images"] == 21
        found.append((result["metrics"], out.read_bytes()))
    assert found[0] == found[1] == found[2]


def test_an_evaluation_that_is_stopped_says_so_once(undisturbed, root):
    process = start(*CSKD, "test", undisturbed / "work/best.pth", "--gpus", 2, "--set", f"data_root={root}")
    wait_for_processes(undisturbed / "work", 3)
    process.send_signal(signal.SIGINT)
    ended = end(process)
    assert ended.code == 130
    assert ended.err.strip().splitlines()[-1] == "error: stopped by SIGINT; run the command again"
    assert "Abort" not in ended.err
    assert "Traceback" not in ended.err
