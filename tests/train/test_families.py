"""Each family's distilled step: terms and gradients, what every option changes, pairs that cannot be compared."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

from cskd_core.errors import PlanError, ShapeError, TapError
from cskd_train.mm.families import family_of
from cskd_train.mm.plain import build_without_pretrained

from . import pairs
from .pairs import BOXES, LABELS, PYRAMID, TERMS, check_gradients, distilled, model_of, moved, step, total, trained

NO_BOXES, NO_LABELS = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)


@pytest.fixture
def pair(narrow_model):
    """`pair("GFL", preset="cskd-fixed")`, see `pairs.pair`."""
    return partial(pairs.pair, narrow_model)


# Terms and gradients


def test_the_terms_alone_train_the_whole_student_and_the_distiller_and_not_the_teacher(pair, family):
    model = pair(family)
    before = copy.deepcopy(model.distiller.teacher.detector.state_dict())
    terms, _ = step(model)
    assert set(terms) == TERMS[family]
    assert all(value.dim() == 0 and torch.isfinite(value) for value in terms.values())
    assert all(value > 0 for value in terms.values())
    sum(terms.values()).backward()
    check_gradients(model)
    still = [name for name, p in trained(model).items() if p.grad.norm() == 0]
    # A level's box scale of the assistant learns from the true boxes of that level: here the finest alone has some.
    assert [name for name in still if "assistant.scales" not in name] == []
    assert len(still) == (4 if family in ("FCOS", "GFL") else 0)
    teacher = model.distiller.teacher.detector
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("empty", [(0,), (1,), (0, 1)], ids=["first", "second", "both"])
def test_images_without_any_box_train_the_same_parameters(pair, family, empty):
    model = pair(family)
    boxes = [NO_BOXES if image in empty else BOXES[image] for image in range(2)]
    labels = [NO_LABELS if image in empty else LABELS[image] for image in range(2)]
    terms, own = step(model, boxes, labels)
    assert set(terms) == TERMS[family]
    total(model, terms, own).backward()
    check_gradients(model)
    if len(empty) == 2:
        of_boxes = {"pyramid_roi", "pyramid_foreground", "assistant_reg", "assistant_dfl", "assistant_centerness"}
        of_boxes = (of_boxes | {"assistant_roi_reg"}) & set(terms)
        assert {name for name in of_boxes if terms[name] == 0} == of_boxes


def test_a_step_under_bfloat16_has_terms_in_float32_close_to_the_exact_ones(pair, family):
    model = pair(family)
    exact, _ = step(model)
    # oneDNN leaves the weight gradient of a strided bfloat16 convolution of one cell, here RetinaNet's P7, unwritten.
    with torch.backends.mkldnn.flags(enabled=False):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            terms, own = step(model)
        total(model, terms, own).backward()
    assert {value.dtype for value in terms.values()} == {torch.float32}
    check_gradients(model)
    for name in PYRAMID:
        assert terms[name].item() == pytest.approx(exact[name].item(), rel=0.02)


# Options


LEFT_OUT = [
    ({"tower": None}, "tower_"),
    ({"assistant": None}, "assistant_"),
    ({"roi": None}, ("roi_", "assistant_roi_")),
    ({"pyramid": None, "prediction": None}, ("pyramid_", "prediction_")),
]


@pytest.mark.parametrize(("plan", "prefix"), LEFT_OUT, ids=["tower", "assistant", "roi", "pyramid and prediction"])
def test_a_term_set_to_none_is_left_out_with_its_parameters_and_the_others_stay(pair, family, plan, prefix):
    whole, part = pair(family), pair(family, **plan)
    expected, _ = step(whole)
    found, own = step(part)
    assert set(found) == {name for name in TERMS[family] if not name.startswith(prefix)}
    # What starts at random is drawn in another order; that apart, nothing else may change.
    same = [name for name in found if name.startswith("prediction_")]
    assert all(torch.equal(found[name], expected[name]) for name in same)
    total(part, found, own).backward()
    check_gradients(part)


def test_the_fixed_preset_adapts_every_tower_and_keeps_all_terms_finite(pair, family):
    published, fixed = pair(family), pair(family, preset="cskd-fixed")
    towers = {"rpn"} if family == "FasterRCNN" else {"cls", "reg"}
    assert set(fixed.distiller.tower.adapters) == towers
    assert set(published.distiller.tower.adapters) == (towers if family in ("FCOS", "FasterRCNN") else set())
    stages = 1 if family == "FasterRCNN" else 4
    assert {len(level) for tower in fixed.distiller.tower.adapters.values() for level in tower} == {stages}
    terms, own = step(fixed)
    assert set(terms) == TERMS[family]
    total(fixed, terms, own).backward()
    check_gradients(fixed)
    # Positions outside a mask stand at distance 1 no more, which as published outweighs all else.
    counted, _ = step(pair(family, preset="cskd-fixed", loss={"count_outside": True}))
    masked = ("pyramid_foreground", "pyramid_background")
    assert {name for name in terms if not terms[name].equal(counted[name])} == set(masked)
    assert all(terms[name] < counted[name] for name in masked)


def test_levels_of_a_proposal_network_are_averaged_unless_the_plan_sums_them(pair):
    mean, _ = step(pair("FasterRCNN"))
    summed, _ = step(pair("FasterRCNN", level_reduce="sum"))
    by_level = PYRAMID | {"tower_rpn", "prediction_cls", "prediction_reg"}
    assert moved("FasterRCNN", mean, summed) == by_level
    for name in by_level:
        assert summed[name].item() == pytest.approx(5 * mean[name].item(), rel=1e-5)


@pytest.mark.parametrize("one_stage", ["RetinaNet", "FCOS", "GFL"])
def test_levels_of_a_one_stage_head_are_summed_unless_the_plan_averages_them(pair, one_stage):
    summed, _ = step(pair(one_stage))
    mean, _ = step(pair(one_stage, level_reduce="mean"))
    by_level = {name for name in TERMS[one_stage] if not name.startswith("assistant_")}
    assert moved(one_stage, summed, mean) == by_level
    for name in by_level:
        assert summed[name].item() == pytest.approx(5 * mean[name].item(), rel=1e-5)


UNUSED = {
    "RetinaNet": ("tower.rpn", "roi", "assistant.soft_labels", "assistant.scores_times_centerness"),
    "FCOS": ("tower.rpn", "roi", "assistant.soft_labels"),
    "GFL": ("tower.rpn", "roi", "assistant.scores_times_centerness"),
    "FasterRCNN": ("tower.cls", "tower.reg", "assistant.soft_labels", "assistant.scores_times_centerness"),
}
SETTINGS = {
    "tower.rpn": {"tower": {"rpn": (2, 2)}},
    "tower.cls": {"tower": {"cls": (2, 2)}},
    "tower.reg": {"tower": {"reg": (2, 2)}},
    "roi": {"roi": {"fc": (2, 2)}},
    "assistant.soft_labels": {"assistant": {"soft_labels": True}},
    "assistant.scores_times_centerness": {"assistant": {"scores_times_centerness": True}},
}


def test_an_option_that_a_family_has_no_use_for_is_refused_by_its_key(pair, family):
    for key, setting in SETTINGS.items():
        if key in UNUSED[family]:
            with pytest.raises(PlanError, match=rf"^distill\.{key}: a {family} has no use for it; take it out$"):
                pair(family, **setting)
        else:
            pair(family, **setting)


# Pairs that differ


def test_a_wider_teacher_is_reached_through_adapters_without_any_option(pair, family):
    wide = {"width": 48}
    if family == "FasterRCNN":
        wide["roi_head"] = {"bbox_head": {"fc_out_channels": 40}}
    model = pair(family, teacher=wide)
    terms, own = step(model)
    assert set(terms) == TERMS[family]
    total(model, terms, own).backward()
    shapes = {tuple(parameter.shape) for name, parameter in trained(model.distiller).items() if "adapters" in name}
    expected = {(48, 32, 1, 1), (48,)}
    assert shapes == (expected | {(40, 32), (40,)} if family == "FasterRCNN" else expected)
    check_gradients(model)
    assert all(p.grad.norm() > 0 for name, p in trained(model.distiller).items() if "adapters" in name)


COARSE = {
    "RetinaNet": {"bbox_head": {"anchor_generator": {"strides": [4, 8, 16, 32, 64]}}},
    "FCOS": {"bbox_head": {"strides": [4, 8, 16, 32, 64]}},
    "GFL": {"bbox_head": {"anchor_generator": {"strides": [4, 8, 16, 32, 64]}}},
    "FasterRCNN": {"rpn_head": {"anchor_generator": {"strides": [8, 16, 32, 64, 128]}}},
}


def test_pyramids_of_other_strides_are_refused_with_both(pair, family):
    fine, coarse = r"\(4, 8, 16, 32, 64\)", r"\(8, 16, 32, 64, 128\)"
    ours, theirs = (fine, coarse) if family == "FasterRCNN" else (coarse, fine)
    with pytest.raises(ShapeError, match=f"strides .* differ: {ours} in the student, {theirs} in the teacher"):
        pair(family, teacher=COARSE[family])


@pytest.mark.parametrize("one_stage", ["RetinaNet", "FCOS", "GFL"])
def test_towers_of_other_depths_are_refused_with_the_way_out_and_that_works(pair, one_stage):
    shallow = {"bbox_head": {"stacked_convs": 2}}
    with pytest.raises(ShapeError, match=r"cls tower has 4 stages in the student and 2 in the teacher.*tower=None"):
        pair(one_stage, teacher=shallow)
    terms, _ = step(pair(one_stage, teacher=shallow, tower=None))
    assert set(terms) == TERMS[one_stage] - {"tower_cls", "tower_reg"}


@pytest.mark.parametrize(
    ("detector", "change", "message"),
    [
        (
            "RetinaNet",
            {"bbox_head": {"anchor_generator": {"scales_per_octave": 1}}},
            "'cls' has 36 channels in the student and 12",
        ),
        ("GFL", {"bbox_head": {"reg_max": 8}}, "'reg' has 68 channels in the student and 36"),
        (
            "FasterRCNN",
            {"rpn_head": {"anchor_generator": {"ratios": [1.0]}}},
            "'cls' has 3 channels in the student and 1",
        ),
    ],
)
def test_other_anchors_or_box_encodings_are_refused_by_the_prediction_they_change(pair, detector, change, message):
    with pytest.raises(ShapeError, match=f"the prediction {message} in the teacher: classes, anchors a position and"):
        pair(detector, teacher=change)


def test_box_heads_of_other_depths_are_refused_with_the_way_out_and_that_works(pair):
    other = {"roi_head": {"bbox_head": {"type": "Shared4Conv1FCBBoxHead", "conv_out_channels": 32}}}
    with pytest.raises(ShapeError, match=r"box head has 2 .* in the student and 1 in the teacher.*roi=None"):
        pair("FasterRCNN", teacher=other)
    terms, _ = step(pair("FasterRCNN", teacher=other, roi=None))
    assert set(terms) == {name for name in TERMS["FasterRCNN"] if not name.startswith(("roi_", "assistant_roi_"))}


def test_boxes_of_each_class_are_not_compared_with_boxes_for_all(pair):
    with pytest.raises(ShapeError, match="the prediction 'roi_reg' has 16 channels in the student and 4 in the teach"):
        pair("FasterRCNN", teacher={"roi_head": {"bbox_head": {"reg_class_agnostic": True}}})


MISSING = {
    "RetinaNet": ("bbox_head.retina_reg", "bbox_head.retina_reg", "bbox_head.retina_cls"),
    "FCOS": ("bbox_head.reg_convs", "bbox_head.reg_convs.0", "bbox_head.cls_convs"),
    "GFL": ("neck", "neck", "backbone"),
    "FasterRCNN": ("roi_head.bbox_roi_extractor", "roi_head.bbox_roi_extractor", "roi_head"),
}


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_missing_submodule_is_named_with_the_nearest_that_are_there(narrow_model, family, role):
    removed, path, near = MISSING[family]
    student, teacher = (build_without_pretrained(model_of(narrow_model, family)) for _ in range(2))
    read_by = family_of(student)
    owner, _, name = removed.rpartition(".")
    delattr((student if role == "student" else teacher).get_submodule(owner), name)
    with pytest.raises(TapError) as error:
        distilled(student, teacher, read_by)
    found = str(error.value)
    assert found.startswith(f"{family} has no submodule '{path}'; the nearest are: ")
    assert near in found.rpartition(": ")[2]
