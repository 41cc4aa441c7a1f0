"""A distilled step under autocast in both half precisions, on images that are not square."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from cskd_core.taps import Taps
from cskd_train.mm.detector import float32_heads
from cskd_train.mm.plain import build_without_pretrained

from . import pairs
from .pairs import LABELS, check_gradients, model_of

IMAGES = torch.randn(2, 3, 96, 160, generator=torch.Generator().manual_seed(0))
METAS = [
    {"img_shape": (90, 100, 3), "pad_shape": (96, 128, 3), "scale_factor": 1.0},
    {"img_shape": (96, 160, 3), "pad_shape": (96, 160, 3), "scale_factor": 1.0},
]
BOXES = [torch.tensor([[4.0, 6.0, 80.0, 50.0]]), torch.tensor([[10.0, 10.0, 140.0, 80.0], [0.0, 0.0, 16.0, 16.0]])]

HALF = [torch.float16, torch.bfloat16]
TOLERANCE = {torch.float16: 0.003, torch.bfloat16: 0.01}  # of a total
half_precisions = pytest.mark.parametrize("dtype", HALF, ids=["float16", "bfloat16"])


@pytest.fixture
def pair(narrow_model):
    """`pair("GFL")`, see `pairs.pair`."""
    return partial(pairs.pair, narrow_model)


@pytest.fixture
def student(narrow_model):
    """`student("GFL")` -> a detector in training mode."""

    def build(family):
        torch.manual_seed(0)
        return build_without_pretrained(model_of(narrow_model, family)).train()

    return build


def step(detector, dtype=None):
    """The losses of a student, or of one under its distiller; without `dtype` in float32."""
    torch.manual_seed(0)  # mmdet samples anchors and RoIs at random
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        return detector(img=IMAGES, img_metas=METAS, gt_bboxes=BOXES, gt_labels=LABELS)


def tensors(value):
    """Every tensor inside nested lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in items for tensor in tensors(item)]


@half_precisions
def test_totals_are_those_of_float32_and_gradients_finite(pair, family, dtype):
    model = pair(family)
    exact, _ = model.student._parse_losses(step(model))
    losses = step(model, dtype)
    assert {tensor.dtype for tensor in tensors(losses)} == {torch.float32}
    total, _ = model.student._parse_losses(losses)
    assert total.item() == pytest.approx(exact.item(), rel=TOLERANCE[dtype])
    total.backward()
    check_gradients(model)


@half_precisions
def test_all_of_a_distillation_is_computed_in_float32(pair, family, dtype):
    model = pair(family)
    seen, watched = {}, list(model.distiller.named_modules())
    if family == "FasterRCNN":  # both second stages run at the teacher's RoIs within the terms
        for role, detector in (("student", model.student), ("teacher", model.distiller.teacher.detector)):
            watched += [(f"{role} {name}", module) for name, module in detector.roi_head.named_modules()]

    def note(name):
        def hook(_module, inputs, output):
            seen.setdefault(name, set()).update(tensor.dtype for tensor in tensors((inputs, output)))

        return hook

    def watch(_module, _inputs):
        for name, module in watched:
            if not list(module.children()):
                module.register_forward_hook(note(name))

    model.distiller.register_forward_pre_hook(watch)
    step(model, dtype)
    assert {dtype for dtypes in seen.values() for dtype in dtypes} == {torch.float32}
    assert any("pyramid.adapters" in name for name in seen)
    assert any("assistant.predictors" in name for name in seen)
    assert (family == "FasterRCNN") == any("teacher bbox_head.fc_cls" in name for name in seen)


@half_precisions
@pytest.mark.parametrize("detector", ["RetinaNet", "FCOS", "GFL", "FasterRCNN"])
def test_a_heads_losses_and_boxes_are_those_of_its_predictions_in_float32(student, detector, dtype):
    model = student(detector)
    if detector == "FasterRCNN":
        head, labels = model.rpn_head, ()
    else:
        head, labels = model.bbox_head, (LABELS,)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        predictions = head(model.extract_feat(IMAGES))
    exact = [[level.float() for level in levels] for levels in predictions]

    def compute(predictions):
        torch.manual_seed(0)  # a proposal network samples anchors
        losses = head.loss(*predictions, BOXES, *labels, METAS)
        return tensors(losses), tensors(head.get_bboxes(*predictions, img_metas=METAS, cfg=box_config(model)))

    def same(found, expected):
        return len(found) == len(expected) and all(map(torch.equal, found, expected))

    expected = compute(exact)
    with torch.autocast("cpu", dtype=dtype):
        rounded = compute(predictions)
        with float32_heads(model):
            found = compute(predictions)
    assert all(map(same, found, expected))
    # FCOS gives its boxes in float32 by itself, and scores are all that is rounded.
    assert not all(map(same, rounded, expected))


def box_config(model):
    return model.train_cfg.rpn_proposal if hasattr(model, "roi_head") else model.test_cfg


@half_precisions
def test_a_box_heads_losses_are_those_of_its_predictions_in_float32(student, dtype):
    model = student("FasterRCNN")
    with Taps(model, {"loss": "roi_head.bbox_head.loss()", "head": "roi_head.bbox_head"}).recording() as recording:
        with float32_heads(model):
            step(model, dtype)
        logits, _ = recording.last("head")
        found = recording.last("loss")
    assert logits.dtype == dtype
    with Taps(model, {"loss": "roi_head.bbox_head.loss()"}).recording() as recording:
        step(model, dtype)
    plain = recording.last("loss")
    assert {tensor.dtype for tensor in tensors(found)} == {torch.float32}
    assert plain["loss_cls"] != found["loss_cls"]


@half_precisions
def test_a_distilled_students_own_losses_are_computed_in_float32(pair, family, dtype):
    model = pair(family)
    distilled, plain = step(model, dtype), step(model.student, dtype)
    with float32_heads(model.student):
        alone = step(model.student, dtype)
    own = [tensors([losses[name] for name in alone]) for losses in (distilled, alone, plain)]
    assert all(map(torch.equal, own[0], own[1]))
    assert not all(map(torch.equal, own[0], own[2]))


def test_without_autocast_nothing_changes(student, family):
    model = student(family)
    plain = step(model)
    with float32_heads(model):
        wrapped = step(model)
    assert all(map(torch.equal, tensors(plain), tensors(wrapped)))


def test_boxes_found_under_autocast_come_in_float32(student, family):
    model = student(family).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), float32_heads(model):
        (found,) = model(img=[IMAGES[:1]], img_metas=[METAS[:1]], return_loss=False, rescale=False)
    assert {of_class.dtype.name for of_class in found} == {"float32"}


def test_a_detector_is_as_it_was_afterwards_also_where_contexts_nest(student, family):
    model = student(family)

    def attributes():
        return {name: list(module.__dict__) for name, module in model.named_modules()}

    before = attributes()
    with float32_heads(model):
        outer = attributes()
        with float32_heads(model):
            step(model, torch.bfloat16)
        assert attributes() == outer != before
    assert attributes() == before


def test_a_detector_is_as_it_was_after_an_error(student, family):
    model = student(family)
    before = {name: list(module.__dict__) for name, module in model.named_modules()}
    with pytest.raises(TypeError), float32_heads(model):
        model.forward_train()
    assert {name: list(module.__dict__) for name, module in model.named_modules()} == before
