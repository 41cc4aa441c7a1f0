"""Checkpoints that other programs wrote: the published research code's, mmdet's own, and the names that tell them."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from cskd_train.errors import TrainError
from cskd_train.files.checkpoints import is_published_distillation, load_checkpoint, load_weights
from cskd_train.mm.plain import build_without_pretrained

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "golden.json").read_text())
CLASSES = ("car", "bus", "truck", "bicycle")
META = {
    "env_info": "sys.platform: linux",
    "config": "model = dict(type='RetinaNet')\n",
    "seed": 42,
    "exp_name": "cskd.py",
    "epoch": 12,
    "iter": 87960,
    "hook_msgs": {"best_score": 0.382, "best_ckpt": "work_dirs/best.pth"},
    "mmcv_version": "1.4.7",
    "mmdet_version": "2.22.0+698be4c",
    "time": "Sat Jan  1 00:00:00 2022",
    "CLASSES": CLASSES,
    "PALETTE": [(220, 20, 60), (119, 11, 32)],
}


def layer(name, outputs, inputs, kernel=None):
    """Weight and bias of a convolution, or of a linear layer."""
    shape = (outputs, inputs) if kernel is None else (outputs, inputs, kernel, kernel)
    return {f"{name}.weight": torch.randn(shape), f"{name}.bias": torch.randn(outputs)}


def distillation_of(family, width=32, classes=4):
    """What the published code keeps in its student beside the detector (docs/algorithm.md 7.2), `width` channels."""
    weights = {}
    if family == "FasterRCNN":
        for level in range(5):
            weights |= layer(f"rpn_head.distill_neck.{level}.mimic_conv", width, width, 1)
            weights |= layer(f"rpn_head.distill_head.{level}.mimic_conv", width, width, 1)
        weights |= layer("rpn_head.assist_rpn_cls", 3, width, 1) | layer("rpn_head.assist_rpn_reg", 12, width, 1)
        box_head = "roi_head.bbox_head"
        for rois in ("st", "tch"):
            weights |= layer(f"{box_head}.distill_roi.mimic_conv_{rois}_rois", width, width, 1)
        for fc in range(2):
            weights |= layer(f"{box_head}.distill_head.{fc}.mimic_linear", width, width)
        weights |= layer(f"{box_head}.assist_fc_cls", classes + 1, width)
        return weights | layer(f"{box_head}.assist_fc_reg", 4 * classes, width)
    for level in range(5):
        weights |= layer(f"bbox_head.distill_neck.{level}.mimic_conv", width, width, 1)
        for tower in ("reg", "cls"):
            for stage in range(4):
                weights |= layer(f"bbox_head.distill_brnch_{tower}.{level}.mimic_conv.{stage}", width, width, 1)
        if family != "RetinaNet":
            weights[f"bbox_head.assis_scales.{level}.scale"] = torch.tensor(1.5)
    outputs = {
        "RetinaNet": {"retina_cls": 9 * classes, "retina_reg": 36},
        "FCOS": {"conv_cls": classes, "conv_reg": 4, "conv_centerness": 1},
        "GFL": {"gfl_cls": classes, "gfl_reg": 68},
    }
    for name, count in outputs[family].items():
        weights |= layer(f"bbox_head.assis_{name}", count, width, 3)
    return weights


@pytest.fixture
def model(narrow_model, family):
    torch.manual_seed(0)
    return build_without_pretrained(narrow_model(family))


@pytest.fixture
def published(model, family, tmp_path):
    """`published(metadata=True, **more weights)`: a student's file as the published code writes it."""

    def write(metadata=True, **more):
        weights = OrderedDict(**model.state_dict(), **distillation_of(family), **more)
        if metadata:
            weights._metadata = model.state_dict()._metadata
        optimizer = {"state": {}, "param_groups": [{"lr": 0.01, "params": [0]}]}
        torch.save({"meta": META, "state_dict": weights, "optimizer": optimizer}, path := tmp_path / "published.pth")
        return path

    return write


@pytest.mark.parametrize("metadata", [True, False], ids=["with metadata", "without metadata"])
def test_a_published_students_detector_is_loaded_whole_and_nothing_else(
    model, narrow_model, family, published, metadata
):
    checkpoint = load_checkpoint(published(metadata), require_config=False)
    other = build_without_pretrained(narrow_model(family))
    load_weights(other, checkpoint)
    expected = model.state_dict()
    assert list(checkpoint.state_dict) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in other.state_dict().items())
    assert checkpoint.classes == CLASSES


@pytest.mark.parametrize("family", ["FCOS"], indirect=True)
def test_mmdet_alone_would_overwrite_the_predictor_with_the_assistants(model, published):
    weights = torch.load(path := published(metadata=False), weights_only=True)["state_dict"]
    student, assistant = (weights[f"bbox_head.{name}.weight"] for name in ("conv_cls", "assis_conv_cls"))
    model.load_state_dict(OrderedDict(weights), strict=False)
    assert torch.equal(model.bbox_head.conv_cls.weight, assistant)
    load_weights(model, load_checkpoint(path, require_config=False))
    assert torch.equal(model.bbox_head.conv_cls.weight, student)


@pytest.mark.parametrize("family", ["FCOS", "FasterRCNN"], indirect=True)
def test_a_key_that_only_resembles_them_is_named_as_unexpected(model, published):
    checkpoint = load_checkpoint(published(**{"bbox_head.assis_conv_iou.weight": torch.ones(1)}), require_config=False)
    with pytest.raises(
        TrainError, match=r"published\.pth is of another arch.*: bbox_head\.assis_conv_iou\.weight is un"
    ):
        load_weights(model, checkpoint)


@pytest.mark.parametrize(
    "key",
    [
        "bbox_head.distill_neck.0.mimic_conv.running_mean",
        "bbox_head.distill_neck.mimic_conv.weight",
        "bbox_head.distill_brnch_iou.0.mimic_conv.0.weight",
        "bbox_head.distill_brnch_cls.0.mimic_conv.weight",
        "bbox_head.assis_scales.0.weight",
        "bbox_head.assist_fc_cls.weight",
        "neck.distill_neck.0.mimic_conv.weight",
        "roi_head.distill_roi.mimic_conv_st_rois.weight",
        "teacher.bbox_head.assis_conv_cls.weight",
        "bbox_head.assis_conv_cls.weight.0",
        "bbox_head_assis_conv_cls.weight",
    ],
)
def test_only_the_exact_names_count(key):
    assert not is_published_distillation(key)


@pytest.mark.parametrize("entry", GOLDEN, ids=[entry["case"]["name"] for entry in GOLDEN])
def test_every_parameter_of_the_published_code_is_either_stock_or_recognised(narrow_model, entry):
    family = {"retina": "RetinaNet", "fcos": "FCOS", "gfl": "GFL", "faster": "FasterRCNN"}[
        re.match("[a-z]+", entry["case"]["name"])[0]
    ]
    names = {name for name in (*entry["grads"], *entry["no_grad"]) if not name.startswith("backbone.")}
    model = narrow_model(family)
    if family == "FCOS":
        model.bbox_head.conv_bias = True  # as the published recipes have it
    stock = {name for name, _ in build_without_pretrained(model).named_parameters() if not name.startswith("backbone.")}
    assert {name for name in names if is_published_distillation(name)} == set(distillation_of(family))
    assert {name for name in names if not is_published_distillation(name)} == stock


@pytest.mark.parametrize("family", ["GFL", "FasterRCNN"], indirect=True)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_plain_mmdet_checkpoint_gives_weights_and_classes(model, narrow_model, family, tmp_path, zipped):
    contents = {"meta": META, "state_dict": model.state_dict()}
    torch.save(contents, path := tmp_path / "mmdet.pth", _use_new_zipfile_serialization=zipped)
    checkpoint = load_checkpoint(path, require_config=False)
    assert checkpoint.classes == CLASSES
    assert (checkpoint.config, checkpoint.meta) == ({}, {})
    other = build_without_pretrained(narrow_model(family))
    load_weights(other, checkpoint)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in other.state_dict().items())


@pytest.mark.parametrize("names", [None, "person", [1, 2]])
def test_class_names_that_are_none_are_left_out(tmp_path, names):
    torch.save({"meta": {"CLASSES": names}, "state_dict": {"a": torch.ones(1)}}, path := tmp_path / "mmdet.pth")
    assert load_checkpoint(path, require_config=False).classes == ()


@pytest.mark.parametrize("family", ["FCOS"], indirect=True)
def test_the_predictors_of_mmdets_first_fcos_take_their_present_names(model, narrow_model, tmp_path):
    weights = {key.replace("bbox_head.conv_", "bbox_head.fcos_"): value for key, value in model.state_dict().items()}
    assert "bbox_head.fcos_centerness.bias" in weights
    torch.save({"state_dict": weights}, path := tmp_path / "fcos.pth")
    other = build_without_pretrained(narrow_model("FCOS"))
    load_weights(other, load_checkpoint(path, require_config=False))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in other.state_dict().items())


@pytest.fixture
def published_run(trained, tmp_path):
    """The tiny RetinaNet that `trained` holds, as the published code would have saved it."""
    weights = torch.load(trained / "best.pth", weights_only=True)["state_dict"] | distillation_of(
        "RetinaNet", classes=6
    )
    classes = load_checkpoint(trained / "best.pth").classes
    torch.save({"meta": {**META, "CLASSES": classes}, "state_dict": weights}, path := tmp_path / "published.pth")
    return path


def test_it_is_evaluated_like_the_student_that_it_holds(trained, published_run, tiny_config, shapes_root, command_line):
    options = ("--set", f"data_root={shapes_root}", "--json")
    metrics = []
    for checkpoint in (trained / "best.pth", published_run):
        code, out, err = command_line("test", checkpoint, "--config", tiny_config, *options)
        assert code == 0, err
        metrics.append(json.loads(out)["metrics"])
    assert metrics[0] == metrics[1]


def test_a_run_starts_from_it(published_run, train_tiny, tmp_path):
    one_epoch = ("--set", "runner.max_epochs=1", "--set", "optimizer.lr=0.0", "--set", f"load_from={published_run}")
    code, _, err = train_tiny(tmp_path / "work", *one_epoch)
    assert code == 0, err
    key = "bbox_head.retina_cls.weight"
    expected = torch.load(published_run, weights_only=True)["state_dict"][key]
    torch.testing.assert_close(load_checkpoint(tmp_path / "work" / "last.pth").state_dict[key], expected)


def test_it_is_exported_with_its_config(published_run, tiny_config):
    from cskd_deploy.exporter.student import load_student

    student = load_student(published_run, tiny_config)
    assert student.classes == ("circle", "ring", "square", "triangle", "star", "cross")
    assert not any(is_published_distillation(key) for key in student.model.state_dict())
