"""The terms of a distilled run: each one's share, and those that do nothing or too much, said once."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cskd_core.errors import PlanError
from cskd_core.plan import DistillPlan
from cskd_train.engine import progress, terms
from cskd_train.engine.records import read_log
from cskd_train.engine.signals import Interrupted
from cskd_train.engine.terms import DistilledTerms
from cskd_train.files import checkpoints

from .runs import log, train

USUAL = {
    "loss_cls": 1.0,
    "loss_bbox": 0.5,
    "loss_pyramid_full": 3.0,
    "loss_tower_cls": 1.5,
    "loss": 6.0,
    "grad_norm": 9.0,
}


def watch(steps=12, **distill):
    return DistilledTerms(DistillPlan.parse({"teacher": {"checkpoint": "-"}, **distill}), steps)


def warnings_of(watched, steps=range(1, 13), **values):
    """What is said over these steps, which report these terms."""
    return [warning for step in steps for warning in watched.step({**USUAL, **values}, step)]


def test_the_shares_of_all_terms_are_one_and_the_distillers_are_added_up():
    shares = watch().shares(USUAL)
    assert shares == {
        "share_cls": pytest.approx(1 / 6),
        "share_bbox": pytest.approx(1 / 12),
        "share_pyramid_full": 0.5,
        "share_tower_cls": 0.25,
        "share_distillation": 0.75,
    }
    assert watch().shares({**USUAL, "loss": 0.0}) == {}


def test_terms_as_they_should_be_are_not_named():
    assert warnings_of(watch()) == []
    assert warnings_of(watch(), loss_pyramid_full=14.9) == []


def test_a_term_that_is_zero_all_the_time_is_named_with_its_key():
    (warning,) = warnings_of(watch(), loss_pyramid_roi=0.0)
    assert warning.startswith(
        "loss_pyramid_roi was exactly zero in the first 12 steps: distill.pyramid.roi teaches noth"
    )
    assert warning.endswith("--set 'distill.pyramid.roi=(0, 0)'")
    (warning,) = warnings_of(watch(1), loss_assistant_reg=0.0)
    assert "was exactly zero in the first step: distill.assistant" in warning
    assert warning.endswith("--set distill.assistant=None")


def test_a_term_with_a_single_weight_is_named_with_it():
    (warning,) = warnings_of(watch(pyramid={"kind": "pkd", "weight": 6}), loss_pyramid_full=3.0, loss_pyramid_pkd=0.0)
    assert warning.endswith("--set distill.pyramid.weight=0")
    (warning,) = warnings_of(watch(pyramid={"kind": "pkd", "weight": 6}), loss_pyramid_pkd=60.0)
    assert warning.endswith("lower distill.pyramid.weight, which is 6.0")
    assert warnings_of(watch(pyramid={"kind": "pkd", "weight": 0}), loss_pyramid_pkd=0.0) == []


def test_a_term_that_was_once_more_than_zero_or_is_meant_to_be_zero_is_not_named():
    watched = watch()
    assert warnings_of(watched, [1], loss_pyramid_roi=1e-9) == []
    assert warnings_of(watched, range(2, 13), loss_pyramid_roi=0.0) == []
    assert warnings_of(watch(pyramid={"roi": (0, 0)}), loss_pyramid_roi=0.0) == []


def test_a_term_beyond_thirty_times_the_detectors_own_loss_is_named_with_its_weight():
    (warning,) = warnings_of(watch(tower={"cls": (20, 5)}), loss_tower_cls=60.0)
    assert warning.startswith(
        "loss_tower_cls is 40 times the detector's own loss (60 and 1.5, up to step 12): the stud"
    )
    assert warning.endswith("lower distill.tower.cls, which is (20.0, 5.0)")
    assert warnings_of(watch(), loss_assistant_cls=46.0)[0].endswith("leave it out: --set distill.assistant=None")


def test_a_term_that_adapters_of_random_weights_make_large_at_first_is_not_named():
    watched = watch(11)
    assert warnings_of(watched, range(1, 6), loss_pyramid_full=1000.0) == []
    assert warnings_of(watched, range(6, 12)) == []
    watched = watch(11)
    assert warnings_of(watched, range(1, 6)) == []
    assert len(warnings_of(watched, range(6, 12), loss_pyramid_full=46.0)) == 1


def test_a_hundred_steps_are_looked_at_and_nothing_is_said_twice():
    watched = watch(5000)
    assert warnings_of(watched, range(1, 100), loss_pyramid_full=0.0) == []
    assert len(warnings_of(watched, [100], loss_pyramid_full=0.0)) == 1
    assert warnings_of(watched, range(101, 301), loss_pyramid_full=0.0) == []


@pytest.mark.parametrize("stopped_after", [20, 75])
def test_what_was_taken_in_goes_through_a_checkpoint(stopped_after):
    first, second, third = watch(100), watch(100), watch(100)
    warnings_of(first, range(1, stopped_after + 1), loss_pyramid_full=200.0, loss_tower_cls=1e-9)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    found = warnings_of(
        second, range(stopped_after + 1, 101), loss_pyramid_full=50.0, loss_tower_cls=0.0, loss_tower_reg=0.0
    )
    assert [warning.split()[0] for warning in found] == ["loss_tower_reg", "loss_pyramid_full"]
    assert f"({125 if stopped_after == 75 else 50} and 1.5, up to step 100)" in found[1]
    third.load_state_dict(second.state_dict())
    assert warnings_of(third, [101], loss_pyramid_full=0.0) == []


def test_a_run_that_began_without_this_is_not_warned_of_in_its_middle():
    watched = watch()
    watched.load_state_dict({})
    assert warnings_of(watched, loss_pyramid_full=0.0) == []


# In a run


@pytest.fixture
def everything_outweighs(monkeypatch):
    """Every term of the distillation is named, after five steps."""
    monkeypatch.setattr(terms, "OUTWEIGHS", 0)
    monkeypatch.setattr(terms, "WATCHED", 5)


def test_shares_are_in_the_log_in_tensorboard_and_on_the_console(small_runs, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "LINES_APART", 0)
    _, said = train(small_runs.options(tmp_path, distilled=True, settings={"runner.max_epochs": 1}))
    records = [one for one in read_log(tmp_path / "log.jsonl") if one["mode"] == "train"]
    for record in records:
        own = record["loss_cls"] + record["loss_bbox"]
        assert record["share_distillation"] == pytest.approx(1 - own / record["loss"], rel=1e-5)
        assert record["share_pyramid_full"] == pytest.approx(record["loss_pyramid_full"] / record["loss"])
        assert f"loss {record['loss']:.4f}, {record['share_distillation']:.0%} of it distillation  " in said
    assert "share_" not in said
    events = EventAccumulator(str(tmp_path / "tf_logs"))
    events.Reload()
    drawn = [event.value for event in events.Scalars("train/share_distillation")]
    assert drawn == [pytest.approx(record["share_distillation"]) for record in records]


def test_a_run_with_another_kind_of_pyramid_loss_logs_it_and_refuses_what_it_has_no_use_for(small_runs, tmp_path):
    kind = {"distill.pyramid.kind": "cwd", "distill.pyramid.tau": 4, "runner.max_epochs": 1}
    outcome, said = train(small_runs.options(tmp_path / "w", distilled=True, settings=kind))
    assert outcome.iterations == 7, said
    for record in log(tmp_path / "w")[:7]:
        assert [name for name in record if name.startswith("loss_pyramid")] == ["loss_pyramid_cwd"]
        own = record["loss_cls"] + record["loss_bbox"]
        assert record["share_pyramid_cwd"] == pytest.approx(record["loss_pyramid_cwd"] / record["loss"], rel=1e-5)
        assert record["share_distillation"] == pytest.approx(1 - own / record["loss"], rel=1e-5)
    refused = {**kind, "distill.pyramid.roi": (2, 1)}
    outcome, _ = train(small_runs.options(tmp_path / "refused", distilled=True, settings=refused))
    assert isinstance(outcome, PlanError)
    assert not (tmp_path / "refused").exists()


def test_a_plain_run_has_no_shares(trained):
    assert not any(key.startswith("share_") for record in read_log(trained / "log.jsonl") for key in record)
    assert "terms" not in checkpoints.read(trained / "last.pth")


@pytest.mark.parametrize("stopped_after", [2, 8], ids=["before the verdict", "after it"])
def test_a_resumed_run_says_what_it_has_to_say_of_its_terms_once(
    small_runs, tmp_path, everything_outweighs, stopped_after
):
    options = small_runs.options(tmp_path, distilled=True)
    outcome, first = train(options, stop_after=stopped_after)
    assert isinstance(outcome, Interrupted)
    _, second = train(replace(options, resume=True))
    counts = [said.count("warning: loss_pyramid_full is ") for said in (first, second)]
    assert counts == ([0, 1] if stopped_after == 2 else [1, 0])
    assert "up to step 5)" in first + second
