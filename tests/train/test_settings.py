"""Every key of a config is obeyed, passed over by name, or refused with what to write in its place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cskd_core.errors import PlanError
from cskd_train.engine.runner import OWN_HOOKS
from cskd_train.errors import TrainError
from cskd_train.files.config import config_from_data, config_to_data, load_config
from cskd_train.files.locate import resolve_config_path
from cskd_train.files.settings import check_settings, kept_hooks
from cskd_train.files.vocabulary import PASSED_OVER_HOOKS, REFUSED_HOOKS, TABLES

from .setting_cases import NOTED, REFUSED, SILENT, config, with_keys


def refusal(cfg):
    with pytest.raises((TrainError, PlanError)) as error:
        check_settings(cfg)
    return str(error.value)


def test_every_key_of_the_tables_has_its_case_here():
    rules = {f"{path}.{key}".lstrip("."): rule for path, rules in TABLES.items() for key, rule in rules.items()}
    assert {*SILENT, *NOTED} == set(rules)
    assert {key for key, rule in rules.items() if rule.noted} == set(NOTED)
    assert {key for key, rule in rules.items() if rule.say and not rule.noted} == set(REFUSED)


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in SILENT.items() for value in values])
def test_a_value_that_is_obeyed_or_changes_nothing_passes_in_silence(key, value):
    assert check_settings(with_keys({key: value})) == []


@pytest.mark.parametrize("key", NOTED)
def test_a_setting_that_is_passed_over_is_noted(key):
    value, text = NOTED[key]
    (note,) = check_settings(with_keys({key: value}))
    assert note.startswith(f"{key} = {value!r}: ")
    assert text in note
    assert note.endswith("this key is passed over")


@pytest.mark.parametrize("key", REFUSED)
def test_a_setting_that_would_not_be_obeyed_is_refused_with_what_to_write(key):
    value, text = REFUSED[key]
    message = refusal(with_keys({key: value}))
    assert text in message
    assert message.startswith((f"{key} = ", f"{key}: "))


@pytest.mark.parametrize("path", [path for path in TABLES if path])
def test_an_unknown_key_of_every_block_is_refused_and_near_ones_offered(path):
    near = next(iter(TABLES[path]))
    message = refusal(with_keys({f"{path}.{near}x": 1}))
    assert f"{near}x" in message.split("did you mean")[0]
    assert near in message.split("did you mean")[1]


@pytest.mark.parametrize("key", ["model", "data", "optimizer", "runner"])
def test_a_config_without_a_block_is_refused(key):
    data = config_to_data(config())
    del data[key]
    assert refusal(config_from_data(data)) == f"the config has no {key!r} block; configs/_base_ has one to build on"


@pytest.mark.parametrize(
    ("block", "missing"),
    [
        ({"lr_config": {"step": [8]}}, "'policy'"),
        ({"momentum_config": {}}, "'policy'"),
        ({"optimizer_config": {"grad_clip": {"norm_type": 2}}}, "'max_norm'"),
        ({"auto_scale_lr": {"enable": True}}, "base_batch_size"),
        ({"data": {"train": {}, "unlabeled": {"share": 0.5}}}, "'ann_file'"),
        ({"runner": {"type": "EpochBasedRunner"}}, "max_epochs=N"),
    ],
)
def test_a_block_without_what_it_needs_is_refused(block, missing):
    assert missing in refusal(with_keys(block))


def test_iterations_instead_of_epochs_are_refused():
    runner = {"type": "IterBasedRunner", "max_iters": 90000}
    assert "only runner = dict(type='EpochBasedRunner', max_epochs=N)" in refusal(with_keys({"runner": runner}))


def test_another_optimizer_constructor_has_other_keys():
    paramwise = {"num_layers": 12, "decay_rate": 0.8}
    optimizer = {
        "type": "AdamW",
        "lr": 1e-4,
        "constructor": "LearningRateDecayOptimizerConstructor",
        "paramwise_cfg": paramwise,
    }
    assert check_settings(with_keys({"optimizer": optimizer})) == []
    assert "paramwise_cfg.num_layers" in refusal(with_keys({"optimizer": {**optimizer, "constructor": None}}))


# Hooks

ADVICE = {
    "EMAHook": "ema = dict(decay=0.9998) in the config, or give --ema",
    "BaseEMAHook": "ema = dict(decay=0.9998) in the config, or give --ema",
    "ExpMomentumEMAHook": "ema = dict(decay=0.9998) in the config, or give --ema",
    "LinearMomentumEMAHook": "ema = dict(decay=0.9998) in the config, or give --ema",
    "OptimizerHook": "optimizer_config",
    "Fp16OptimizerHook": "--amp fp16",
    "GradientCumulativeOptimizerHook": "--accumulate N",
    "GradientCumulativeFp16OptimizerHook": "--accumulate N --amp fp16",
    "CheckpointHook": "--checkpoint-every STEPS",
    "EvalHook": "evaluation = dict(interval=N)",
    "DistEvalHook": "evaluation = dict(interval=N)",
    "MMDetWandbHook": "WandbLoggerHook",
    "RFSearchHook": "take it out",
    "SyncRandomSizeHook": "dict(type='Resize', img_scale=[(448, 448), (832, 832)], multiscale_mode='range'",
    "MemoryProfilerHook": "--dry-run says how much memory",
}


@pytest.mark.parametrize("kind", REFUSED_HOOKS)
def test_a_hook_that_would_spoil_a_run_is_refused_with_what_to_write(kind):
    message = refusal(config(custom_hooks=[{"type": "NumClassCheckHook"}, {"type": kind, "momentum": 0.1}]))
    assert message.startswith(f"custom_hooks.1.type = {kind!r}: ")
    assert ADVICE[kind] in message
    assert ADVICE[kind] in refusal(config(log_config={"interval": 1, "hooks": [{"type": kind}]}))


@pytest.mark.parametrize("kind", [kind for kind in REFUSED_HOOKS if kind.endswith("OptimizerHook")][1:])
def test_an_optimizer_hook_that_does_more_than_clip_names_the_option(kind):
    message = refusal(config(optimizer_config={"loss_scale": 512.0, "type": kind}))
    assert message.startswith(f"optimizer_config.type = {kind!r}: ")
    assert ADVICE[kind] in message


def test_a_switch_of_mixed_images_needs_a_data_set_that_mixes_them():
    hooks = [{"type": "YOLOXModeSwitchHook", "num_last_epochs": 2}]
    assert "there is no MultiImageMixDataset in data.train" in refusal(config(custom_hooks=hooks))
    mixed = {"type": "MultiImageMixDataset", "dataset": {"type": "CocoDataset"}, "pipeline": []}
    assert check_settings(config(custom_hooks=hooks, data={"train": mixed})) == []


def test_every_hook_of_mmdets_configs_is_refused_left_out_replaced_or_known_to_work():
    root = resolve_config_path("mmdet::gfl/gfl_r50_fpn_1x_coco.py").parents[1]
    named = {kind for file in root.rglob("*.py") for kind in re.findall(r"type='(\w+Hook)'", file.read_text())}
    assert named > {"RFSearchHook", "SyncNormHook"}
    works = {"SetEpochInfoHook", "CheckInvalidLossHook"}
    assert named <= {*REFUSED_HOOKS, *PASSED_OVER_HOOKS, *OWN_HOOKS, *works}


def test_a_hook_without_a_type_is_refused():
    assert "custom_hooks.0 = {'momentum': 0.1}: expected a dict with" in refusal(
        config(custom_hooks=[{"momentum": 0.1}])
    )


def test_hooks_whose_work_a_run_does_itself_are_left_out_and_all_others_kept():
    own = [{"type": kind} for kind in PASSED_OVER_HOOKS]
    cfg = config(
        custom_hooks=[*own, {"type": "EmptyCacheHook", "after_epoch": True}],
        log_config={"interval": 7, "hooks": [*own, {"type": "MlflowLoggerHook"}]},
    )
    assert check_settings(cfg) == []
    assert kept_hooks(cfg) == [
        {"type": "EmptyCacheHook", "after_epoch": True},
        {"type": "MlflowLoggerHook", "interval": 7, "priority": "VERY_LOW"},
    ]


# What stands under configs/ and what mmdet ships

RECIPES = sorted(path for path in Path(__file__).parents[2].glob("configs/*/*.py") if path.parent.name != "_base_")


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_recipe_passes_without_a_note(path):
    assert check_settings(load_config(path)) == []


FOLDERS = ("retinanet", "fcos", "gfl", "faster_rcnn", "guided_anchoring")
MODELS = ("RetinaNet", "FCOS", "GFL", "FasterRCNN")
REFUSED_STOCK = {
    "faster_rcnn_r50_caffe_fpn_90k_coco": "IterBasedRunner",
    "faster_rcnn_r50_caffe_fpn_mstrain_90k_coco": "IterBasedRunner",
    "retinanet_r50_fpn_90k_coco": "IterBasedRunner",
    "faster_rcnn_r50_fpn_fp16_1x_coco": "--set fp16=None",
    "fcos_r50_caffe_fpn_gn-head_fp16_1x_bs8x8_coco": "--set fp16=None",
    "retinanet_r50_fpn_fp16_1x_coco": "--set fp16=None",
}


def test_what_mmdet_ships_of_the_four_detectors_passes():
    root = resolve_config_path("mmdet::gfl/gfl_r50_fpn_1x_coco.py").parents[1]
    passed, refused, noted = 0, {}, {}
    for path in sorted(path for folder in FOLDERS for path in (root / folder).glob("*.py")):
        cfg = load_config(f"mmdet::{path.relative_to(root)}")
        if cfg.get("model", {}).get("type") not in MODELS:
            continue
        try:
            notes = check_settings(cfg)
        except TrainError as error:
            refused[path.stem] = str(error)
            continue
        passed += 1
        if notes:
            noted[path.stem] = [note.partition(" in ")[0] for note in notes]
    assert passed >= 60
    assert refused.keys() == REFUSED_STOCK.keys()
    assert all(REFUSED_STOCK[name] in message for name, message in refused.items())
    assert noted == {"ga_retinanet_r101_caffe_fpn_mstrain_2x": ["train_cfg", "test_cfg"]}
    assert check_settings(load_config("mmdet::retinanet/retinanet_r50_fpn_fp16_1x_coco.py", {"fp16": None})) == []
