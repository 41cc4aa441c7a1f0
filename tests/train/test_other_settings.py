"""A student and a teacher of one family with other settings: what is adapted, what is refused, on upright images."""

from __future__ import annotations

import json
import math

import pytest
import torch
from mmcv import Config

from cskd_train.mm.plain import build_without_pretrained


@pytest.fixture
def distill(train_upright, tiny_config, tmp_path):
    """`distill(model, **plan)`: a run of one epoch of the tiny RetinaNet under a teacher that has `model` otherwise."""

    def run(model, config=tiny_config, **plan):
        (teacher := tmp_path / "teacher.py").write_text(f"_base_ = [{str(config)!r}]\nmodel = {model!r}\n")
        torch.manual_seed(8)
        weights = build_without_pretrained(Config.fromfile(teacher).model).state_dict()
        torch.save({"state_dict": weights}, tmp_path / "teacher.pth")
        plan["teacher"] = {"config": str(teacher), "checkpoint": str(tmp_path / "teacher.pth")}
        (distilled := tmp_path / "distilled.py").write_text(f"_base_ = [{str(config)!r}]\ndistill = {plan!r}\n")
        return train_upright(tmp_path / "w", "runner.max_epochs=1", config=distilled)

    return run


def test_a_deeper_and_wider_teacher_is_reached_through_adapters(distill, tmp_path):
    wide = {
        "backbone": {"depth": 50, "base_channels": 8},
        "neck": {"in_channels": [32, 64, 128, 256], "out_channels": 48},
        "bbox_head": {"in_channels": 48, "feat_channels": 40},
        "test_cfg": {"score_thr": 0.2, "nms": {"type": "nms", "iou_threshold": 0.7}, "max_per_img": 7},
    }
    code, _, err = distill(wide, tower={"cls": (2, 0.25), "reg": (0.5, 3)})
    assert code == 0, err
    contents = torch.load(tmp_path / "w" / "last.pth", weights_only=True)
    shapes = {}
    for key, value in contents["distiller"].items():
        if "adapters" in key and key.endswith("weight"):
            shapes.setdefault(key.split(".")[0], []).append(tuple(value.shape))
    assert shapes == {"pyramid": [(48, 32, 1, 1)] * 5, "tower": [(40, 32, 1, 1)] * 2 * 5 * 2}  # towers, levels, stages
    student = contents["state_dict"]
    assert student["neck.fpn_convs.0.conv.weight"].shape == (32, 32, 3, 3)
    assert student["bbox_head.reg_convs.1.conv.weight"].shape == (32, 32, 3, 3)
    records = [json.loads(line) for line in (tmp_path / "w" / "log.jsonl").read_text().splitlines()]
    for record in records[1:4]:  # the first is the teacher's
        assert all(math.isfinite(value) for name, value in record.items() if name.startswith("loss"))
        terms = ("pyramid_full", "pyramid_roi", "tower_cls", "tower_reg", "prediction_cls", "assistant_reg")
        assert all(record[f"loss_{name}"] > 0 for name in terms)


def test_another_number_of_anchors_a_position_is_refused_in_one_message(distill, tmp_path):
    code, out, err = distill({"bbox_head": {"anchor_generator": {"scales_per_octave": 2}}})
    assert (code, out) == (2, "")
    assert "the prediction 'cls' has 54 channels in the student and 36 in the teacher" in err
    assert "Traceback" not in err
    assert not (tmp_path / "w" / "last.pth").exists()


SAME_CHANNELS = [
    ("tiny_retinanet.py", {"bbox_head": {"anchor_generator": {"octave_base_scale": 2}}}),
    ("tiny_retinanet.py", {"bbox_head": {"anchor_generator": {"ratios": [0.25, 1.0, 4.0]}}}),
    ("tiny_retinanet.py", {"bbox_head": {"bbox_coder": {"target_stds": [0.1, 0.1, 0.2, 0.2]}}}),
    ("tiny_faster_rcnn.py", {"rpn_head": {"anchor_generator": {"scales": [8]}}}),
]


@pytest.mark.parametrize(("name", "change"), SAME_CHANNELS)
def test_other_anchors_of_the_same_number_are_refused(distill, tiny_config, name, change):
    code, _, err = distill(change, config=tiny_config.with_name(name))
    assert code == 2
    assert "anchor" in err or "bbox_coder" in err


@pytest.mark.parametrize(("name", "change"), SAME_CHANNELS[:1])
def test_other_anchors_are_no_matter_where_no_prediction_is_compared(distill, tiny_config, name, change):
    code, _, err = distill(change, config=tiny_config.with_name(name), prediction=None, assistant=None)
    assert code == 0, err
