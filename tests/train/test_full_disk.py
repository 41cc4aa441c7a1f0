"""A disk that is full for a while: by a limit on the size of files, which the system itself enforces."""

from __future__ import annotations

import json
import resource

import pytest
from mmcv.runner import HOOKS, Hook

from cskd_train.engine.records import JsonLines, read_log
from cskd_train.errors import REFUSALS
from cskd_train.files import checkpoints

from .runs import STEPS, differences, last, log, train


@HOOKS.register_module()
class LimitFiles(Hook):
    """Lets no file grow beyond a size while a step, and what follows it, is under way: {step: bytes or None}."""

    limits: dict[int, int | None] = {}  # noqa: RUF012

    def before_train_iter(self, runner):
        if runner.iter + 1 in self.limits:
            limit_files(self.limits[runner.iter + 1])


def limit_files(size):
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (most if size is None else size, most))


@pytest.fixture
def limited(small_runs, monkeypatch):
    """`limited(work_dir, {step: bytes})` -> result and output of a run."""

    def run_limited(work_dir, limits, **options):
        monkeypatch.setattr(LimitFiles, "limits", limits)
        try:
            return train(small_runs.options(work_dir, settings={"custom_hooks": [{"type": "LimitFiles"}]}, **options))
        finally:
            limit_files(None)

    return run_limited


@pytest.fixture(scope="module")
def whole(small_runs, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("whole") / "w"
    train(small_runs.options(work_dir))
    return work_dir


CHECKPOINT = 50_000  # bytes; less than any checkpoint, more than a log


def test_a_save_on_a_full_disk_costs_that_file_and_the_run_goes_on(limited, whole, tmp_path):
    assert min((whole / name).stat().st_size for name in ("last.pth", "best.pth")) > 2 * CHECKPOINT
    outcome, said = limited(tmp_path / "w", {5: CHECKPOINT, 8: None, 14: CHECKPOINT}, checkpoint_every=2)
    assert isinstance(outcome, REFUSALS), outcome
    warnings = [line for line in said.splitlines() if line.startswith("warning: cannot write")]
    # Step 6, the end of the epoch, the best of it and its evaluation; in the second epoch the end, and the best.
    assert [line.split("/w/")[1].split(":")[0] for line in warnings] == [
        "last.pth", "last.pth", "best.pth", "last.pth", "last.pth", "best.pth"
    ]  # fmt: skip
    assert "the older last.pth is untouched" in warnings[0]
    assert "The run goes on, and the next checkpoint will be tried" in warnings[0]
    assert "the best weights of epoch 1 are not kept" in warnings[2]
    # The last save of a run has to be one.
    assert outcome.exit_code == 2
    assert str(outcome).startswith(f"cannot write {tmp_path / 'w' / 'last.pth'}: ")
    assert last(tmp_path / "w")["position"]["step"] == 12
    assert not (tmp_path / "w" / "result.json").exists()
    assert [path.name for path in (tmp_path / "w").iterdir() if path.name.startswith(".")] == []
    assert log(tmp_path / "w") == log(whole)
    outcome, _ = limited(tmp_path / "w", {}, checkpoint_every=2, resume=True)
    assert outcome.iterations == STEPS
    assert log(tmp_path / "w") == log(whole)
    assert differences(last(tmp_path / "w")["state_dict"], last(whole)["state_dict"]) == []


def test_the_best_of_a_run_is_what_best_pth_holds(limited, tmp_path):
    outcome, _ = limited(tmp_path / "w", {7: CHECKPOINT, 8: None})
    assert outcome.best_epoch == 2
    assert outcome.best == outcome.last == checkpoints.load_checkpoint(tmp_path / "w" / "best.pth").metrics


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")  # a traceback elsewhere
def test_the_lines_of_a_log_wait_for_the_disk_and_tensorboard_is_given_up(limited, whole, tmp_path):
    outcome, said = limited(tmp_path / "w", {4: 500, 9: None})
    assert outcome.iterations == STEPS
    assert log(tmp_path / "w") == log(whole)
    assert len(read_log(tmp_path / "w" / "log.jsonl")) == 16
    lines = [line for line in said.splitlines() if line.startswith("warning: ") and "cannot be written" in line]
    assert len(lines) == 2
    assert f"{tmp_path / 'w' / 'log.jsonl'} cannot be written (File too large); its lines are kept" in lines[0]
    assert "TensorBoard's files cannot be written" in lines[1]


def test_lines_that_never_reach_the_disk_are_counted(tmp_path):
    said = []
    lines = JsonLines(tmp_path / "log.jsonl", said.append)
    lines.train({"iter": 1})
    try:
        limit_files(20)
        for step in (2, 3, 4):
            lines.train({"iter": step})
        lines.close()
    finally:
        limit_files(None)
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()[:1]] == [{"iter": 1}]
    assert len(said) == 2
    assert said[1].endswith("log.jsonl cannot be written; its last 3 lines are lost")
