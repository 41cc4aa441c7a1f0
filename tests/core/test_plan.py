"""The plan is a closed schema: whatever it does not know, it names."""

from __future__ import annotations

import pickle
from copy import deepcopy
from dataclasses import replace

import pytest

from cskd_core.errors import PlanError
from cskd_core.family import PredictionRule
from cskd_core.plan import AssistantPlan, DistillPlan, PredictionPlan, PyramidPlan, RoiPlan, TeacherPlan, TowerPlan
from cskd_core.regions import RegionOptions
from cskd_core.similarity import LossOptions

TEACHER = {"checkpoint": "teacher.pth"}


def test_defaults_are_the_published_weights():
    plan = DistillPlan.parse({"teacher": TEACHER})
    assert plan.pyramid == PyramidPlan((1, 0.5), (1, 0.5), (1, 0.5), (1, 0.5))
    assert plan.tower == TowerPlan((1, 0.5), (1, 0.5))
    assert plan.prediction == PredictionPlan((1, 0.5), norm=None)
    assert plan.assistant == AssistantPlan(soft_labels=False, scores_times_centerness=False)
    assert plan.roi == RoiPlan((1, 0.5), (1, 0.5), (1, 1), (1, 1), "sigmoid")
    assert plan.loss == LossOptions(False, None, True, "separate")
    assert plan.regions == RegionOptions("img_shape", True)
    assert (plan.preset, plan.init_student, plan.level_reduce, plan.tower.adapter) == ("published", False, None, None)
    assert plan.teacher.config is None


def test_a_term_set_to_none_is_left_out():
    plan = DistillPlan.parse({"teacher": TEACHER, "pyramid": None, "prediction": None})
    assert plan.pyramid is None
    assert plan.prediction is None
    assert plan.tower is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pyramids": {}}, r"distill: unknown key 'pyramids'; did you mean 'pyramid'\?"),
        ({"pyramid": {"fg": (1, 1)}}, r"distill\.pyramid: unknown key 'fg'\. Known: full, roi, foreground, background"),
        (
            {"pyramid": {"region": (2, 1)}},
            r"distill\.pyramid: 'region' is now 'foreground' and 'background': "
            r"write foreground=\(2, 1\), background=\(2, 1\)$",
        ),
        (
            {"pyramid": {"kind": "fgd"}},
            r"distill\.pyramid\.kind: expected one of 'cskd', 'mse', 'pkd', 'cwd', got 'fgd'",
        ),
        ({"pyramid": {"kind": "pkd", "weight": "6"}}, r"distill\.pyramid\.weight: expected a number, got '6'"),
        ({"pyramid": {"kind": "pkd", "weight": -1}}, r"distill\.pyramid\.weight: expected a number >= 0, got -1\.0"),
        ({"pyramid": {"kind": "cwd", "tau": 0}}, r"distill\.pyramid\.tau: expected a number > 0, got 0\.0"),
        (
            {"pyramid": {"kind": "pkd", "roi": (2, 0)}},
            r"distill\.pyramid\.roi: kind 'pkd' has no use for it, only for weight; take it out, or write "
            r"the block anew: --set \"distill\.pyramid={'kind': 'pkd'}\"$",
        ),
        ({"pyramid": {"kind": "mse", "tau": 4}}, r"distill\.pyramid\.tau: kind 'mse' has no use for it"),
        (
            {"pyramid": {"weight": 2}},
            r"\.weight: kind 'cskd' has no use for it, only for full, roi, foreground, background",
        ),
        ({"pyramid": {"roi": (1, 1, 1)}}, r"distill\.pyramid\.roi: expected two weights"),
        ({"pyramid": 3}, r"distill\.pyramid: expected a dict, got 3"),
        ({"tower": {"cls": (1, -1)}}, r"distill\.tower\.cls: expected two weights >= 0"),
        ({"tower": {"cls": (float("inf"), 1)}}, r"distill\.tower\.cls: expected two weights >= 0 .*got \(inf, 1\)"),
        ({"tower": {"cls": (True, 1)}}, r"distill\.tower\.cls: expected two weights"),
        ({"prediction": "1, 1"}, r"distill\.prediction: expected two weights"),
        ({"assistant": 1}, r"distill\.assistant: expected a dict, got 1"),
        ({"assistant": {"soft_labels": 1}}, r"distill\.assistant\.soft_labels: expected a bool, got 1"),
        ({"preset": "fixed"}, r"distill\.preset: expected one of 'published', 'cskd-fixed', got 'fixed'"),
        ({"loss": {"guidance_min": "0.5"}}, r"distill\.loss\.guidance_min: expected a number, got '0\.5'"),
        ({"loss": {"guidance_min": -1}}, r"distill\.loss\.guidance_min: expected a number >= 0, .*, got -1\.0$"),
        ({"loss": {"guidance_min": float("nan")}}, r"distill\.loss\.guidance_min: expected a number >= 0, .* got nan"),
        ({"loss": {"eps_mode": "both"}}, r"distill\.loss\.eps_mode: expected one of 'separate', 'product'"),
        ({"regions": {"coord": 1}}, r"distill\.regions: unknown key 'coord'"),
        ({"teacher": {**TEACHER, "class_map": {"cat": 1}}}, r"distill\.teacher\.class_map: expected a dict of names"),
        ({"teacher": {}}, r"distill\.teacher: missing key 'checkpoint'"),
        ({"teacher": None}, r"distill\.teacher: expected a dict, got None"),
        ({"teacher": {"checkpoint": 1}}, r"distill\.teacher\.checkpoint: expected a str, got 1"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(PlanError, match=message):
        DistillPlan.parse({"teacher": TEACHER, **change})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: LossOptions(eps_mode="prodct"),
            r"distill\.loss\.eps_mode: expected one of 'separate', 'product', got",
        ),
        (lambda: RegionOptions(coord_base="strides"), r"distill\.regions\.coord_base: expected one of 'img_shape', 's"),
        (lambda: PredictionPlan(norm="men"), r"distill\.prediction\.norm: expected one of 'mean', .*, None, got 'men'"),
        (lambda: PyramidPlan(kind="pdk"), r"distill\.pyramid\.kind: expected one of 'cskd', .*, got 'pdk'"),
        (lambda: RoiPlan(activation="relu"), r"distill\.roi\.activation: expected one of 'sigmoid', 'softmax'"),
        (lambda: TeacherPlan("-", normalization="owns"), r"distill\.teacher\.normalization: expected one of 'own', "),
        (lambda: DistillPlan(TeacherPlan("-"), level_reduce="max"), r"distill\.level_reduce: expected one of 'sum', "),
        (lambda: LossOptions(guidance_min="0.5"), r"distill\.loss\.guidance_min: expected a number, got '0\.5'"),
        (lambda: LossOptions(count_outside="no"), r"distill\.loss\.count_outside: expected a bool, got 'no'"),
        (lambda: RegionOptions(inclusive_end=0), r"distill\.regions\.inclusive_end: expected a bool, got 0"),
        (lambda: PyramidPlan(full=(-1.0, float("nan"))), r"distill\.pyramid\.full: expected two weights >= 0 .*nan"),
        (lambda: PyramidPlan(kind="pkd", weight=True), r"distill\.pyramid\.weight: expected a number, got True"),
        (lambda: TowerPlan(cls=(float("inf"), 1)), r"distill\.tower\.cls: expected two weights >= 0"),
        (lambda: TowerPlan(adapter="yes"), r"distill\.tower\.adapter: expected a bool, got 'yes'"),
        (lambda: RoiPlan(fc=(1, 1, 1)), r"distill\.roi\.fc: expected two weights >= 0"),
        (lambda: AssistantPlan(soft_labels=1), r"distill\.assistant\.soft_labels: expected a bool, got 1"),
        (lambda: DistillPlan(TeacherPlan("-"), prediction=3), r"distill\.prediction: expected two weights >= 0"),
        (lambda: DistillPlan("t.pth"), r"distill\.teacher: expected a dict, got 't\.pth'"),
        (lambda: TeacherPlan(1), r"distill\.teacher\.checkpoint: expected a str, got 1"),
        (lambda: PredictionRule("relu", "mean"), r"PredictionRule\.activation: expected one of 'sigmoid', 'identity'"),
    ],
)
def test_an_option_built_in_python_is_refused_as_one_in_a_config_is(build, message):
    with pytest.raises(PlanError, match=message):
        build()


def test_a_plan_built_in_python_has_the_values_that_a_config_gives():
    plan = DistillPlan(
        TeacherPlan("teacher.pth"),
        pyramid=PyramidPlan(kind="pkd", weight=10),
        tower={"cls": [2, 1]},
        prediction=(1, 0.5),
        assistant=True,
        roi=False,
        loss={"guidance_min": 1},
    )
    block = {
        "pyramid": {"kind": "pkd", "weight": 10},
        "tower": {"cls": (2, 1)},
        "roi": None,
        "loss": {"guidance_min": 1},
    }
    assert plan == DistillPlan.parse({"teacher": TEACHER, **block})
    assert plan.weighed_by("pyramid_pkd") == ("pyramid.weight", 10.0)
    assert plan.weighed_by("prediction_cls") == ("prediction", (1.0, 0.5))


def test_a_preset_sets_the_same_in_python_as_in_a_config():
    fixed = DistillPlan.parse({"teacher": TEACHER, "preset": "cskd-fixed"})
    teacher = TeacherPlan("teacher.pth")
    assert DistillPlan(teacher, preset="cskd-fixed") == fixed
    assert replace(DistillPlan(teacher), preset="cskd-fixed") == fixed
    own = DistillPlan(teacher, preset="cskd-fixed", tower=TowerPlan(adapter=False), loss=LossOptions(guidance_min=0.5))
    assert own.tower.adapter is False
    assert own.loss == LossOptions(guidance_min=0.5, count_outside=False)
    assert DistillPlan(teacher, preset="cskd-fixed", tower=None).tower is None


def test_a_changed_plan_keeps_what_was_named_in_place_of_the_preset():
    named = {"loss": {"count_outside": True}, "regions": {"coord_base": "img_shape"}}
    plan = DistillPlan.parse({"teacher": TEACHER, "preset": "cskd-fixed", **named})
    for changed in (replace(plan, level_reduce="mean"), deepcopy(plan), pickle.loads(pickle.dumps(plan))):
        assert changed.loss.count_outside is True
        assert (changed.preset, changed.regions) == ("cskd-fixed", RegionOptions("img_shape", inclusive_end=False))


def test_a_missing_teacher_is_named():
    with pytest.raises(PlanError, match=r"distill\.pyramid: 'region' is now"):  # a slip is named before what is missing
        DistillPlan.parse({"pyramid": {"region": [1, 0.5]}})
    with pytest.raises(PlanError, match="distill: missing key 'teacher'"):
        DistillPlan.parse({})


def test_short_forms_stand_for_the_long_ones():
    short = DistillPlan.parse({"teacher": TEACHER, "prediction": (2, 1), "assistant": True})
    long = DistillPlan.parse({"teacher": TEACHER, "prediction": {"weight": (2, 1)}, "assistant": {}})
    assert short == long
    assert DistillPlan.parse({"teacher": TEACHER, "assistant": False}).assistant is None


def test_another_kind_of_pyramid_loss_is_taken_beside_weights_of_cskd_that_are_at_their_defaults():
    pair = (1, 0.5)
    block = {"full": pair, "roi": pair, "foreground": pair, "background": pair, "kind": "cwd", "weight": 5, "tau": 4}
    plan = DistillPlan.parse({"teacher": TEACHER, "preset": "cskd-fixed", "pyramid": block})
    assert (plan.pyramid.kind, plan.pyramid.weight, plan.pyramid.tau) == ("cwd", 5.0, 4.0)


def test_the_weight_of_another_kind_of_pyramid_loss_is_found_by_the_name_of_its_term():
    plan = DistillPlan.parse({"teacher": TEACHER, "pyramid": {"kind": "pkd", "weight": 6}})
    assert plan.weighed_by("pyramid_pkd") == ("pyramid.weight", 6.0)


def test_the_fixed_preset_sets_what_it_promises_and_keys_of_the_plan_win():
    fixed = {"teacher": TEACHER, "preset": "cskd-fixed"}
    plan = DistillPlan.parse({**fixed, "tower": {"cls": (3, 1)}, "pyramid": None})
    assert plan.regions == RegionOptions(coord_base="stride", inclusive_end=False)
    assert plan.loss == LossOptions(count_outside=False)
    assert plan.tower == TowerPlan(cls=(3, 1), adapter=True)
    assert plan.pyramid is None
    own = DistillPlan.parse({**fixed, "tower": None, "loss": {"count_outside": True}})
    assert own.tower is None
    assert own.loss.count_outside is True
    given = dict.fromkeys(("tower", "loss", "regions"), True)
    assert DistillPlan.parse({**fixed, **given}) == DistillPlan.parse(fixed)


def test_what_a_family_has_no_use_for_is_refused_and_not_ignored():
    plan = DistillPlan.parse({"teacher": TEACHER, "tower": {"rpn": (2, 1)}})
    plan.refuse_unused("FasterRCNN", frozenset({"tower.rpn", "roi"}))
    with pytest.raises(PlanError, match=r"distill\.tower\.rpn: a RetinaNet has no use for it; take it out"):
        plan.refuse_unused("RetinaNet", frozenset({"tower.cls", "tower.reg"}))
