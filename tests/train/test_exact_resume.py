"""`--resume` in the middle of an epoch: to the last bit what the uninterrupted run would have been."""

from __future__ import annotations

import itertools
import multiprocessing
import shutil
from dataclasses import replace

import pytest
import torch

from cskd_train.engine import loader, run, step
from cskd_train.engine.records import Recorder
from cskd_train.engine.signals import Interrupted
from cskd_train.files.config import config_to_data

from .runs import STEPS, differences, last, log, narrow, train


@pytest.fixture(autouse=True)
def records_of_three_steps(monkeypatch):
    """A run of seven steps an epoch would log each of them: an average has to be under way where it stops."""
    monkeypatch.setattr(run, "Recorder", lambda interval, sinks: Recorder(3, sinks))


EMA = {"ema": {"decay": 0.9, "warmup": 3}}
TWO = {"accumulate": 2}
WORKERS = {"data.workers_per_gpu": 2}
CASES = {
    "alone": ("RetinaNet", False, {}, None),
    "alone, EMA, float16, a save every 2 steps": ("RetinaNet", False, {**EMA, "amp": "fp16"}, 2),
    "distilled, EMA, accumulated, workers": ("RetinaNet", True, {**EMA, **TWO, **WORKERS}, None),
    "distilled, bfloat16": ("RetinaNet", True, {"amp": "bf16"}, None),
    "sampled, EMA, accumulated": ("FasterRCNN", False, {**EMA, **TWO}, None),
    "sampled and distilled, bfloat16, a save every 3 steps": ("FasterRCNN", True, {"amp": "bf16"}, 3),
    "sampled and distilled, EMA, workers": ("FasterRCNN", True, {**EMA, **WORKERS}, None),
}


def interrupted(small_runs, folder, case, after):
    """Run until a signal after a step, which one more follows; gives the options that go on."""
    family, distilled, settings, every = case
    options = small_runs.options(folder, family, distilled, settings=settings, checkpoint_every=every)
    options = replace(options, resume=(folder / "last.pth").exists())
    outcome, _ = train(options, stop_after=after)
    assert isinstance(outcome, Interrupted), outcome
    assert multiprocessing.active_children() == []  # Python would wait for them as it ends
    saved = last(folder)
    assert saved["position"]["step"] == after + 1
    assert saved["position"]["batches"] > 0
    return replace(options, resume=True)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_run_stopped_within_an_epoch_resumes_to_the_last_bit(small_runs, tmp_path, case):
    family, distilled, settings, every = case
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    outcome, _ = train(small_runs.options(whole, family, distilled, settings=settings, checkpoint_every=every))
    steps = 8 if "accumulate" in settings else STEPS
    assert outcome.iterations == steps
    # In the second epoch, two steps after the last record.
    options = interrupted(small_runs, parts, case, 5 if steps == 8 else 8)
    assert set(last(parts)["records"]["counts"].values()) == {2}
    outcome, _ = train(options)
    assert outcome.iterations == steps
    assert log(parts) == log(whole)
    assert differences(last(parts), last(whole)) == []


def dynamic():
    """Settings of a Dynamic R-CNN, which moves its IoU threshold and the beta of its loss every four steps."""
    rcnn = config_to_data(narrow("FasterRCNN").train_cfg)["rcnn"]
    moves = {"iou_topk": 8, "beta_topk": 4, "update_iter_interval": 4, "initial_iou": 0.3, "initial_beta": 100.0}
    return {
        "model.roi_head.type": "DynamicRoIHead",
        "model.roi_head.bbox_head.loss_bbox": {"type": "SmoothL1Loss", "beta": 1.0},
        "model.train_cfg.rcnn": {**rcnn, "dynamic_rcnn": moves},
    }


def test_what_a_head_keeps_beside_its_state_dict_comes_back(small_runs, tmp_path):
    case = "FasterRCNN", False, dynamic(), None
    assert train(small_runs.options(tmp_path / "whole", *case[:2], settings=case[2]))[0].iterations == STEPS
    options = interrupted(small_runs, tmp_path / "parts", case, 8)
    (kept,) = last(tmp_path / "parts")["attributes"]
    assert {"roi_head.bbox_assigner.pos_iou_thr", "roi_head.bbox_head.loss_bbox.beta"} <= kept.keys()
    assert len(kept["roi_head.iou_history"]) == len(kept["roi_head.beta_history"]) == 1
    forgetful = shutil.copytree(tmp_path / "parts", tmp_path / "forgetful")
    contents = torch.load(forgetful / "last.pth", weights_only=True)
    del contents["attributes"]
    torch.save(contents, forgetful / "last.pth")
    train(options)
    assert log(tmp_path / "parts") == log(tmp_path / "whole")
    assert differences(last(tmp_path / "parts"), last(tmp_path / "whole")) == []
    train(replace(options, work_dir=forgetful))
    assert log(forgetful) != log(tmp_path / "whole")


def test_a_run_may_be_stopped_again_and_again(small_runs, tmp_path):
    case = "FasterRCNN", False, {**EMA, "amp": "fp16"}, None
    train(small_runs.options(tmp_path / "whole", *case[:2], settings=case[2]))
    for after in (1, 4, 8, 11):
        options = interrupted(small_runs, tmp_path / "parts", case, after)
    assert train(options)[0].iterations == STEPS
    assert log(tmp_path / "parts") == log(tmp_path / "whole")
    assert differences(last(tmp_path / "parts"), last(tmp_path / "whole")) == []


# Without what follows the tests above would say nothing: each part of a checkpoint, left out, changes the run.

SPOILED = {
    "position": lambda contents: contents["position"].update(batches=0, inner=0),
    "records": lambda contents: contents.update(records={"sums": {}, "counts": {}}),
    "optimizer": lambda contents: contents["optimizer"].update(state={}),
    "scaler": lambda contents: contents["scaler"].update(scale=2.0**12),
    "average": lambda contents: contents["average"].update(updates=1),
    "student": lambda contents: contents.pop("student"),
    "distiller": lambda contents: contents.update(
        distiller={key: value * 1.001 for key, value in contents["distiller"].items()}
    ),
}


@pytest.fixture(scope="module")
def example(small_runs, tmp_path_factory):
    """A distilled run with EMA and float16: the whole of it, and a part with the options that go on with it."""
    folder = tmp_path_factory.mktemp("example")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "Recorder", lambda interval, sinks: Recorder(3, sinks))
        case = "RetinaNet", True, {**EMA, "amp": "fp16"}, None
        train(small_runs.options(folder / "whole", *case[:2], settings=case[2]))
        return folder, interrupted(small_runs, folder / "part", case, 8)


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_whatever_a_checkpoint_does_not_bring_back_shows(example, tmp_path, spoil):
    folder, options = example
    work_dir = shutil.copytree(folder / "part", tmp_path / "w")
    contents = torch.load(work_dir / "last.pth", weights_only=True)
    spoil(contents)
    torch.save(contents, work_dir / "last.pth")
    train(replace(options, work_dir=work_dir))
    found = [*differences(log(work_dir), log(folder / "whole")), *differences(last(work_dir), last(folder / "whole"))]
    assert found


def test_left_as_it_is_the_same_checkpoint_shows_nothing(example, tmp_path):
    folder, options = example
    work_dir = shutil.copytree(folder / "part", tmp_path / "w")
    train(replace(options, work_dir=work_dir))
    assert log(work_dir) == log(folder / "whole")
    assert differences(last(work_dir), last(folder / "whole")) == []


def test_draws_that_go_by_the_session_in_place_of_the_position_show(small_runs, tmp_path, monkeypatch):
    def count_anew():
        numbers = itertools.count()
        monkeypatch.setattr(step, "seed_generators", lambda *_: loader.seed_generators(0, 99, next(numbers)))

    case = "FasterRCNN", False, {}, None
    count_anew()
    train(small_runs.options(tmp_path / "whole", *case[:2]))
    count_anew()
    options = interrupted(small_runs, tmp_path / "parts", case, 8)
    count_anew()
    train(options)
    whole, parts = log(tmp_path / "whole"), log(tmp_path / "parts")
    assert parts[:4] == whole[:4]
    assert parts[4]["loss_rpn_cls"] != whole[4]["loss_rpn_cls"]
