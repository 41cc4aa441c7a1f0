"""Configs: files, `mmdet::` names, `--set`, and the way into a checkpoint and back."""

from __future__ import annotations

import inspect
import json
from types import SimpleNamespace

import pytest

from cskd_train.commands.run import _overrides
from cskd_train.engine.build import loading
from cskd_train.engine.evaluate import eval_workers
from cskd_train.engine.records import read_log
from cskd_train.errors import TrainError
from cskd_train.files.config import config_from_data, config_to_data, config_to_json, load_config, refuse_lost_tuples
from cskd_train.files.overrides import parse_overrides

from .runs import differences


@pytest.fixture
def write_config(tmp_path):
    def write(text, name="config.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def refused(path, **overrides):
    with pytest.raises(TrainError) as error:
        load_config(path, {key.replace("__", "."): value for key, value in overrides.items()})
    return str(error.value)


def test_a_missing_config_is_named(tmp_path):
    assert "nowhere.py: no such file" in refused(tmp_path / "nowhere.py")


def test_a_checkpoint_given_as_config_points_to_test(write_config):
    assert "to evaluate a checkpoint use `test`" in refused(write_config("", "best.pth"))


def test_a_syntax_error_names_the_line(write_config):
    assert "line 2" in refused(write_config("a = 1\nb = (\n"))


def test_a_name_error_names_the_line_and_leaves_the_import_path_alone(write_config):
    import sys

    before = list(sys.path)
    assert "line 2: NameError: name 'rot' is not defined" in refused(write_config("a = 1\nb = rot + 'x'\n"))
    assert sys.path == before


def test_a_missing_base_is_named(write_config):
    assert "(_base_) is missing" in (message := refused(write_config("_base_ = ['base_that_is_not.py']\n")))
    assert "base_that_is_not.py" in message


def test_a_config_that_mmdet_ships_is_found_by_its_name():
    assert load_config("mmdet::retinanet/retinanet_r18_fpn_1x_coco.py").model.backbone.depth == 18


def test_an_unknown_mmdet_name_offers_near_ones():
    message = refused("mmdet::retinanet/retinanet_r18_fpn_1x_coc.py")
    assert "mmdet::retinanet/retinanet_r18_fpn_1x_coco.py" in message


def test_the_data_root_moves_with_every_path_under_it():
    cfg = load_config("mmdet::retinanet/retinanet_r18_fpn_1x_coco.py", {"data_root": "/photos"})
    assert cfg.data.train.ann_file == "/photos/annotations/instances_train2017.json"
    assert cfg.data.val.img_prefix == "/photos/val2017/"
    assert cfg.data_root == "/photos"


def test_the_data_root_replaces_equal_roots_only(write_config):
    path = write_config(
        "data_root = 'a/'\ndata = dict(train=dict(data_root='a'), val=dict(data_root='b', ann_file='ab'))"
    )
    cfg = load_config(path, {"data_root": "/photos"})
    assert (cfg.data.train.data_root, cfg.data.val.data_root, cfg.data.val.ann_file) == ("/photos", "b", "ab")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8),
        ("1e-3", 0.001),
        ("[3, 4]", [3, 4]),
        ("(1, 0.5)", (1, 0.5)),
        ("{'max_norm': 5}", {"max_norm": 5}),
        ("true", True),
        ("False", False),
        ("none", None),
        ("data/shapes", "data/shapes"),
        ("'8'", "8"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_a_value_is_a_python_literal_or_text(text, value):
    assert parse_overrides([f"a.b={text}"]) == {"a.b": value}


@pytest.mark.parametrize("assignment", ["data.samples_per_gpu", "=4"])
def test_an_assignment_without_key_or_sign_is_refused(assignment):
    with pytest.raises(TrainError, match="expected KEY=VALUE"):
        parse_overrides([assignment])


def test_an_override_reaches_into_dicts_and_lists(tiny_config):
    cfg = load_config(tiny_config, {"data.train.pipeline.2.img_scale": (64, 64), "optimizer.lr": 0.5})
    assert cfg.data.train.pipeline[2].img_scale == (64, 64)
    assert cfg.optimizer.lr == 0.5


def test_an_unknown_key_is_refused_and_near_ones_offered(tiny_config):
    message = refused(tiny_config, data__sampels_per_gpu=8)
    assert "--set data.sampels_per_gpu: data has no key 'sampels_per_gpu'" in message
    assert "samples_per_gpu" in message.split("did you mean")[1]
    assert "did you mean model" in refused(tiny_config, modle__neck=None)
    assert "no key 'score_thresh'" in refused(tiny_config, model__test_cfg__score_thresh=0.1)


def test_a_place_outside_of_a_list_is_refused(tiny_config):
    assert "data.train.pipeline is a list of 8: give a place from 0 to 7" in refused(
        tiny_config, data__train__pipeline__9__img_scale=1
    )


def test_a_key_below_a_number_is_refused(tiny_config):
    assert "optimizer.lr is 0.001, not a group of settings" in refused(tiny_config, optimizer__lr__factor=2)


def test_settings_that_mmdet_takes_may_be_new(tiny_config):
    cfg = load_config(
        tiny_config,
        {
            "model.backbone.with_cp": True,  # a keyword argument of a class
            "lr_config.warmup_by_epoch": True,  # of a hook
            "evaluation.interval": 2,  # an optional block
            "seed": 3,
            "load_from": "weights.pth",
        },
    )
    assert cfg.model.backbone.with_cp is True
    assert cfg.lr_config.warmup_by_epoch is True
    assert cfg.evaluation.interval == 2
    assert (cfg.seed, cfg.load_from) == (3, "weights.pth")


def test_a_block_that_a_config_leaves_out_may_be_set_as_far_as_a_run_obeys_it(tiny_config):
    cfg = load_config(tiny_config, {"ema.decay": 0.999, "auto_scale_lr.enable": True, "deterministic": True})
    assert (cfg.ema.decay, cfg.auto_scale_lr.enable, cfg.deterministic) == (0.999, True, True)
    assert "no key 'decya'" in refused(tiny_config, ema__decya=0.999)


def test_a_block_that_is_none_may_be_filled(write_config):
    path = write_config("optimizer_config = dict(grad_clip=None)\n")
    assert load_config(path, {"optimizer_config.grad_clip.max_norm": 5}).optimizer_config.grad_clip.max_norm == 5


def test_a_setting_that_no_run_obeys_is_not_added_and_the_message_says_what_to_do(tiny_config):
    assert "--amp fp16" in refused(tiny_config, fp16__loss_scale=512)
    assert "write evaluation.interval" in refused(tiny_config, evaluation__start=3)
    assert "no key 'gpu_collect'" in refused(tiny_config, evaluation__gpu_collect=True)


LOADERS = """
data = dict(
    samples_per_gpu=4,
    workers_per_gpu=1,
    train_dataloader=dict(samples_per_gpu=16, workers_per_gpu=4, pin_memory=True),
    val_dataloader=dict(samples_per_gpu=1, workers_per_gpu=3),
)
"""


def test_batch_size_and_workers_of_the_command_line_reach_the_loaders_that_have_their_own(write_config):
    path = write_config(LOADERS)
    options = dict.fromkeys(inspect.signature(_overrides).parameters)
    given = _overrides(**{**options, "batch_size": 2, "workers": 0})
    cfg = load_config(path, given)
    assert loading(cfg) == (2, 0)
    assert eval_workers(cfg, "val") == 0
    assert config_to_data(cfg.data.train_dataloader) == {"pin_memory": True}
    assert loading(config_from_data(config_to_data(load_config(path)), given)) == (2, 0)
    assert loading(load_config(path)) == (16, 4)
    own = {"data.train_dataloader.workers_per_gpu": 5, "data.val_dataloader": {"workers_per_gpu": 6}}
    for both in ({**given, **own}, {**own, **given}):
        cfg = load_config(path, both)
        assert (loading(cfg), eval_workers(cfg, "val")) == ((2, 5), 6)


def test_a_variable_that_has_been_copied_into_settings_is_refused_with_these(tiny_config):
    message = refused(tiny_config, train_pipeline__2__img_scale=(64, 64))
    assert message.startswith("--set train_pipeline.2.img_scale: train_pipeline is a variable of the config file")
    assert message.endswith("; set data.train.pipeline")


def test_a_data_root_that_the_config_does_not_have_is_refused(write_config):
    assert "no key 'data_root'" in refused(write_config("data = dict(train=dict(ann_file='a.json'))"), data_root="/b")


# ${key} values

REFERENCES = """
root = "data/coco/"
sizes = dict(train=(1333, 800), batch=4)
data = dict(
    samples_per_gpu="${sizes.batch}",
    train=dict(ann_file="${root}ann/${sizes.batch}.json", scales=["${sizes.train}", ("${sizes.batch}", "$root")]),
)
same = "${data.train.scales}"
"""


def test_references_are_resolved_as_mmdet_does(write_config):
    from mmcv import Config
    from mmdet.utils import replace_cfg_vals

    path = write_config(REFERENCES.replace("${data.train.scales}", "${sizes}"))
    cfg = load_config(path)
    assert cfg.data.samples_per_gpu == 4
    assert cfg.data.train.ann_file == "data/coco/ann/4.json"
    assert cfg.data.train.scales == [(1333, 800), (4, "$root")]
    assert cfg.same == {"train": (1333, 800), "batch": 4}
    assert config_to_data(cfg) == config_to_data(replace_cfg_vals(Config.fromfile(str(path))))


def test_a_reference_to_a_value_with_references_is_resolved_to_the_end(write_config):
    assert load_config(write_config(REFERENCES)).same == [(1333, 800), (4, "$root")]


def test_a_reference_follows_what_is_set(write_config):
    cfg = load_config(write_config(REFERENCES), {"sizes.batch": 2, "root": "/photos/"})
    assert (cfg.data.samples_per_gpu, cfg.data.train.ann_file) == (2, "/photos/ann/2.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = dict(b=['${c.d}'])", "config key a.b.0: ${c.d} refers to a key that the config has not"),
        ("a = dict(b='${a.c}')", "config key a.b: ${a.c} refers to a key that the config has not"),
        ("a = 1\nb = '${a.c}'", "config key b: ${a.c} refers to a key that the config has not"),
        ("a = '${b}'\nb = 'x${a}'", "refers to itself"),
        ("a = [1]\nb = 'x${a}'", "config key b: ${a} is [1], which cannot be a part of a text"),
    ],
)
def test_a_reference_that_cannot_be_resolved_is_named(write_config, text, message):
    assert message in refused(write_config(text))


def test_a_config_survives_the_way_into_a_checkpoint_and_back(tiny_config):
    cfg = load_config(tiny_config)
    data = config_to_data(cfg)
    assert type(data["data"]["train"]) is dict
    assert type(data["model"]["backbone"]["out_indices"]) is tuple
    back = config_from_data(data, {"optimizer.lr": 1.0})
    assert back.optimizer.lr == 1.0
    assert config_to_data(config_from_data(data)) == data
    json.dumps(data)


def test_a_config_survives_the_way_into_json_and_back(tiny_config, tmp_path):
    cfg = config_to_data(load_config(tiny_config, {"optimizer.betas": (0.9, 0.99)}))
    written = json.dumps(config_to_json(cfg))
    (tmp_path / "config.json").write_text(written)
    read = config_to_data(load_config(tmp_path / "config.json"))
    assert differences(read, cfg) == []
    assert type(read["data"]["train"]["pipeline"][2]["img_scale"]) is tuple
    (tmp_path / "child.py").write_text("_base_ = ['config.json']\noptimizer = dict(betas=3)\n")
    child = config_to_data(load_config(tmp_path / "child.py"))
    assert differences(child, {**cfg, "optimizer": {**cfg["optimizer"], "betas": 3}}) == []


def test_a_size_in_a_list_is_refused_with_what_to_write(write_config, tiny_config, tmp_path):
    def refusal(file):
        with pytest.raises(TrainError) as error:
            refuse_lost_tuples(load_config(file))
        return str(error.value)

    refuse_lost_tuples(load_config(tiny_config))
    cfg = config_to_data(load_config(tiny_config))
    message = refusal(write_config(json.dumps(cfg), "config.json"))
    assert (
        "config.json: train_pipeline.2.img_scale = [128, 128] is a list, mmdet wants a tuple; JSON has none" in message
    )
    assert "give the config that the run was made from" in message
    cfg["train_pipeline"][2]["img_scale"] = [(128, 128), [128, 96]]
    message = refusal(write_config("\n".join(f"{key} = {value!r}" for key, value in cfg.items())))
    assert message.endswith("train_pipeline.2.img_scale = [128, 96] is a list, mmdet wants a tuple; write (128, 96)")


def test_a_run_can_be_made_from_the_config_of_another(train_tiny, trained, tmp_path):
    code, _, err = train_tiny(tmp_path / "w", config=trained / "config.json")
    assert code == 0, err
    runs = [read_log(folder / "log.jsonl") for folder in (trained, tmp_path / "w")]
    assert [one["loss"] for one in runs[0] if one["mode"] == "train"] == [
        one["loss"] for one in runs[1] if one["mode"] == "train"
    ]


def test_a_value_that_is_not_data_is_refused():
    with pytest.raises(TrainError, match=r"config key model\.extra\.1 holds SimpleNamespace"):
        config_to_data({"model": {"extra": [1, SimpleNamespace()]}})
