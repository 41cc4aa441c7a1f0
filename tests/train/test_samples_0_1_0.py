"""Files of version 0.1.0 serve as they are: going on, testing, exporting."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cskd_train.engine.prepare import RunOptions
from cskd_train.engine.records import read_log
from cskd_train.files import checkpoints

from .runs import train

SAMPLES = Path(__file__).parent / "samples_0_1_0"


@pytest.fixture(params=["plain", "distilled"])
def kind(request):
    return request.param


@pytest.fixture
def work_dir(kind, tmp_path):
    return shutil.copytree(SAMPLES / kind, tmp_path / kind)


@pytest.fixture
def go_on(kind, work_dir, shapes_root, tmp_path):
    """Resume the run with its own config, of another number of epochs."""

    def resume(epochs, **settings):
        config = checkpoints.load_checkpoint(SAMPLES / kind / "last.pth").config
        (file := tmp_path / "config.py").write_text(
            "\n".join(f"{key} = {value!r}" for key, value in {**config, **settings}.items())
        )
        overrides = {"data_root": str(shapes_root), "runner.max_epochs": epochs}
        if kind == "distilled":
            overrides["distill.teacher.checkpoint"] = str(SAMPLES / "plain" / "best.pth")
        outcome = train(RunOptions(config=str(file), work_dir=work_dir, overrides=overrides, resume=True))
        assert not isinstance(outcome[0], Exception), outcome[0]
        return outcome

    return resume


def test_a_run_goes_on_after_its_last_epoch(kind, work_dir, go_on):
    before = checkpoints.read(work_dir / "last.pth")
    outcome, said = go_on(3)
    assert (outcome.iterations, outcome.epochs, outcome.distilled) == (9, 3, kind == "distilled"), said
    assert "a setting has changed since the run began: runner.max_epochs: 2 -> 3" in said
    old, new = read_log(SAMPLES / kind / "log.jsonl"), read_log(work_dir / "log.jsonl")
    assert new[:8] == old
    assert [(one["mode"], one["epoch"], one["iter"]) for one in new[8:]] == [
        ("train", 3, 7), ("train", 3, 8), ("train", 3, 9), ("val", 3, 9)
    ]  # fmt: skip
    assert new[8]["loss"] < old[0]["loss"]  # not from the first, random weights
    assert outcome.best["bbox_mAP"] >= before["run"]["best"]["bbox_mAP"]
    after = checkpoints.read(work_dir / "last.pth")
    assert after["position"] == {"epoch": 3, "batches": 0, "inner": 0, "step": 9}
    assert after["run"]["images"] == 36
    momentum = [contents["optimizer"]["state"][0]["momentum_buffer"] for contents in (before, after)]
    assert not momentum[0].equal(momentum[1])


def test_a_run_that_was_through_is_not_trained_or_evaluated_again(kind, work_dir, go_on):
    outcome, _ = go_on(2)
    before = checkpoints.read(SAMPLES / kind / "last.pth")
    assert outcome.iterations == 6
    assert outcome.last == before["run"]["last"]
    assert read_log(work_dir / "log.jsonl") == read_log(SAMPLES / kind / "log.jsonl")
    assert (work_dir / "last.pth").read_bytes() == (SAMPLES / kind / "last.pth").read_bytes()


def test_an_average_begins_with_the_weights_of_the_file(work_dir, go_on):
    outcome, said = go_on(3, ema={"decay": 0.5})
    assert outcome.iterations == 9
    assert "a setting has changed since the run began: ema.decay: none -> 0.5" in said
    assert checkpoints.read(work_dir / "last.pth")["average"] == {"updates": 4}


def test_best_pth_has_the_map_that_it_says(kind, shapes_root, command_line):
    best = SAMPLES / kind / "best.pth"
    code, out, err = command_line("test", best, "--set", f"data_root={shapes_root}", "--split", "val", "--json")
    assert code == 0, err
    assert json.loads(out)["metrics"]["bbox_mAP"] == pytest.approx(
        checkpoints.load_checkpoint(best).metrics["bbox_mAP"], abs=1e-6
    )


def test_best_pth_is_exported(kind, tmp_path, capsys):
    from cskd_deploy.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["export", "--checkpoint", str(SAMPLES / kind / "best.pth"), "--output", str(tmp_path / "model.onnx")])
    assert ended.value.code in (None, 0), capsys.readouterr().err
    assert (tmp_path / "model.onnx").stat().st_size > 10_000
