"""Runs that are killed at any moment: nothing that was saved is lost, and the end is that of the undisturbed run."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cskd_train.engine.signals import Interrupted
from cskd_train.files import checkpoints

from ..train import runs

pytestmark = pytest.mark.reliability

KILLS = 20
# A process of its own: it registers the hook of the config, and says when it begins to train.
PROGRAM = (
    "import sys; import cskd_train.mm; sys.path.insert(0, {folder!r}); import runs; from pathlib import Path\n"
    "from cskd_train.engine.prepare import RunOptions; from cskd_train.engine import run\n"
    "train = run.Run._train_epochs\n"
    "def said(self): print('training', flush=True); train(self)\n"
    "run.Run._train_epochs = said\n"
    "options = RunOptions({config!r}, Path({work_dir!r}), resume=True, device='cpu', checkpoint_every=1,\n"
    "    overrides={settings!r})\n"
    "outcome, text = runs.train(options)\n"
    "print(outcome if isinstance(outcome, Exception) else 'through', flush=True)\n"
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return runs.SmallRuns(tmp_path_factory.mktemp("small_runs"))


def started(small, work_dir, family, distilled, settings):
    """The process of a run, as it begins to train."""
    code = PROGRAM.format(
        folder=str(Path(runs.__file__).parent),
        config=str(small.config(family, distilled)),
        work_dir=str(work_dir),
        settings=settings,
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert process.stdout.readline() == "training\n"
    return process


def step_of(work_dir):
    last = work_dir / "last.pth"
    return checkpoints.read(last)["position"]["step"] if last.exists() else 0


@pytest.mark.parametrize(
    ("family", "distilled", "settings"),
    [
        ("RetinaNet", False, {"ema": {"decay": 0.9, "warmup": 3}, "runner.max_epochs": 8}),
        ("FasterRCNN", True, {"amp": "fp16", "data.workers_per_gpu": 2, "runner.max_epochs": 4}),
    ],
    ids=["alone", "sampled and distilled, workers"],
)
def test_a_run_that_is_killed_again_and_again_ends_as_the_undisturbed_one(small, tmp_path, family, distilled, settings):
    whole, work_dir = tmp_path / "whole", tmp_path / "killed"
    outcome, _ = runs.train(small.options(whole, family, distilled, settings=settings))
    seconds = outcome.seconds
    delays = random.Random(12)
    kills, reached, half_saved, unevaluated = 0, 0, 0, 0
    while kills < KILLS:
        process = started(small, work_dir, family, distilled, settings)
        time.sleep(delays.uniform(0.02, max(3 * seconds / KILLS, 0.2)))
        process.kill()
        process.communicate()
        killed = process.returncode == -signal.SIGKILL
        assert killed or process.returncode == 0
        kills += killed
        if (work_dir / "result.json").exists():  # it was through: from the beginning
            assert runs.log(work_dir) == runs.log(whole)
            shutil.rmtree(work_dir)
            reached = 0
            continue
        step = step_of(work_dir)
        assert step >= reached
        reached = step
        half_saved += any(path.name.startswith(".") for path in work_dir.iterdir())
        if (work_dir / "last.pth").exists():
            contents = checkpoints.read(work_dir / "last.pth")
            position = contents["position"]
            unevaluated += position["batches"] == 0 and contents["run"]["evaluated_epoch"] != position["epoch"]
    outcome, _ = runs.train(small.options(work_dir, family, distilled, settings=settings, resume=True))
    assert outcome.epochs == settings["runner.max_epochs"], outcome
    assert runs.log(work_dir) == runs.log(whole)
    assert runs.differences(runs.last(work_dir), runs.last(whole)) == []
    assert [path.name for path in work_dir.iterdir() if path.name.startswith(".")] == []
    print(f"{kills} kills: {half_saved} in a save, {unevaluated} before the evaluation of an epoch")


CASES = [
    (family, distilled, {**settings, **workers}, every)
    for family in ("RetinaNet", "FasterRCNN")
    for distilled in (False, True)
    for settings in (
        {},
        {"ema": {"decay": 0.9, "warmup": 3}},
        {"accumulate": 2},
        {"amp": "bf16"},
        {"amp": "fp16", "ema": {"decay": 0.9, "warmup": 3}, "accumulate": 2},
    )
    for workers, every in (({}, None), ({"data.workers_per_gpu": 2}, 2))
]


@pytest.mark.parametrize(("family", "distilled", "settings", "every"), CASES, ids=str)
def test_every_kind_of_run_resumes_to_the_last_bit_from_several_steps(
    small, tmp_path, family, distilled, settings, every
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    steps = 8 if "accumulate" in settings else runs.STEPS
    assert runs.train(small.options(whole, family, distilled, settings=settings))[0].iterations == steps
    for after in (1, 5) if "accumulate" in settings else (1, 8, 12):
        options = small.options(
            parts, family, distilled, settings=settings, checkpoint_every=every, resume=(parts / "last.pth").exists()
        )
        outcome, _ = runs.train(options, stop_after=after)
        assert isinstance(outcome, Interrupted), outcome
        assert step_of(parts) == after + 1
    assert runs.train(small.options(parts, family, distilled, settings=settings, resume=True))[0].iterations == steps
    assert runs.log(parts) == runs.log(whole)
    assert runs.differences(runs.last(parts), runs.last(whole)) == []
