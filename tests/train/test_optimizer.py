"""The optimizer of a config: what each parameter goes by, of a student alone and under its distiller."""

from __future__ import annotations

import copy
import json
from functools import partial

import pytest
from mmcv import Config
from mmcv.runner import DefaultOptimizerConstructor
from mmcv.runner.optimizer import OPTIMIZER_BUILDERS
from torch import nn
from torch.optim import AdamW

from cskd_train.engine.runner import build_runner
from cskd_train.errors import TrainError

from .distilling import store_teacher, under
from .runs import train

LAYERS = {
    "constructor": "LearningRateDecayOptimizerConstructor",
    "paramwise_cfg": {"decay_rate": 0.5, "decay_type": "layer_wise", "num_layers": 6},
}
STAGES = {**LAYERS, "paramwise_cfg": {"decay_rate": 0.7, "decay_type": "stage_wise", "num_layers": 6}}


@OPTIMIZER_BUILDERS.register_module(force=True)
class ByBeginning(DefaultOptimizerConstructor):
    """Freezes what begins with `backbone.`, asks the detector for its kind, and takes the rest as it is."""

    def __call__(self, model):
        self.optimizer_cfg["params"] = [
            {"params": [one], "lr": 0.0 if name.startswith("backbone.") else self.base_lr * (1 + model.with_neck)}
            for name, one in model.named_parameters()
        ]
        return AdamW(**{key: value for key, value in self.optimizer_cfg.items() if key != "type"})


class ConvNeXt(nn.Module):
    """A backbone whose parameters have the names of a ConvNeXt's."""

    def __init__(self):
        super().__init__()
        self.downsample_layers = nn.ModuleList([nn.Conv2d(3, 3, 1) for _ in range(4)])
        self.stages = nn.ModuleList([nn.ModuleList([nn.Conv2d(3, 3, 1) for _ in range(3)]) for _ in range(4)])


@pytest.fixture
def distilled(narrow_model, tmp_path):
    return under(narrow_model("RetinaNet"), partial(store_teacher, tmp_path / "t.pth")(narrow_model("RetinaNet", 50)))


def groups(model, **settings):
    """Parameter -> learning rate and decay; and the runner."""
    config = {"optimizer": {"type": "AdamW", "lr": 1e-3, "weight_decay": 0.05, **settings}, "runner": {"max_epochs": 2}}
    runner = build_runner(Config(config), model, 1e-3, "")
    return {
        parameter: (group["lr"], group["weight_decay"])
        for group in runner.optimizer.param_groups
        for parameter in group["params"]
    }, runner


def assert_alike(distilled, **settings):
    """Every parameter of the student goes by the same, alone and distilled; gives what they go by, by name."""
    alone, runner = groups(distilled.student, **settings)
    both, other = groups(distilled, **settings)
    assert {id(parameter) for parameter in both} == {id(parameter) for parameter in distilled.parameters()}
    assert {both[parameter] for parameter in distilled.distiller.parameters()} <= {*alone.values()}
    assert {name: both[one] for name, one in distilled.student.named_parameters() if one in both} == {
        name: alone[one] for name, one in distilled.student.named_parameters() if one in alone
    }
    assert other.learning_rate == runner.learning_rate
    return {name: both[one] for name, one in distilled.student.named_parameters()}


@pytest.mark.parametrize("settings", [LAYERS, STAGES], ids=["layers", "stages"])
def test_mmdets_decay_by_layer_is_that_of_the_student_alone(distilled, settings, capfd):
    distilled.student.backbone = ConvNeXt()
    found = assert_alike(distilled, **copy.deepcopy(settings))
    rates = {name: rate for name, (rate, _) in found.items()}
    assert len({rate for name, rate in rates.items() if name.startswith("backbone.")}) >= 4
    assert {rate for name, rate in rates.items() if name.startswith("bbox_head.")} == {1e-3}
    assert rates["backbone.stages.0.0.weight"] < rates["backbone.stages.3.0.weight"] < 1e-3
    assert capfd.readouterr().err == ""  # mmdet's would be a line for each parameter


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"constructor": "ByBeginning"},
        {"paramwise_cfg": {"custom_keys": {"backbone": {"lr_mult": 0.1}, "backbone.layer1": {"decay_mult": 0.0}}}},
        {"paramwise_cfg": {"norm_decay_mult": 0.0, "bias_lr_mult": 2.0, "custom_keys": {"student": {"lr_mult": 0.0}}}},
    ],
    ids=["plain", "by beginning", "custom keys", "norms and biases"],
)
def test_a_students_parameters_go_by_the_names_that_they_have_alone(distilled, settings):
    found = assert_alike(distilled, **settings)
    assert (len({*found.values()}) > 1) is bool(settings)


def test_the_order_of_the_parameters_is_that_of_the_pair(distilled):
    expected = [parameter for group in groups(distilled)[1].optimizer.param_groups for parameter in group["params"]]
    assert all(map(lambda one, other: one is other, expected, distilled.parameters()))
    ordered = [*groups(distilled, paramwise_cfg={"bias_lr_mult": 2.0})[0]]
    assert all(map(lambda one, other: one is other, ordered, distilled.parameters()))


def test_a_constructor_for_another_backbone_is_refused_by_name(distilled):
    with pytest.raises(TrainError, match=r"optimizer.* cannot be built: NotImplementedError"):
        groups(distilled, **copy.deepcopy(LAYERS))
    with pytest.raises(TrainError, match=r"optimizer.* cannot be built: .*NoSuchConstructor"):
        groups(distilled, constructor="NoSuchConstructor")


def test_a_distilled_run_by_a_constructor_goes_on_to_the_last_bit(small_runs, tmp_path):
    settings = {"optimizer.constructor": "ByBeginning"}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(small_runs.options(whole, distilled=True, settings=settings))[0].iterations == 14
    train(small_runs.options(parts, distilled=True, settings=settings), stop_after=9)
    train(small_runs.options(parts, distilled=True, settings=settings, resume=True))
    losses = [
        [one["loss"] for one in map(json.loads, (folder / "log.jsonl").read_text().splitlines()) if "loss" in one]
        for folder in (whole, parts)
    ]
    assert losses[0] == losses[1]
