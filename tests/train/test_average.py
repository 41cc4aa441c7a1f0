"""EMA: the formula, what is evaluated and saved, and going on with it, without it, or for the first time."""

from __future__ import annotations

import pytest
import torch
from mmcv import Config
from mmdet.apis import init_detector
from torch import nn

from cskd_train.engine.evaluate import evaluate_checkpoint
from cskd_train.engine.signals import Interrupted
from cskd_train.engine.step import AveragedStudent
from cskd_train.files import checkpoints

from .runs import STEPS, differences, last, log, train

EMA = {"ema": {"decay": 0.9, "warmup": 3}}


@pytest.mark.parametrize(("decay", "warmup"), [(0.9, 1), (0.9, 4), (0.5, 100), (0.0, 1)])
def test_the_average_is_that_of_a_slow_loop_in_float64(decay, warmup):
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    average = AveragedStudent(student, decay, warmup)
    expected = {key: value.double().clone() for key, value in student.state_dict().items()}
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    for count in range(1, 31):
        optimizer.zero_grad()
        student(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
        average.update()
        d = min(decay, (1 + count) / (warmup + count))
        for key, value in student.state_dict().items():
            expected[key] = d * expected[key] + (1 - d) * value.double()
    expected["1.num_batches_tracked"] = torch.tensor(30.0, dtype=torch.float64)  # a count is copied
    found = average.model.state_dict()
    for key, value in expected.items():
        torch.testing.assert_close(found[key].double(), value, rtol=1e-5, atol=1e-6)
    assert found["1.num_batches_tracked"].dtype == torch.int64
    assert average.state_dict() == {"updates": 31}
    if decay:
        assert not torch.allclose(found["1.running_var"], student.state_dict()["1.running_var"], rtol=1e-3)


def test_the_student_is_left_alone():
    torch.manual_seed(0)
    student = nn.Linear(2, 2)
    average = AveragedStudent(student, 0.5, 1)
    before = student.weight.clone()
    average.model.weight.data.fill_(9)
    average.update()
    assert torch.equal(student.weight, before)
    assert torch.allclose(average.model.weight, (before + 9) / 2)


@pytest.fixture(scope="module")
def plain(small_runs, tmp_path_factory):
    """The work dir of a run without EMA."""
    work_dir = tmp_path_factory.mktemp("plain") / "w"
    train(small_runs.options(work_dir))
    return work_dir


@pytest.fixture(scope="module")
def averaged(small_runs, tmp_path_factory):
    """The work dir of the same run with EMA."""
    work_dir = tmp_path_factory.mktemp("averaged") / "w"
    train(small_runs.options(work_dir, settings=EMA))
    return work_dir


def steps_of(work_dir):
    return [record for record in log(work_dir) if record["mode"] == "train"]


def test_training_itself_is_the_same_with_and_without(plain, averaged):
    assert steps_of(averaged) == steps_of(plain)
    assert differences(last(averaged)["student"], last(plain)["state_dict"]) == []
    assert differences(last(averaged)["optimizer"], last(plain)["optimizer"]) == []


def test_the_average_is_saved_as_the_student_and_the_raw_weights_beside_it(small_runs, averaged, plain):
    contents = last(averaged)
    raw, average = contents["student"], contents["state_dict"]
    assert list(average) == list(raw) == list(last(plain)["state_dict"])
    assert len(differences(average, raw)) > 20
    assert contents["average"] == {"updates": 1 + STEPS}
    best = checkpoints.read(averaged / "best.pth")
    assert best.keys() == {"state_dict", "meta"}
    if best["meta"]["epoch"] == 2:
        assert differences(best["state_dict"], average) == []


def test_the_average_is_what_is_evaluated(averaged, plain):
    for name in ("best.pth", "last.pth"):
        checkpoint = checkpoints.load_checkpoint(averaged / name)
        assert evaluate_checkpoint(checkpoint).metrics == checkpoint.metrics
    assert log(averaged)[-1]["bbox_AR_100"] != log(plain)[-1]["bbox_AR_100"]


def test_stock_mmdet_loads_the_average(averaged, small_runs):
    config = Config.fromfile(small_runs.config("RetinaNet", False))
    model = init_detector(config, str(averaged / "best.pth"), device="cpu")
    assert differences(dict(model.state_dict()), checkpoints.read(averaged / "best.pth")["state_dict"]) == []


def test_a_run_that_goes_on_without_it_goes_on_from_the_raw_weights(small_runs, plain, tmp_path):
    work_dir = tmp_path / "w"
    assert isinstance(train(small_runs.options(work_dir, settings=EMA), stop_after=8)[0], Interrupted)
    outcome, said = train(small_runs.options(work_dir, resume=True))
    assert outcome.iterations == STEPS
    assert "warning: a setting has changed since the run began: ema.decay: 0.9 -> none" in said
    assert steps_of(work_dir) == steps_of(plain)
    contents = last(work_dir)
    assert "student" not in contents
    assert "average" not in contents
    assert differences(contents["state_dict"], last(plain)["state_dict"]) == []


def test_a_run_that_goes_on_with_it_begins_to_average_there(small_runs, plain, averaged, tmp_path):
    work_dir = tmp_path / "w"
    assert isinstance(train(small_runs.options(work_dir), stop_after=8)[0], Interrupted)
    start = last(work_dir)["state_dict"]
    _, said = train(small_runs.options(work_dir, settings={"ema": {"decay": 0.999999, "warmup": 1}}, resume=True))
    assert "warning: a setting has changed since the run began: ema.decay: none -> 0.999999" in said
    assert steps_of(work_dir) == steps_of(plain)
    contents = last(work_dir)
    assert contents["average"] == {"updates": 1 + STEPS - 9}
    for key, value in start.items():  # hardly moved from where it began
        if value.is_floating_point():
            torch.testing.assert_close(contents["state_dict"][key], value, rtol=1e-3, atol=1e-5)
    assert differences(contents["student"], last(plain)["state_dict"]) == []


def test_a_distilled_student_is_averaged_without_its_distiller(small_runs, plain, tmp_path):
    train(small_runs.options(tmp_path / "w", "RetinaNet", True, settings={**EMA, "runner.max_epochs": 1}))
    contents = last(tmp_path / "w")
    assert list(contents["state_dict"]) == list(contents["student"]) == list(last(plain)["state_dict"])
    assert len(differences(contents["state_dict"], contents["student"])) > 20
