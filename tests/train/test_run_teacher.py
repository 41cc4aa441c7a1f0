"""`cskd-train run --teacher ... --teacher-checkpoint ...`: any supported detector distilled without a recipe."""

from __future__ import annotations

import json
import math

import pytest
import torch

from cskd_train.engine.records import read_log
from cskd_train.files import checkpoints
from cskd_train.files.config import config_to_data, load_config
from cskd_train.mm.plain import build_without_pretrained

from .pairs import TERMS

SHAPES = ("circle", "ring", "square", "triangle", "star", "cross")
# One iteration and no evaluation.
SHORT = ("--set", "runner.max_epochs=1", "--set", "data.samples_per_gpu=12", "--set", "data.val=None")


@pytest.fixture
def plain_teacher(trained, tmp_path):
    """The weights of the `trained` run as mmdet saves them: without a config."""
    weights = checkpoints.read(trained / "best.pth")["state_dict"]
    file = tmp_path / "plain.pth"
    checkpoints.save(file, {"state_dict": weights, "meta": {"CLASSES": SHAPES}})
    return file


@pytest.fixture
def config_of(narrow_model, tiny_config, tmp_path):
    """`config_of("GFL", depth=50)`: a file with `tiny_config`'s data and schedule and another detector."""

    def write(family, depth=18):
        model = config_to_data(narrow_model(family, depth, classes=6))
        if family == "FasterRCNN":
            model["train_cfg"]["rpn_proposal"] |= {"nms_pre": 100, "max_per_img": 50}
            model["train_cfg"]["rcnn"]["sampler"]["num"] = 32
        file = tmp_path / f"{family.lower()}_r{depth}.py"
        file.write_text(f"_base_ = [{str(tiny_config)!r}]\nmodel = dict(_delete_=True, **{model!r})\n")
        return file

    return write


def save_teacher(file, config_file, classes=SHAPES, **config):
    """What a finished run of a config leaves, its weights untrained; keywords replace parts of the stored config."""
    torch.manual_seed(1)
    cfg = load_config(config_file)
    meta = {"format": checkpoints.FORMAT, "version": checkpoints.FORMAT_VERSION, "CLASSES": list(classes)}
    meta["config"] = {**config_to_data(cfg), **config}
    checkpoints.save(file, {"state_dict": build_without_pretrained(cfg.model).state_dict(), "meta": meta})
    return file


def losses(work_dir):
    """What each iteration logged: term -> value."""
    records = [record for record in read_log(work_dir / "log.jsonl") if record["mode"] == "train"]
    return [{name: value for name, value in record.items() if "loss" in name} for record in records]


def refused(answer, work_dir):
    """The one message of a command that ended with bad input and left nothing."""
    code, out, err = answer
    assert code == 2, err
    assert out == ""
    assert "Traceback" not in err
    assert not work_dir.exists() or not list(work_dir.iterdir())
    return err


# What is trained


def test_a_plain_config_trains_under_the_teacher_that_the_options_name(
    train_tiny, tiny_config, plain_teacher, trained, tmp_path
):
    work_dir = tmp_path / "distilled"
    code, out, err = train_tiny(
        work_dir, "--teacher", tiny_config, "--teacher-checkpoint", plain_teacher, "--set", "runner.max_epochs=1"
    )
    assert code == 0, err
    assert "distilled" in out
    logged = losses(work_dir)
    assert len(logged) == 3
    assert set(logged[0]) == {"loss", "loss_cls", "loss_bbox"} | {f"loss_{term}" for term in TERMS["RetinaNet"]}
    assert all(math.isfinite(value) for record in logged for value in record.values())
    # The first iteration begins with the weights and the images of the run without a teacher.
    assert logged[0]["loss_cls"] == losses(trained)[0]["loss_cls"]
    assert logged[0]["loss"] > losses(trained)[0]["loss"]
    assert json.loads((work_dir / "result.json").read_text())["distilled"] is True
    stored = json.loads((work_dir / "config.json").read_text())["distill"]["teacher"]
    assert stored == {"config": str(tiny_config), "checkpoint": str(plain_teacher)}


def test_the_best_checkpoint_is_the_plain_student(train_tiny, trained, tmp_path):
    options = ("--teacher-checkpoint", trained / "best.pth", "--set", "runner.max_epochs=1")
    code, _, err = train_tiny(tmp_path / "w", *options)
    assert code == 0, err
    best, plain = (checkpoints.read(folder / "best.pth") for folder in (tmp_path / "w", trained))
    assert list(best["state_dict"]) == list(plain["state_dict"])
    assert "distiller" not in best
    assert best["meta"]["distilled"] is True
    model = build_without_pretrained(load_config(tmp_path / "w" / "config.json").model)
    model.load_state_dict(best["state_dict"])


def test_a_preset_is_set_beside_a_teacher_checkpoint_that_brings_its_own_config(train_tiny, trained, tmp_path):
    teacher = ("--teacher-checkpoint", trained / "best.pth")
    for name, options in (("published", ()), ("fixed", ("--set", "distill.preset=cskd-fixed"))):
        code, _, err = train_tiny(tmp_path / name, *SHORT, *teacher, *options)
        assert code == 0, err
    published, fixed = (checkpoints.read(tmp_path / name / "last.pth") for name in ("published", "fixed"))
    assert {name.split(".")[0] for name in published["distiller"]} == {"pyramid", "assistant"}
    assert {name.split(".")[0] for name in fixed["distiller"]} == {"pyramid", "assistant", "tower"}
    (before,), (after,) = losses(tmp_path / "published"), losses(tmp_path / "fixed")
    assert after["loss_cls"] == before["loss_cls"]
    assert after["loss_pyramid_foreground"] < before["loss_pyramid_foreground"]


def test_the_options_replace_the_teacher_of_a_recipe_and_nothing_else(train_tiny, tiny_config, trained, tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        f"_base_ = [{str(tiny_config)!r}]\n"
        "distill = dict(teacher=dict(checkpoint='nowhere.pth', normalization='shared'), pyramid=None, tower=None)\n"
    )
    options = (*SHORT, "--teacher-checkpoint", trained / "best.pth")
    code, _, err = train_tiny(tmp_path / "w", *options, config=recipe)
    assert code == 0, err
    (logged,) = losses(tmp_path / "w")
    terms = {f"loss_{term}" for term in ("prediction_cls", "prediction_reg", "assistant_cls", "assistant_reg")}
    assert set(logged) == {"loss", "loss_cls", "loss_bbox"} | terms
    stored = json.loads((tmp_path / "w" / "config.json").read_text())["distill"]["teacher"]
    assert stored == {"checkpoint": str(trained / "best.pth"), "normalization": "shared"}


def test_each_family_trains_under_a_deeper_teacher_without_a_recipe(train_tiny, config_of, family, tmp_path):
    student, teacher = config_of(family), save_teacher(tmp_path / "teacher.pth", config_of(family, 50))
    options = ("--set", "runner.max_epochs=1", "--set", "data.samples_per_gpu=6", "--set", "data.val=None")
    code, out, err = train_tiny(tmp_path / "w", *options, "--teacher-checkpoint", teacher, config=student)
    assert code == 0, err
    assert "distilled" in out
    logged = losses(tmp_path / "w")
    assert len(logged) == 2
    assert {f"loss_{term}" for term in TERMS[family]} < set(logged[0])
    assert all(math.isfinite(value) for record in logged for value in record.values())
    last = checkpoints.read(tmp_path / "w" / "last.pth")
    assert set(last["state_dict"]) == set(build_without_pretrained(load_config(student).model).state_dict())
    assert len(last["distiller"]) > 0


def test_what_was_fitted_is_said_before_training(train_tiny, config_of, tmp_path):
    caffe = {"type": "Normalize", "mean": [103.53, 116.28, 123.675], "std": [1.0, 1.0, 1.0], "to_rgb": False}
    data = {"train": {"type": "CocoDataset", "pipeline": [caffe]}}
    teacher = save_teacher(tmp_path / "teacher.pth", config_of("FCOS", 50), data=data)
    options = (*SHORT, "--teacher-checkpoint", teacher, "--set", "distill.init_student=True")
    code, _, err = train_tiny(tmp_path / "w", *options, config=config_of("FCOS"))
    assert code == 0, err
    assert "neck and heads start from the teacher's" in err
    assert "the teacher sees its own normalisation of the images" in err
    assert err.index("the teacher sees its own") < err.index("epoch 1/1")


def test_other_classes_are_refused_until_they_are_mapped(train_tiny, tiny_config, tmp_path):
    teacher = save_teacher(tmp_path / "teacher.pth", tiny_config, SHAPES[::-1])
    options = (*SHORT, "--teacher-checkpoint", teacher)
    message = refused(train_tiny(tmp_path / "w", *options), tmp_path / "w")
    assert "the student's classes are (circle, ring, square, triangle, star, ... (6 in all))" in message
    assert "the teacher's (cross, star, triangle, square, ring, ... (6 in all)) in another order" in message
    code, _, err = train_tiny(tmp_path / "w", *options, "--set", "distill.teacher.class_map={}")
    assert code == 0, err


# What is refused


def test_a_teacher_config_without_weights_is_a_usage_error(train_tiny, tiny_config, tmp_path):
    message = refused(train_tiny(tmp_path / "w", "--teacher", tiny_config), tmp_path / "w")
    assert "Usage: cskd-train run" in message
    assert "--teacher names a config; its weights come from --teacher-checkpoint FILE" in message


def test_a_missing_teacher_checkpoint_says_how_to_come_by_one(train_tiny, tiny_config, tmp_path):
    work_dir, missing = tmp_path / "w", tmp_path / "teacher" / "best.pth"
    answer = train_tiny(work_dir, "--teacher", tiny_config, "--teacher-checkpoint", missing)
    message = refused(answer, work_dir)
    assert f"error: the teacher's checkpoint {missing} does not exist" in message
    assert f"train the teacher first: cskd-train run {tiny_config} --work-dir {missing.parent}" in message
    assert "name another file with --set distill.teacher.checkpoint=FILE" in message


def test_weights_without_a_config_ask_for_the_option_that_names_one(train_tiny, plain_teacher, tmp_path):
    message = refused(train_tiny(tmp_path / "w", "--teacher-checkpoint", plain_teacher), tmp_path / "w")
    assert f"error: the teacher's checkpoint {plain_teacher} holds no config" in message
    assert "by --teacher CONFIG or in the recipe's distill.teacher.config" in message


def test_a_config_that_does_not_exist_offers_near_ones(train_tiny, plain_teacher, tmp_path):
    options = ("--teacher", "mmdet::retinanet/retinanet_r5_fpn.py", "--teacher-checkpoint", plain_teacher)
    message = refused(train_tiny(tmp_path / "w", *options), tmp_path / "w")
    assert "mmdet ships no such file; near ones: mmdet::retinanet/retinanet_r50" in message


def test_weights_of_another_detector_than_the_teacher_config_are_refused(train_tiny, plain_teacher, tmp_path):
    options = ("--teacher", "mmdet::gfl/gfl_r50_fpn_1x_coco.py", "--teacher-checkpoint", plain_teacher)
    message = refused(train_tiny(tmp_path / "w", *options), tmp_path / "w")
    assert f"checkpoint {plain_teacher} is of another architecture than this GFL" in message
    assert "Give the config that it was trained with" in message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["distill.preset=fixed"], "distill.preset: expected one of 'published', 'cskd-fixed', got 'fixed'"),
        (["distill.tower={'adaptor': True}"], "distill.tower: unknown key 'adaptor'; did you mean 'adapter'?"),
        (["distill.roi={'fc': (2, 2)}"], "distill.roi: a RetinaNet has no use for it; take it out"),
        (["distill.init_student=True", "load_from=some.pth"], "load_from = 'some.pth' and distill.init_student=True"),
        (["distill.teacher.class_map={'cirle': 'ring'}"], "the student has no class 'cirle' (near: circle)"),
    ],
)
def test_settings_beside_a_teacher_checkpoint_are_checked(train_tiny, trained, tmp_path, settings, message):
    options = [option for setting in settings for option in ("--set", setting)]
    answer = train_tiny(tmp_path / "w", "--teacher-checkpoint", trained / "best.pth", *options)
    assert message in refused(answer, tmp_path / "w")
