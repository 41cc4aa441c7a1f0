"""mmcv's hooks and loggers in a run: what they see, and when, across interruptions; activation checkpoints."""

from __future__ import annotations

from dataclasses import replace

import pytest
from mmcv.runner import HOOKS, Hook, LoggerHook
from mmdet.datasets import PIPELINES
from mmdet.models import RetinaHead, RetinaNet

from cskd_train.engine.signals import Interrupted
from cskd_train.files.config import config_to_data, load_config

from .runs import STEPS, log, train

seen = []  # (event, epoch, iteration, iteration of the epoch)
logged = []  # (mode, epoch, iteration, values)


@HOOKS.register_module()
class Witness(Hook):
    """Notes each call."""

    def note(event):  # noqa: N805
        return lambda self, runner: seen.append((event, runner.epoch, runner.iter, runner.inner_iter))

    before_run, after_run = note("before_run"), note("after_run")
    before_train_epoch, after_train_epoch = note("before_train_epoch"), note("after_train_epoch")
    before_train_iter = note("before_train_iter")

    def after_train_iter(self, runner):
        seen.append(("after_train_iter", runner.epoch, runner.iter, runner.inner_iter))
        assert runner.outputs["loss"].item() == pytest.approx(runner.outputs["log_vars"]["loss"], rel=1e-6)
        assert runner.outputs["num_samples"] == 2


@HOOKS.register_module()
class NoteLogs(LoggerHook):
    """Notes what a logger is given."""

    def log(self, runner):
        values = {key: value for key, value in runner.log_buffer.output.items() if key not in ("time", "data_time")}
        logged.append((self.get_mode(runner), self.get_epoch(runner), self.get_iter(runner), values))


@pytest.fixture(autouse=True)
def nothing_seen():
    seen.clear()
    logged.clear()


SETTINGS = {
    "custom_hooks": [{"type": "StopAfter"}, {"type": "Witness"}],
    "log_config": {"interval": 3, "hooks": [{"type": "NoteLogs", "interval": 3}, {"type": "TextLoggerHook"}]},
}


def epoch_events(epoch, first=0, last=7):
    steps = [
        (event, epoch, 7 * epoch + inner, inner)
        for inner in range(first, last)
        for event in ("before_train_iter", "after_train_iter")
    ]
    return [("before_train_epoch", epoch, 7 * epoch + first, first), *steps]


def test_hooks_are_called_in_order_with_epochs_and_steps_from_zero(small_runs, tmp_path):
    assert train(small_runs.options(tmp_path / "w", settings=SETTINGS))[0].iterations == STEPS
    assert seen == [
        ("before_run", 0, 0, 0),
        *epoch_events(0),
        ("after_train_epoch", 0, 7, 6),
        *epoch_events(1),
        ("after_train_epoch", 1, 14, 6),
        ("after_run", 2, 14, 6),
    ]


def test_across_an_interruption_epochs_and_steps_go_on(small_runs, tmp_path):
    options = [small_runs.options(tmp_path / "w", settings=SETTINGS, resume=resume) for resume in (False, True)]
    assert isinstance(train(options[0], stop_after=9)[0], Interrupted)
    assert seen[-1] == ("after_train_iter", 1, 9, 2)
    seen.clear()
    train(options[1])
    assert seen == [
        ("before_run", 1, 10, 3), *epoch_events(1, 3), ("after_train_epoch", 1, 14, 6), ("after_run", 2, 14, 6)
    ]  # fmt: skip


def test_an_evaluation_that_was_made_up_for_belongs_to_its_own_epoch(small_runs, tmp_path):
    options = [small_runs.options(tmp_path / "w", settings=SETTINGS, resume=resume) for resume in (False, True)]
    assert isinstance(train(options[0], stop_after=7)[0], Interrupted)  # the evaluation looks at the signal
    assert [one[0] for one in logged] == ["train"] * 2
    seen.clear()
    logged.clear()
    train(options[1])
    assert seen[:2] == [("before_run", 1, 7, 0), ("after_train_epoch", 0, 7, 6)]
    assert seen[2:] == [*epoch_events(1), ("after_train_epoch", 1, 14, 6), ("after_run", 2, 14, 6)]
    assert logged[0][:2] == ("val", 1)


def test_a_logger_is_given_averages_at_its_interval_and_the_metrics(small_runs, tmp_path):
    train(small_runs.options(tmp_path / "w", settings=SETTINGS))
    assert [one[:2] for one in logged] == [*[("train", 1)] * 2, ("val", 1), *[("train", 2)] * 2, ("val", 2)]
    assert [one[2] for one in logged if one[0] == "train"] == [3, 6, 10, 13]
    records = {record["iter"]: record for record in log(tmp_path / "w") if record["mode"] == "train"}  # of each step
    for _, _, iteration, values in (one for one in logged if one[0] == "train"):
        steps = [records[place] for place in range(iteration - 2, iteration + 1)]
        for name in ("loss_cls", "loss_bbox", "loss", "grad_norm"):
            assert values[name] == pytest.approx(sum(step[name] for step in steps) / 3, rel=1e-6)
    metrics = [record for record in log(tmp_path / "w") if record["mode"] == "val"]
    for (_, _, _, values), record in zip([one for one in logged if one[0] == "val"], metrics, strict=True):
        assert values == {key: value for key, value in record.items() if key not in ("mode", "epoch", "iter")}


def test_a_hook_that_speaks_to_a_detector_reaches_a_student_under_its_distiller(small_runs, tmp_path, monkeypatch):
    epochs = []
    monkeypatch.setattr(RetinaNet, "set_epoch", lambda _, epoch: epochs.append(epoch), raising=False)
    settings = {"custom_hooks": [{"type": "StopAfter"}, {"type": "SetEpochInfoHook"}]}
    assert train(small_runs.options(tmp_path / "w", distilled=True, settings=settings))[0].iterations == STEPS
    assert epochs == [0, 1]


@PIPELINES.register_module()
class Mix:
    """Stands for Mosaic."""

    def __call__(self, results):
        return {**results, "ori_filename": "mixed"}


@HOOKS.register_module()
class WitnessMixed(Hook):
    """Notes whether images were mixed, and whether the head adds its L1 loss."""

    def before_train_iter(self, runner):
        names = [meta["ori_filename"] for meta in runner.data_batch["img_metas"]]
        seen.append((runner.iter, names == ["mixed", "mixed"], runner.model.bbox_head.use_l1))


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_images_are_no_longer_mixed_towards_the_end_nor_after_a_resumption(
    small_runs, tmp_path, monkeypatch, workers, distilled
):
    monkeypatch.setattr(RetinaHead, "use_l1", False, raising=False)
    inner = config_to_data(load_config(small_runs.config()).data)["train"]
    steps = inner.pop("pipeline")
    mixed = {"type": "MultiImageMixDataset", "dataset": {**inner, "pipeline": steps[:2]}}
    switch = {"type": "YOLOXModeSwitchHook", "num_last_epochs": 1, "skip_type_keys": ["Mix"]}
    settings = {
        "runner.max_epochs": 3,
        "data.train": {**mixed, "pipeline": [{"type": "Mix"}, *steps[2:]]},
        "data.workers_per_gpu": workers,
        "custom_hooks": [{"type": "StopAfter"}, switch, {"type": "WitnessMixed"}],
    }
    options = small_runs.options(tmp_path / "w", distilled=distilled, settings=settings)
    assert isinstance(train(options, stop_after=15)[0], Interrupted)  # in the epoch after that of the switch
    assert seen == [*((step, True, False) for step in range(7)), *((step, False, True) for step in range(7, 16))]
    seen.clear()
    assert train(replace(options, resume=True))[0].iterations == 21
    assert seen == [(step, False, True) for step in range(16, 21)]


@pytest.mark.parametrize("amp", [None, "bf16"])
def test_activation_checkpoints_change_no_number(small_runs, tmp_path, amp):
    for folder, with_cp in ((tmp_path / "without", False), (tmp_path / "with", True)):
        settings = {"model.backbone.with_cp": with_cp, "model.backbone.norm_eval": True, "amp": amp}
        settings["runner.max_epochs"] = 1
        assert train(small_runs.options(folder, settings=settings))[0].iterations == 7
    pairs = list(zip(log(tmp_path / "with"), log(tmp_path / "without"), strict=True))
    if amp is None:
        assert all(one == two for one, two in pairs)
    for one, two in pairs[:-1]:  # a processor's bfloat16 gradients do not repeat: norms have differed by 0.3 %
        assert {**one, "mode": 0} == pytest.approx({**two, "mode": 0}, rel=2e-2)
