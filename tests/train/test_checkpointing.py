"""Activation checkpointing changes what a distilled step costs, not what it computes."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
import torch.utils.checkpoint
from torch.utils.checkpoint import checkpoint

from cskd_core.errors import TapError
from cskd_train.files import silence_warnings

from . import pairs
from .pairs import step, total, trained


@pytest.fixture
def pair(narrow_model):
    """`pair("GFL")`, see `pairs.pair`."""
    return partial(pairs.pair, narrow_model)


def learn(model):
    """The losses of one step and the gradient of every trained parameter."""
    terms, own = step(model)
    total(model, terms, own).backward()
    return terms, {name: parameter.grad for name, parameter in trained(model).items()}


def check_same(found, expected):
    assert all(torch.equal(found[0][name], value) for name, value in expected[0].items())
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_a_backbone_with_checkpoints_gives_the_same_losses_and_gradients_without_a_warning(pair, family, monkeypatch):
    blocks = []
    monkeypatch.setattr(
        torch.utils.checkpoint,
        "checkpoint",
        lambda block, *arguments: blocks.append(block) or checkpoint(block, *arguments),
    )
    expected = learn(pair(family))
    assert blocks == []
    saving = {"backbone": {"with_cp": True}}
    model = pair(family, saving, saving)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        silence_warnings()
        found = learn(model)
    assert len(blocks) == 5  # of the student, those that are not frozen
    check_same(found, expected)


def in_checkpoint(model, reentrant):
    """The same model with towers and predictors of the student's dense head in a checkpoint, once a level."""
    head = model.student.rpn_head if hasattr(model.student, "rpn_head") else model.student.bbox_head
    head.forward_single = partial(checkpoint, head.forward_single, use_reentrant=reentrant)
    return model


def test_a_head_in_checkpoints_gives_the_same_losses_and_gradients(pair, family):
    check_same(learn(in_checkpoint(pair(family), reentrant=False)), learn(pair(family)))


def test_a_head_in_reentrant_checkpoints_whose_towers_could_not_learn_is_refused(pair, family):
    tap = "'rpn' on 'rpn_head.rpn_cls@inputs'" if family == "FasterRCNN" else "'cls0' on 'bbox_head.cls_convs.0'"
    with pytest.raises(TapError, match=rf"tap {tap} runs without gradients.* use_reentrant=False"):
        step(in_checkpoint(pair(family), reentrant=True))
