"""`--resume` of a detector that samples at random: the generator goes on where it was, on images higher than wide."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

TINY = Path(__file__).parent / "tiny_faster_rcnn.py"


@pytest.fixture(scope="module")
def distill_config(tmp_path_factory):
    """`tiny_faster_rcnn.py` under a teacher of random weights, a narrow Faster R-CNN of ResNet-50."""
    from mmcv import Config

    from cskd_train.mm.plain import build_without_pretrained

    folder = tmp_path_factory.mktemp("distilled")
    teacher = folder / "teacher.py"
    teacher.write_text(
        f"_base_ = [{str(TINY)!r}]\n"
        "model = dict(backbone=dict(depth=50), neck=dict(in_channels=[32, 64, 128, 256], out_channels=24),\n"
        "    rpn_head=dict(in_channels=24, feat_channels=24), roi_head=dict(bbox_roi_extractor=dict(out_channels=24),\n"
        "    bbox_head=dict(in_channels=24, fc_out_channels=48)))\n"
    )
    torch.manual_seed(8)
    model = build_without_pretrained(Config.fromfile(teacher).model)
    torch.save({"state_dict": model.state_dict()}, folder / "teacher.pth")
    config = folder / "distilled.py"
    config.write_text(
        f"_base_ = [{str(TINY)!r}]\n"
        f"distill = dict(teacher=dict(config={str(teacher)!r}, checkpoint={str(folder / 'teacher.pth')!r}),\n"
        "    pyramid=dict(full=(2, 0.25)), roi=dict(features_student=(3, 0.5), fc=(0.5, 2)))\n"
    )
    return config


def numbers(work_dir):
    """Every number of the log that does not measure time, from the first step on."""
    records = map(json.loads, (work_dir / "log.jsonl").read_text().splitlines())
    return [
        {key: value for key, value in one.items() if key not in ("time", "data_time")}
        for one in records
        if one["mode"] != "teacher"
    ]


def assert_same(value, other, path=""):
    """Equal to the last bit, all the way down."""
    if isinstance(value, dict):
        assert value.keys() == other.keys(), path
        for key in value:
            assert_same(value[key], other[key], f"{path}.{key}")
    elif isinstance(value, torch.Tensor):
        assert torch.equal(value, other), path
    else:
        assert value == other, path


@pytest.mark.parametrize("seed", [3, 11])
def test_a_distilled_detector_that_samples_at_random_resumes_to_the_last_bit(
    train_upright, distill_config, tmp_path, seed
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    code, _, err = train_upright(whole, "--seed", seed, config=distill_config)
    assert code == 0, err
    assert train_upright(parts, "--seed", seed, "runner.max_epochs=1", config=distill_config)[0] == 0
    assert numbers(parts) == numbers(whole)[:4]
    code, _, err = train_upright(parts, "--resume", config=distill_config)
    assert code == 0, err
    records = numbers(whole)
    assert [(one["mode"], one["epoch"], one["iter"]) for one in records] == [
        *(("train", 1, place) for place in (1, 2, 3)), ("val", 1, 3),
        *(("train", 2, place) for place in (4, 5, 6)), ("val", 2, 6),
    ]  # fmt: skip
    terms = {"loss_tower_rpn", "loss_roi_features_student", "loss_roi_features_teacher", "loss_roi_fc", "loss_rpn_cls"}
    assert terms <= records[0].keys()
    assert numbers(parts) == records
    last, resumed = (torch.load(folder / "last.pth", weights_only=True) for folder in (whole, parts))
    for key in ("state_dict", "distiller", "optimizer"):
        assert len(last[key]) > 0
        assert_same(last[key], resumed[key], key)


def test_other_seeds_of_a_step_sample_otherwise(train_upright, distill_config, tmp_path, monkeypatch):
    """Without this the test above would say nothing."""
    from cskd_train.engine import step

    assert train_upright(tmp_path / "kept", "runner.max_epochs=1", config=distill_config)[0] == 0
    other = shutil.copytree(tmp_path / "kept", tmp_path / "other")
    resumed, seed = [], step.seed_generators
    for folder in (tmp_path / "kept", other):
        assert train_upright(folder, "--resume", config=distill_config)[0] == 0
        resumed.append(numbers(folder)[4])
        monkeypatch.setattr(step, "seed_generators", lambda *position: seed(*position, 99))
    # The first step after: the same weights and images, other anchors and RoIs.
    assert resumed[0]["loss_pyramid_full"] == resumed[1]["loss_pyramid_full"]
    assert resumed[0]["loss_rpn_cls"] != resumed[1]["loss_rpn_cls"]
    assert resumed[0]["loss_roi_features_teacher"] != resumed[1]["loss_roi_features_teacher"]
