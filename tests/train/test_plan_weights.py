"""Every weight of a distillation plan: it scales its own terms, in the order (guided squared error, cosine)."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cskd_core.plan import AssistantPlan, DistillPlan, PredictionPlan, PyramidPlan, RoiPlan, TowerPlan
from cskd_core.schema import WeightPair
from cskd_train.mm import families
from cskd_train.mm.plain import build_without_pretrained

from .narrow import narrow
from .pairs import PYRAMID, TERMS, pair, step

# Weight -> the terms that it scales, where the family has them.
SCALES = {
    "pyramid.full": {"pyramid_full"},
    "pyramid.roi": {"pyramid_roi"},
    "pyramid.foreground": {"pyramid_foreground"},
    "pyramid.background": {"pyramid_background"},
    "tower.cls": {"tower_cls"},
    "tower.reg": {"tower_reg"},
    "tower.rpn": {"tower_rpn"},
    "prediction.weight": {"prediction_cls", "prediction_reg", "prediction_centerness"},
    "roi.features_student": {"roi_features_student"},
    "roi.features_teacher": {"roi_features_teacher"},
    "roi.fc": {"roi_fc"},
    "roi.prediction": {"roi_prediction_cls", "roi_prediction_reg"},
}
OF_FAMILY = [(family, weight) for family in TERMS for weight in SCALES if SCALES[weight] & TERMS[family]]
FAMILIES = list(TERMS)


def plan_of(**pairs):
    """`plan_of(**{"roi.fc": (2, 1)})`: the `distill` block that sets these pairs."""
    blocks = {}
    for weight, value in pairs.items():
        block, _, key = weight.partition(".")
        blocks.setdefault(block, {})[key] = value
    return blocks


def all_weights(family, value):
    return {weight: value for one, weight in OF_FAMILY if one == family}


@pytest.fixture(scope="module")
def step_of():
    """`step_of(narrow_model, family, **pairs)`: the terms of one step under these weights, and what it trains; each
    plan is computed once.
    """
    known = {}

    def terms_and_trained(narrow_model, family, **pairs):
        key = (family, *sorted(pairs.items()))
        if key not in known:
            model = pair(narrow_model, family, **plan_of(**pairs))
            known[key] = step(model)[0], [parameter for parameter in model.parameters() if parameter.requires_grad]
        return known[key]

    return terms_and_trained


@pytest.fixture(scope="module")
def terms_of(step_of):
    """The terms alone."""
    return lambda *arguments, **pairs: step_of(*arguments, **pairs)[0]


def test_the_table_names_every_weight_of_the_plan():
    plans = {"pyramid": PyramidPlan, "tower": TowerPlan, "prediction": PredictionPlan, "roi": RoiPlan}
    named = {
        f"{block}.{field.name}"
        for block, plan in {**plans, "assistant": AssistantPlan}.items()
        for field in dataclasses.fields(plan)
        if field.type in ("WeightPair", WeightPair)
    }
    assert named == set(SCALES)
    assert {field.name for field in dataclasses.fields(DistillPlan)} >= set(plans)


def test_the_table_names_every_term_of_every_family_once_and_no_other():
    detectors = [build_without_pretrained(narrow(name)) for name in TERMS]
    assert {type(families.family_of(detector)) for detector in detectors} == set(families.FAMILIES)
    scaled = [term for terms in SCALES.values() for term in terms]
    assert len(scaled) == len(set(scaled))
    assert set(scaled) == {term for term in set().union(*TERMS.values()) if not term.startswith("assistant_")}


def test_the_plan_knows_the_weight_of_every_term():
    plan = DistillPlan.parse({"teacher": {"checkpoint": "-"}, **plan_of(**{"pyramid.roi": (3, 4), "roi.fc": (5, 6)})})
    for family, terms in TERMS.items():
        for term in terms:
            weight = next((weight for weight, scaled in SCALES.items() if term in scaled), "assistant")
            assert plan.weighed_by(term)[0] == weight.removesuffix(".weight"), (family, term)
    assert plan.weighed_by("pyramid_roi") == ("pyramid.roi", (3.0, 4.0))
    assert plan.weighed_by("roi_fc") == ("roi.fc", (5.0, 6.0))
    assert plan.weighed_by("prediction_cls") == ("prediction", (1.0, 0.5))
    assert plan.weighed_by("assistant_roi_cls") == ("assistant", None)
    assert plan.weighed_by("predictions") is None
    assert [plan.weighed_by(own) for own in ("cls", "bbox", "centerness", "dfl", "rpn_cls", "rpn_bbox")] == [None] * 6


@pytest.mark.parametrize(("family", "weight"), OF_FAMILY)
def test_a_weight_of_zero_takes_out_its_own_terms_and_no_other(narrow_model, step_of, family, weight):
    published, _ = step_of(narrow_model, family)
    found, trained = step_of(narrow_model, family, **{weight: (0, 0)})
    assert set(found) == set(published) == TERMS[family]
    own = SCALES[weight] & TERMS[family]
    assert {name for name, value in found.items() if value == 0} == own
    others = [name for name in found if name not in own]
    assert [name for name in others if not torch.equal(found[name], published[name])] == []
    total = sum(found[name] for name in own)
    gradients = torch.autograd.grad(total, trained, retain_graph=True, allow_unused=True)
    assert not any(gradient.any() for gradient in gradients if gradient is not None)


# The predictions that are a mean over all elements as published; the others are one over the foreground.
OVER_ALL = {name: {"prediction_cls"} for name in TERMS if name != "GFL"} | {"GFL": set()}


@pytest.mark.parametrize("family", FAMILIES)
def test_without_any_box_what_is_normalised_by_the_foreground_is_zero_and_nothing_else(narrow_model, family):
    found, _ = step(pair(narrow_model, family), [torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.long)] * 2)
    predictions = SCALES["prediction.weight"] & TERMS[family]
    assert {name for name in predictions if found[name] != 0} == OVER_ALL[family]


KINDS = [*((family, "pkd") for family in FAMILIES), ("RetinaNet", "mse"), ("RetinaNet", "cwd")]


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_the_one_weight_of_another_pyramid_loss_scales_its_term_alone_and_takes_it_out(narrow_model, family, kind):
    found = {weight: step(pair(narrow_model, family, pyramid={"kind": kind, "weight": weight})) for weight in (1, 0, 3)}
    terms = {weight: terms for weight, (terms, _) in found.items()}
    own = f"pyramid_{kind}"
    assert set(terms[0]) == TERMS[family] - PYRAMID | {own}
    assert {name for name, value in terms[0].items() if value == 0} == {own}
    assert terms[3][own].item() == pytest.approx(3 * terms[1][own].item(), rel=1e-6)
    assert [name for name in terms[1] if name != own and not terms[0][name].equal(terms[1][name])] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_each_term_is_its_own_weights_times_its_own_two_parts(narrow_model, terms_of, family):
    squared = terms_of(narrow_model, family, **all_weights(family, (1, 0)))
    cosine = terms_of(narrow_model, family, **all_weights(family, (0, 1)))
    # All different, so that no pair can stand in for another, nor its first member for its second.
    weights = {weight: (2 + place, 0.25 + 0.5 * place) for place, weight in enumerate(all_weights(family, None))}
    found = terms_of(narrow_model, family, **weights)
    for weight, (first, second) in weights.items():
        for name in SCALES[weight] & TERMS[family]:
            expected = first * squared[name].item() + second * cosine[name].item()
            assert found[name].item() == pytest.approx(expected, rel=1e-5), name


def scaled(value, factor):
    """Nested features, `factor` times as large."""
    if isinstance(value, torch.Tensor):
        return factor * value
    if isinstance(value, dict):
        return {key: scaled(item, factor) for key, item in value.items()}
    return type(value)(scaled(item, factor) for item in value)


def scale_teacher(distiller, factor):
    """From now on each term gets teacher's features `factor` times as large as they are."""

    def of_maps(_, arguments):
        student, teacher, *regions = arguments
        return student, scaled(teacher, factor), *regions

    def of_rois(_, arguments):
        (rois,) = arguments
        values = {"fc": [(student, scaled(teacher, factor)) for student, teacher in rois.fc]}
        for name in ("at_student", "at_teacher"):
            student, teacher = getattr(rois, name)
            values[name] = student, scaled(teacher, factor)
        values["predictions"] = {
            name: (student, scaled(teacher, factor)) for name, (student, teacher) in rois.predictions.items()
        }
        return (dataclasses.replace(rois, **values),)

    for term in (distiller.pyramid, distiller.tower, distiller.prediction):
        term.register_forward_pre_hook(of_maps)
    if distiller.roi is not None:
        distiller.roi.register_forward_pre_hook(of_rois)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_second_member_weighs_directions_and_the_first_one_sizes_too(narrow_model, terms_of, family):
    # Features of three times the size have the same cosine; scores and centerness are compared after a sigmoid.
    bounded = {"prediction_cls", "prediction_centerness", "roi_prediction_cls"}
    scaled_terms = {}
    for member in ((1, 0), (0, 1)):
        model = pair(narrow_model, family, **plan_of(**all_weights(family, member)))
        scale_teacher(model.distiller, 3)
        scaled_terms[member] = step(model)[0]
    for name in set().union(*SCALES.values()) & TERMS[family] - bounded:
        squared, cosine = (terms_of(narrow_model, family, **all_weights(family, one))[name] for one in scaled_terms)
        assert scaled_terms[0, 1][name].item() == pytest.approx(cosine.item(), rel=1e-5), name
        assert not 0.5 < scaled_terms[1, 0][name].item() / squared.item() < 2, name
    for name in bounded & TERMS[family]:
        cosine = terms_of(narrow_model, family, **all_weights(family, (0, 1)))[name].item()
        assert scaled_terms[0, 1][name].item() != pytest.approx(cosine, rel=0.01), name
