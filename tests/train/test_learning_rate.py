"""The learning rate for the images of a step, the plain options, and settings of a run that make no sense."""

from __future__ import annotations

import pytest
from mmcv import Config

from cskd_train.engine.build import scaled_learning_rate
from cskd_train.engine.prepare import RunOptions, prepare
from cskd_train.engine.records import read_log
from cskd_train.errors import TrainError
from cskd_train.files import checkpoints

from .runs import train


def config(kind="SGD", **scaling):
    return Config({"optimizer": {"type": kind, "lr": 0.02}, **({"auto_scale_lr": scaling} if scaling else {})})


@pytest.mark.parametrize(
    ("counts", "factor"), [((2, 1, 1), 1 / 8), ((2, 8, 1), 1), ((4, 8, 1), 2), ((2, 1, 4), 1 / 2), ((3, 2, 4), 1.5)]
)
def test_sgd_follows_the_images_processes_and_batches_of_a_step(counts, factor):
    images = counts[0] * counts[1] * counts[2]
    lr, sentence = scaled_learning_rate(config(enable=True, base_batch_size=16), images, counts)
    assert lr == pytest.approx(0.02 * factor)
    assert f"{images} images a step ({counts[0]} x {counts[1]} process(es) x {counts[2]} accumulated)" in sentence
    assert not sentence.startswith("warning")
    if factor != 1:
        assert f"learning rate 0.02 x {factor:g} = {0.02 * factor:g}" in sentence
        assert "the config's is for 16" in sentence


@pytest.mark.parametrize(
    ("cfg", "advice"),
    [
        (config(enable=False, base_batch_size=16), "set auto_scale_lr.enable=True to scale it"),
        (config("AdamW", enable=True, base_batch_size=16), "set --lr if it has to follow"),
    ],
)
def test_where_it_does_not_follow_a_warning_says_so(cfg, advice):
    lr, sentence = scaled_learning_rate(cfg, 4, (2, 2, 1))
    assert lr == 0.02
    assert sentence.startswith(
        "warning: learning rate 0.02 is the config's for 16 images a step, this run has 4 images"
    )
    assert sentence.endswith(advice)


@pytest.mark.parametrize("cfg", [config(), config(enable=True), config("AdamW", enable=True, base_batch_size=4)])
def test_without_another_base_there_is_nothing_to_say(cfg):
    lr, sentence = scaled_learning_rate(cfg, 4, (2, 2, 1))
    assert lr == 0.02
    assert not sentence.startswith("warning")


SGD = {"optimizer": {"type": "SGD", "lr": 0.016}, "lr_config": None, "runner.max_epochs": 1}


def rates(work_dir):
    return {record["lr"] for record in read_log(work_dir / "log.jsonl") if record["mode"] == "train"}


@pytest.mark.parametrize(("scaling", "factor"), [({}, 1), ({"enable": False}, 1), ({"enable": True}, 0.5)])
def test_a_run_trains_with_the_scaled_rate_and_says_it(small_runs, tmp_path, scaling, factor):
    settings = {**SGD, "accumulate": 2, "auto_scale_lr": {"base_batch_size": 8, **scaling}}
    outcome, said = train(small_runs.options(tmp_path / "w", settings=settings))
    assert outcome.iterations == 4
    assert rates(tmp_path / "w") == {0.016 * factor}
    if factor == 1:
        assert "warning: learning rate 0.016 is the config's for 8 images a step, this run has 4 images a step" in said
    else:
        assert "learning rate 0.016 x 0.5 = 0.008: 4 images a step (2 x 1 process(es) x 2 accumulated)" in said


@pytest.mark.parametrize(("options", "lr"), [([], 0.001), (["--lr", 0.003], 0.003)])
def test_a_rate_of_the_command_line_is_taken_as_it_is(train_tiny, tiny_config, tmp_path, options, lr):
    (config := tmp_path / "c.py").write_text(
        f"_base_ = [{str(tiny_config)!r}]\noptimizer = dict(_delete_=True, type='SGD', lr=0.016)\nlr_config = None\n"
        "auto_scale_lr = dict(enable=True, base_batch_size=64)\n"
    )
    code, _, err = train_tiny(tmp_path / "w", "--epochs", 1, *options, config=config)
    assert code == 0, err
    assert rates(tmp_path / "w") == {lr}
    assert ("learning rate 0.003, 4 images a step" in err) == bool(options)
    assert "warning" not in err


def test_epochs_batch_size_and_workers_are_plain_options(train_tiny, tmp_path):
    code, _, err = train_tiny(tmp_path / "w", "--epochs", 1, "--batch-size", 6, "--workers", 1)
    assert code == 0, err
    assert [record["mode"] for record in read_log(tmp_path / "w" / "log.jsonl")] == ["train", "train", "val"]
    stored = checkpoints.load_checkpoint(tmp_path / "w" / "last.pth").config
    assert stored["data"]["samples_per_gpu"] == 6
    assert stored["data"]["workers_per_gpu"] == 1
    assert stored["runner"]["max_epochs"] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"amp": "int8"}, "amp = 'int8': expected 'bf16' or 'fp16'"),
        ({"amp": True}, "amp = True: expected 'bf16' or 'fp16'"),
        ({"accumulate": 0}, "accumulate = 0: expected a whole number of at least 1"),
        ({"accumulate": 1.5}, "accumulate = 1.5: expected a whole number"),
        ({"accumulate": True}, "accumulate = True: expected a whole number"),
        ({"ema": {"decay": 2}}, "ema.decay = 2: expected a number between 0 and 1"),
        ({"auto_scale_lr": {"base_batch_size": 0}}, "auto_scale_lr.base_batch_size = 0: expected a whole number"),
        ({"optimizer.lr": "fast"}, "optimizer.lr = 'fast': expected a number of at least 0"),
        ({"optimizer.lr": -1}, "optimizer.lr = -1: expected a number of at least 0"),
        ({"optimizer": {"type": "SGD"}}, "optimizer.lr = None: expected a number"),
        ({"data.workers_per_gpu": -1}, "data.workers_per_gpu = -1: expected a whole number of at least 0"),
        ({"fp16": {"loss_scale": 512}}, "take it out (--set fp16=None) and give --amp bf16 or --amp fp16"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_is_written(tiny_config, tmp_path, settings, message):
    if "fp16" in settings:  # no key that --set may add
        (tiny := tmp_path / "c.py").write_text(f"_base_ = [{str(tiny_config)!r}]\nfp16 = {settings['fp16']!r}\n")
        options = RunOptions(config=str(tiny), work_dir=tmp_path / "w")
    else:
        options = RunOptions(config=str(tiny_config), work_dir=tmp_path / "w", overrides=settings)
    with pytest.raises(TrainError) as refused:
        prepare(options, print)
    assert message in str(refused.value)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("every", [0, -2])
def test_a_number_of_steps_between_saves_that_makes_no_sense_is_refused(small_runs, tmp_path, every):
    outcome, _ = train(small_runs.options(tmp_path / "w", checkpoint_every=every))
    assert f"--checkpoint-every {every}: expected a number of steps, at least 1" in str(outcome)
    assert not (tmp_path / "w").exists()
