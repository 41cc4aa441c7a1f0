"""One distilled step of each family on every device: float32 and mixed precision against float64 on the processor."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch

from cskd_train.engine.device import choose_device
from cskd_train.engine.distributed import World
from cskd_train.engine.loader import Batch, seed_generators, to_device
from cskd_train.engine.step import TrainStep

from . import pairs

# Big enough for every level that has one above it: of one cell, torch's bfloat16 gradient on processors is wrong.
DATA = {
    "img": torch.randn(2, 3, 96, 160, generator=torch.Generator().manual_seed(0)),
    "img_metas": [
        {"img_shape": (90, 100, 3), "pad_shape": (96, 128, 3), "scale_factor": 1.0},
        {"img_shape": (96, 160, 3), "pad_shape": (96, 160, 3), "scale_factor": 1.0},
    ],
    "gt_bboxes": [
        torch.tensor([[4.0, 6.0, 80.0, 50.0]]),
        torch.tensor([[10.0, 10.0, 140.0, 80.0], [0.0, 0.0, 16.0, 16.0]]),
    ],
    "gt_labels": [torch.tensor([1]), torch.tensor([0, 3])],
}
RECIPE = {
    "pyramid": {"full": (1, 0.5), "roi": (1, 0.5), "foreground": (1, 0.5), "background": (1, 0.5)},
    "prediction": (1, 0.5),
    "assistant": True,
}
ONE_STAGE = {"tower": {"cls": (1, 0.5), "reg": (1, 0.5)}}
TWO_STAGE = {
    "tower": {"rpn": (1, 0.5)},
    "roi": {"features_student": (1, 0.5), "features_teacher": (1, 0.5), "fc": (1, 1), "prediction": (1, 1)},
}
# The largest relative difference from float64: of the sum of the losses, of the change of all weights.
SUM_WITHIN = {None: 1e-4, "bf16": 0.01, "fp16": 0.005}
MOVE_WITHIN = {None: 1e-3, "bf16": 0.15, "fp16": 0.05}
CLIP = {"max_norm": 1.0}


def weights(model):
    return {name: parameter.detach().double().cpu() for name, parameter in pairs.trained(model).items()}


def length(vectors):
    return math.sqrt(sum(float(vector.square().sum()) for vector in vectors.values()))


def moves(before, after):
    return {name: after[name] - before[name] for name in before}


def exact_step(model):
    """The terms of the step in float64 on the processor, and the weights after clipped SGD."""
    model = deepcopy(model).double()
    seed_generators(0, 0, 0, 1)
    loss, terms = model.student._parse_losses(model(**{**DATA, "img": DATA["img"].double()}))
    loss.backward()
    parameters = list(pairs.trained(model).values())
    torch.nn.utils.clip_grad_norm_(parameters, **CLIP)
    torch.optim.SGD(parameters, lr=0.1).step()
    return terms, weights(model)


@pytest.mark.parametrize("amp", [None, "bf16", "fp16"])
def test_a_distilled_step_is_that_of_float64_within_its_precision(narrow_model, family, device, amp):
    model = pairs.pair(narrow_model, family, **RECIPE, **(TWO_STAGE if family == "FasterRCNN" else ONE_STAGE))
    terms, goal = exact_step(model)
    world = World(device=choose_device(device))
    model.to(world.device)
    parameters, before = list(pairs.trained(model).values()), weights(model)
    step = TrainStep(model, torch.optim.SGD(parameters, lr=0.1), world, clip=CLIP, amp=amp)
    step.scaler = torch.amp.GradScaler(device, init_scale=256.0, enabled=amp == "fp16")  # that overflows nowhere

    report = step([Batch(epoch=0, number=0, data=DATA)])

    assert not report.skipped
    assert {parameter.device.type for parameter in parameters} == {device}
    assert set(report.terms) - {"grad_norm"} == set(terms)
    assert report.terms["loss"] == pytest.approx(terms["loss"], rel=SUM_WITHIN[amp])
    if amp is None:
        assert report.terms == pytest.approx({**terms, "grad_norm": report.terms["grad_norm"]}, rel=1e-3, abs=1e-4)
    wanted, found = moves(before, goal), moves(before, weights(model))
    assert length(wanted) == pytest.approx(0.1, rel=1e-3)  # the learning rate times the norm that is clipped to
    assert length(moves(wanted, found)) / length(wanted) < MOVE_WITHIN[amp]


def test_a_batch_goes_to_the_device_whole(device):
    moved = to_device(DATA, choose_device(device))
    tensors = [moved["img"], *moved["gt_bboxes"], *moved["gt_labels"]]
    assert {tensor.device.type for tensor in tensors} == {device}
    assert torch.equal(moved["gt_bboxes"][1].cpu(), DATA["gt_bboxes"][1])
    assert [meta["scale_factor"] for meta in moved["img_metas"]] == [1.0, 1.0]
