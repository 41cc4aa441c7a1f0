"""What a config adds to a run: learning-rate steps, and hooks of its own."""

from __future__ import annotations

import json
import math

import pytest
import torch
from mmcv import Config
from mmcv.runner import HOOKS, Hook
from torch import nn

from cskd_train.engine.loader import Position, TrainLoader
from cskd_train.engine.runner import build_runner
from cskd_train.engine.signals import Interrupted

from .runs import train

calls = []  # (hook, event, epoch, iteration), as the hooks below are called


@HOOKS.register_module(force=True)
class NoteCalls(Hook):
    """Notes when it is called, and the total loss of each iteration."""

    losses = []  # noqa: RUF012

    def __init__(self, name="one"):
        self.name = name

    def before_run(self, runner):
        self._note("before_run", runner)

    def before_train_epoch(self, runner):
        self._note("before_train_epoch", runner)

    def before_train_iter(self, runner):
        self._note("before_train_iter", runner)

    def after_train_iter(self, runner):
        self._note("after_train_iter", runner)
        self.losses.append(runner.outputs["loss"].item())

    def after_train_epoch(self, runner):
        self._note("after_train_epoch", runner)

    def after_run(self, runner):
        self._note("after_run", runner)

    def _note(self, event, runner):
        calls.append((self.name, event, runner.epoch, runner.iter))


@HOOKS.register_module(force=True)
class SetBias(Hook):
    """Sets the biases of the box predictions before each step."""

    def before_train_iter(self, runner):
        with torch.no_grad():
            runner.model.bbox_head.retina_reg.bias.fill_(0.5)


@pytest.fixture(autouse=True)
def nothing_called():
    calls.clear()
    NoteCalls.losses.clear()


def records(work_dir):
    found = map(json.loads, (work_dir / "log.jsonl").read_text().splitlines())
    return [one for one in found if one["mode"] == "train"]


def column(work_dir, name):
    return [record[name] for record in records(work_dir)]


def weights(work_dir):
    return torch.load(work_dir / "last.pth", weights_only=True)["state_dict"]


# The learning rate


def test_a_step_of_the_schedule_lowers_the_learning_rate_and_changes_what_is_learnt(train_upright, tmp_path):
    for name, step in (("decayed", [1]), ("not yet", [2])):
        code, _, err = train_upright(tmp_path / name, f"lr_config.step={step}", "lr_config.gamma=0.25")
        assert code == 0, err
    decayed, constant = tmp_path / "decayed", tmp_path / "not yet"
    assert column(constant, "lr") == pytest.approx([1e-4, 5.5e-4, 1e-3, 1e-3, 1e-3, 1e-3])  # two iterations of warmup
    assert column(decayed, "lr") == pytest.approx([1e-4, 5.5e-4, 1e-3, 2.5e-4, 2.5e-4, 2.5e-4])
    losses = column(decayed, "loss"), column(constant, "loss")
    assert losses[0][:4] == losses[1][:4]  # the first of the second epoch is that of equal weights
    assert losses[0][4] != losses[1][4]
    ends = weights(decayed), weights(constant)
    moved = {key for key, value in ends[0].items() if not torch.equal(value, ends[1][key])}
    assert {"bbox_head.retina_cls.weight", "neck.lateral_convs.0.conv.weight", "backbone.conv1.weight"} <= moved


def test_the_optimizer_steps_by_the_rate_that_the_log_names(train_upright, tmp_path):
    # Without momentum and decay a step is the rate times the gradient, here clipped to a norm of 0.1.
    options = (
        "optimizer={'type': 'SGD', 'lr': 0.1}",
        "optimizer_config.grad_clip={'max_norm': 0.1, 'norm_type': 2}",
        "lr_config={'policy': 'step', 'step': [1], 'gamma': 0.5}",
        "data.samples_per_gpu=12",  # an epoch is one iteration
        "--seed",
        4,
    )
    epochs = []
    for count in (1, 2):
        code, _, err = train_upright(tmp_path / str(count), *options, f"runner.max_epochs={count}")
        assert code == 0, err
        epochs.append(weights(tmp_path / str(count)))
    assert column(tmp_path / "2", "lr") == [0.1, 0.05]
    assert min(column(tmp_path / "2", "grad_norm")) > 0.1
    trained = [key for key in epochs[0] if key.endswith(("weight", "bias"))]
    moved = math.sqrt(sum((epochs[1][key] - epochs[0][key]).double().square().sum().item() for key in trained))
    assert moved == pytest.approx(0.05 * 0.1, rel=1e-3)


def test_a_resumed_run_has_the_rate_of_its_epoch(train_upright, tmp_path):
    options = ("lr_config.step=[1,2]", "lr_config.gamma=0.25", "lr_config.warmup_iters=5")
    assert train_upright(tmp_path, *options, "runner.max_epochs=1")[0] == 0
    assert train_upright(tmp_path, *options, "runner.max_epochs=3", "--resume")[0] == 0
    warm = [1 - (1 - done / 5) * 0.9 for done in range(5)]
    expected = [1e-3 * warm[0], 1e-3 * warm[1], 1e-3 * warm[2], 2.5e-4 * warm[3], 2.5e-4 * warm[4], 2.5e-4]
    assert column(tmp_path, "lr") == pytest.approx([*expected, *[6.25e-5] * 3])


def test_a_schedule_over_iterations_ends_with_the_run(train_upright, tmp_path):
    cosine = "lr_config={'policy': 'CosineAnnealing', 'min_lr': 0.0002, 'by_epoch': False}"
    assert train_upright(tmp_path, cosine)[0] == 0
    expected = [0.0002 + 0.0004 * (1 + math.cos(math.pi * done / 6)) for done in range(6)]
    assert column(tmp_path, "lr") == pytest.approx(expected)


BY_ITERATION = {
    "cosine": {"policy": "CosineAnnealing", "min_lr": 0, "by_epoch": False},
    "poly": {"policy": "poly", "power": 0.9, "min_lr": 0, "by_epoch": False},
    "steps": {"policy": "step", "step": [2, 14], "gamma": 0.5, "by_epoch": False},
    "warmup": {"policy": "step", "step": [9], "warmup": "linear", "warmup_iters": 15, "warmup_ratio": 0.1},
}


class Images:
    """Of a data set, as a loader takes them."""

    flag = [0] * 28

    def __len__(self):
        return len(self.flag)


class Model(nn.Linear):
    """As far as a runner looks at one."""

    def train_step(self):
        pass


def rates(lr_config, accumulate, position):
    """Of the steps from a position to the end of four epochs of 14 batches."""
    config = {"optimizer": {"type": "SGD"}, "lr_config": lr_config, "runner": {"max_epochs": 4}}
    loader = TrainLoader(Images(), 2, 0, seed=0, accumulate=accumulate)
    runner = build_runner(Config(config), Model(2, 2), 0.1, "")
    runner.begin(loader, position)
    found = []
    while position.epoch < 4:
        runner.begin_epoch(position)
        for _ in range(loader.steps_left(position)):
            runner.before_step({})
            found.append(runner.learning_rate)
            runner.after_step({"loss": 0.0}, 2)
        position = Position(position.epoch + 1)
        runner.after_epoch(position.epoch, {})
    return found


@pytest.mark.parametrize("name", BY_ITERATION)
def test_after_steps_of_another_length_a_schedule_over_iterations_goes_by_those_to_come(name):
    whole = {accumulate: rates(BY_ITERATION[name], accumulate, Position()) for accumulate in (1, 4)}
    assert [len(found) for found in whole.values()] == [56, 16]
    for before, after, batches, left in ((1, 4, 0, 4), (1, 4, 7, 2), (4, 1, 0, 14), (4, 1, 8, 6)):
        inner = batches // before
        position = Position(3, batches, inner, 3 * len(whole[before]) // 4 + inner)
        assert rates(BY_ITERATION[name], after, position) == pytest.approx(whole[after][-left:])
    assert len(set(whole[4])) > 2  # none of them is constant


def test_a_run_that_goes_on_in_longer_steps_ends_its_schedule(small_runs, tmp_path):
    cosine = {"policy": "CosineAnnealing", "min_lr": 0.0, "by_epoch": False}
    settings = {"lr_config": cosine, "log_config.interval": 1}
    assert isinstance(train(small_runs.options(tmp_path, settings=settings), stop_after=9)[0], Interrupted)
    longer = small_runs.options(tmp_path, settings={**settings, "accumulate": 2}, resume=True)
    assert train(longer)[0].iterations == 12  # 4 of 7 batches are left
    assert column(tmp_path, "iter") == [*range(1, 13)]
    expected = [0.0005 * (1 + math.cos(math.pi * done)) for done in (*(one / 14 for one in range(10)), 6 / 8, 7 / 8)]
    assert column(tmp_path, "lr") == pytest.approx(expected)


# Hooks


def of_epoch(hook, epoch, first):
    yield (hook, "before_train_epoch", epoch, first)
    for done in range(first, first + 3):
        yield (hook, "before_train_iter", epoch, done)
        yield (hook, "after_train_iter", epoch, done)
    yield (hook, "after_train_epoch", epoch, first + 3)


def test_hooks_of_the_config_are_called_around_every_epoch_and_iteration(train_upright, tmp_path):
    code, _, err = train_upright(tmp_path, "custom_hooks=[{'type': 'NoteCalls', 'name': 'mine'}]")
    assert code == 0, err
    assert calls == [
        ("mine", "before_run", 0, 0),
        *of_epoch("mine", 0, 0),
        *of_epoch("mine", 1, 3),
        ("mine", "after_run", 2, 6),
    ]
    assert NoteCalls.losses == pytest.approx(column(tmp_path, "loss"), rel=1e-6)


def test_hooks_of_a_resumed_run_go_on_counting(train_upright, tmp_path):
    hook = "custom_hooks=[{'type': 'NoteCalls'}]"
    assert train_upright(tmp_path, hook, "runner.max_epochs=1")[0] == 0
    calls.clear()
    assert train_upright(tmp_path, hook, "--resume")[0] == 0
    assert calls == [("one", "before_run", 1, 3), *of_epoch("one", 1, 3), ("one", "after_run", 2, 6)]


def test_hooks_are_called_by_their_priority(train_upright, tmp_path):
    late, early = ({"type": "NoteCalls", "name": name, "priority": name} for name in ("LOW", "HIGH"))
    assert train_upright(tmp_path, f"custom_hooks={[late, early]}", "runner.max_epochs=1")[0] == 0
    events = {}
    for name, *event in calls:
        events.setdefault(tuple(event), []).append(name)
    assert len(events) == 2 + 2 + 3 * 2
    assert set(map(tuple, events.values())) == {("HIGH", "LOW")}


def test_a_hook_has_the_very_model_that_is_trained_and_saved(train_upright, tmp_path):
    options = ("runner.max_epochs=1", "lr_config.warmup=None", "optimizer.weight_decay=0.0")
    hook = "custom_hooks=[{'type': 'SetBias'}]"
    assert train_upright(tmp_path / "with", hook, *options)[0] == 0
    assert train_upright(tmp_path / "without", *options)[0] == 0
    changed, plain = (weights(tmp_path / name)["bbox_head.retina_reg.bias"] for name in ("with", "without"))
    # AdamW moves an element by its rate, 0.001, or a little more in a step.
    assert (changed - 0.5).abs().max() < 0.004
    assert plain.abs().max() < 0.01


def test_an_unknown_hook_is_refused(train_upright, tmp_path):
    code, _, err = train_upright(tmp_path, "custom_hooks=[{'type': 'NoteCals'}]")
    assert code == 2
    assert "NoteCals" in err
    assert "Traceback" not in err
