"""What a detector keeps beside its state dict: found without being named, and set in another of the same config."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cskd_train.engine.attributes import Attributes
from cskd_train.files import checkpoints
from cskd_train.files.config import load_config
from cskd_train.mm.plain import build_without_pretrained


class Assigner:
    def __init__(self):
        self.threshold = 0.5


class Head(nn.Module):
    """With all that may hold a number, and what is none."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)
        self.assigners = [Assigner(), Assigner()]
        self.parts = nn.ModuleList([nn.Dropout(), nn.ReLU()])
        self.history, self.size, self.steps, self.found = [], (1, 2), 0, None
        self.table = {"a": 1}
        self.same = self.conv
        self.assigners[0].holder = self


def trained(head):
    head.assigners[1].threshold = np.float64(0.7)
    head.history += [np.float64(0.25), 3]
    head.size, head.steps, head.found, head.use_l1 = (3, 4), 12, np.float32(1.5), True
    head.parts[0].p = 0.1
    head.table["a"] = 2
    head.eval()
    with torch.no_grad():
        head.conv.weight += 1
    return head


CHANGED = {
    ".history": [0.25, 3],
    ".size": (3, 4),
    ".steps": 12,
    ".found": 1.5,
    ".use_l1": True,
    "assigners.1.threshold": 0.7,
    "parts.0.p": 0.1,
}


def test_every_number_that_has_changed_is_found_and_set_in_another(tmp_path):
    head, other = Head(), Head()
    kept, kept_of_other = Attributes(head), Attributes(other)
    assert kept.changed() == {}
    trained(head)
    assert kept.changed() == CHANGED
    checkpoints.save(tmp_path / "a.pth", {"attributes": kept.changed()})  # which is read as data only
    values = checkpoints.read(tmp_path / "a.pth")["attributes"]
    kept_of_other.restore({**values, "no.such.part": 1})
    assert kept_of_other.changed() == CHANGED
    assert other.assigners[0].threshold == 0.5
    assert other.training


def test_what_is_restored_is_not_shared():
    head, values = Head(), {".history": [1.0]}
    kept = Attributes(head)
    kept.restore(values)
    head.history.append(2.0)
    assert values == {".history": [1.0]}
    assert (first := kept.changed()) == {".history": [1.0, 2.0]}
    head.history.append(3.0)
    assert first == {".history": [1.0, 2.0]}


def yolox(model):
    model._input_size, model._progress_in_iter, model.bbox_head.use_l1 = (416, 320), 7, True


def ddod(model):
    model.bbox_head.cls_num_pos_samples_per_level[2] += 5


@pytest.mark.parametrize(
    ("config", "step", "expected"),
    [
        (
            "mmdet::yolox/yolox_tiny_8x8_300e_coco.py",
            yolox,
            {"._input_size": (416, 320), "._progress_in_iter": 7, "bbox_head.use_l1": True},
        ),
        (
            "mmdet::ddod/ddod_r50_fpn_1x_coco.py",
            ddod,
            {"bbox_head.cls_num_pos_samples_per_level": [0.0, 0.0, 5.0, 0.0, 0.0]},
        ),
    ],
)
def test_detectors_of_mmdet_that_keep_such_numbers(config, step, expected):
    model = load_config(config).model
    if "depth" in model.backbone:
        model.backbone.update(depth=18)
        model.neck.in_channels = [64, 128, 256, 512]
    detector = build_without_pretrained(model)
    kept = Attributes(detector)
    assert kept.changed() == {}
    step(detector)
    assert kept.changed() == expected
