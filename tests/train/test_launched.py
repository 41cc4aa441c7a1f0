"""`cskd-train run --gpus 2`: what two processes write and say, and how the run ends when one of them does."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from launching import alive, command, curve, notes, written_config

from cskd_data.shapes import generate
from cskd_train.files import checkpoints

STEPS = 10  # two epochs of five


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Ten training images and two of validation."""
    root = tmp_path_factory.mktemp("launched") / "shapes"
    generate(root, images=10, val_images=2, size=(128, 128), seed=5)
    return root


@pytest.fixture(scope="module")
def train(root, tiny_config):
    """`train(folder, *arguments, hooks=[...])`: a run of two processes into `folder/work`, one image a batch."""

    def run(folder, *arguments, hooks=()):
        hooks = [{"type": "WriteDown", "folder": str(folder)}, *hooks]
        config = written_config(folder / "tiny.py", tiny_config, *hooks)
        options = ("--batch-size", 1, "--workers", 1, "--checkpoint-every", 2, "--device", "cpu")
        data = ("--set", f"data_root={root}")
        return command("run", config, "--work-dir", folder / "work", "--gpus", 2, *options, *data, *arguments)

    return run


@pytest.fixture(scope="module")
def undisturbed(train, tmp_path_factory):
    """A whole run, and the folder of its files."""
    folder = tmp_path_factory.mktemp("undisturbed")
    before = set(Path(tempfile.gettempdir()).glob("torchelastic_*"))
    ended = train(folder)
    left = set(Path(tempfile.gettempdir()).glob("torchelastic_*")) - before
    return ended, folder, left


def test_two_processes_train_one_model(undisturbed):
    ended, folder, _ = undisturbed
    assert ended.code == 0, ended.err
    first, second = notes(folder, 0), notes(folder, 1)
    assert [note["step"] for note in first] == list(range(1, STEPS + 1))
    assert [note["weights"] for note in first] == [note["weights"] for note in second]
    assert len({note["weights"] for note in first}) == STEPS
    for epoch in (slice(0, 5), slice(5, 10)):
        images = [name for note in first[epoch] + second[epoch] for name in note["images"]]
        assert len(images) == len(set(images)) == 10


def test_the_main_process_alone_writes_and_speaks(undisturbed):
    ended, folder, _ = undisturbed
    lines = [line for line in (ended.err + ended.out).splitlines() if line.strip()]
    twice = [line for line, count in Counter(lines).items() if count > 1]
    assert twice == []
    assert (
        sum("learning rate 0.001, 2 images a step (1 x 2 process(es) x 1 accumulated)" in line for line in lines) == 1
    )
    assert sum("epoch 1/2  step 1/5" in line for line in lines) == 1
    assert ended.err.count("val mAP") == 2
    assert ended.out.count("work/result.json") == 1
    assert "Warning" not in ended.err
    assert [record["iter"] for record in curve(folder / "work")] == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 10]
    result = json.loads((folder / "work/result.json").read_text())
    assert (result["processes"], result["iterations"]) == (2, STEPS)
    assert len(list((folder / "work/tf_logs").iterdir())) == 1


def test_nothing_of_the_processes_stays_behind(undisturbed):
    ended, folder, left = undisturbed
    assert alive(folder / "work") == []
    assert left == set()
    assert ended.seconds < 60  # with processes that load images, which the run has to end itself


@pytest.mark.reliability
def test_a_killed_process_is_started_again_and_the_run_ends_as_if_undisturbed(train, undisturbed, tmp_path):
    """The save before step 8 is that of step 6: step 7 is taken twice."""
    kill = {"type": "Disturb", "action": ["SIGKILL"], "step": 8, "rank": 1, "once": str(tmp_path / "once")}
    ended = train(tmp_path, "--max-restarts", 1, hooks=[kill])
    assert (tmp_path / "once").read_text() == "process 1 of 2, step 8"
    assert ended.code == 0, ended.err
    assert "error" not in ended.err
    assert "a process of the run failed: all are started again, from step 6" in ended.err
    assert [note["step"] for note in notes(tmp_path, 1)] == [1, 2, 3, 4, 5, 6, 7, 7, 8, 9, 10]
    assert curve(tmp_path / "work") == curve(undisturbed[1] / "work")
    ours, theirs = (checkpoints.read(folder / "work/last.pth") for folder in (tmp_path, undisturbed[1]))
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    assert all(torch.equal(value, theirs["state_dict"][key]) for key, value in ours["state_dict"].items())


def test_a_loss_that_is_not_finite_in_one_process_ends_all_with_one_message(train, tmp_path):
    poison = {"type": "Disturb", "action": "nan", "step": 4, "rank": 1, "once": str(tmp_path / "once")}
    ended = train(tmp_path, hooks=[poison])
    assert ended.code == 2
    assert ended.err.count("error:") == 1
    assert "Traceback" not in ended.err
    message = ended.err[ended.err.index("error:") :]
    assert "the loss is not finite: loss_cls = nan" in message
    assert "at epoch 1, in the step on images" in message
    assert message.count(".jpg") == 2  # one of each process
    assert "last.pth still holds step 2" in message
    assert alive(tmp_path / "work") == []
    assert [len(notes(tmp_path, rank)) for rank in (0, 1)] == [3, 3]
    assert checkpoints.read(tmp_path / "work/last.pth")["position"]["step"] == 2


def test_a_stopped_run_goes_on_in_one_process_and_takes_every_batch_once(train, train_tiny, root, tmp_path):
    """Two signals to the launcher, one after the other: the second one does not disturb the save."""
    twice = {"action": ["SIGTERM", "SIGTERM"], "to": "launcher", "step": 3}
    ended = train(tmp_path, hooks=[{"type": "Disturb", "once": str(tmp_path / "once"), **twice}])
    assert ended.code == 128 + 15
    assert ended.err.count("error:") == 1
    assert "Traceback" not in ended.err
    work_dir = tmp_path / "work"
    assert (
        f"error: stopped by SIGTERM; step 3 is saved in {work_dir / 'last.pth'}. Go on with: cskd-train run"
        in ended.err
    )
    assert "--gpus 2" in ended.err[ended.err.index("Go on with") :]
    assert ended.err.rstrip().endswith("--resume")
    assert alive(work_dir) == []
    assert checkpoints.read(work_dir / "last.pth")["position"] == {"epoch": 0, "batches": 6, "inner": 3, "step": 3}
    assert [len(notes(tmp_path, rank)) for rank in (0, 1)] == [3, 3]

    before = [name for rank in (0, 1) for note in notes(tmp_path, rank) for name in note["images"]]
    shutil.copy(tmp_path / "tiny.py", tmp_path / "again.py")
    sys.path.insert(0, str(Path(__file__).parent))
    options = ("--batch-size", 1, "--workers", 0, "--epochs", 1, "--device", "cpu", "--set", f"data_root={root}")
    code, _, err = train_tiny(work_dir, "--resume", *options, config=tmp_path / "again.py")
    assert code == 0, err
    assert "warning: 2 images a step until now, 1 from here on" in err
    after = [name for note in notes(tmp_path, 0)[3:] for name in note["images"]]
    assert len(before) == 6
    assert len(after) == 4
    assert len(set(before + after)) == 10
    assert curve(work_dir)[-1]["iter"] == 7
