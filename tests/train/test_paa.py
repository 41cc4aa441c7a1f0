"""PAA, the one detector whose training asks for a package that mmdet does not install."""

from __future__ import annotations

import pytest
from mmcv import Config
from mmdet.models.dense_heads import paa_head

from cskd_train.errors import TrainError
from cskd_train.files.config import load_config
from cskd_train.mm.detector import build_student
from cskd_train.mm.plain import build_without_pretrained


@pytest.fixture
def model():
    model = load_config("mmdet::paa/paa_r50_fpn_1x_coco.py").model
    model.backbone.update(depth=18, base_channels=8, init_cfg=None)
    model.neck.update(in_channels=[8, 16, 32, 64], out_channels=32)
    model.bbox_head.update(in_channels=32, feat_channels=32)
    return model


def test_a_student_that_learns_with_scikit_learn_is_refused_without_it(model, monkeypatch):
    monkeypatch.setattr(paa_head, "skm", None)
    with pytest.raises(TrainError, match=r"a PAA learns .* scikit-learn .*pip install 'cskd-train\[paa\]'"):
        build_student(Config({"model": model}))


def test_with_scikit_learn_it_is_built_and_a_teacher_needs_none(model, monkeypatch):
    monkeypatch.setattr(paa_head, "skm", None)
    assert type(build_without_pretrained(model)).__name__ == "PAA"
    monkeypatch.setattr(paa_head, "skm", object())
    assert type(build_student(Config({"model": model}))).__name__ == "PAA"
