"""Configs and loss terms that an earlier version stored: one weight for both regions of a pyramid, other names."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from cskd_core.errors import PlanError
from cskd_core.plan import DistillPlan
from cskd_train.engine import run
from cskd_train.engine.records import Recorder
from cskd_train.engine.signals import Interrupted
from cskd_train.engine.terms import DistilledTerms
from cskd_train.files import checkpoints
from cskd_train.files.config import config_to_json, load_config
from cskd_train.stored import current_config, current_terms
from cskd_train.tables.work_dirs import load_run

from .runs import log, train

FORMER_TERMS = {"full": "pyramid", "foreground": "pyramid_fg", "background": "pyramid_bg"}
FORMER = {"teacher": {"checkpoint": "t.pth"}, "pyramid": {"full": (1, 0.5), "region": (3, 0.25)}}


@pytest.fixture
def stored(tmp_path):
    """The `config.json` of a run of an earlier version."""
    (path := tmp_path / "config.json").write_text(json.dumps(config_to_json({"distill": FORMER})))
    return path


def test_the_weight_of_both_regions_becomes_one_of_each():
    config = {"model": 1, "distill": FORMER}
    found = current_config(config)
    assert found["distill"]["pyramid"] == {"full": (1, 0.5), "foreground": (3, 0.25), "background": (3, 0.25)}
    assert (found["model"], found["distill"]["teacher"]) == (1, FORMER["teacher"])
    assert "region" in config["distill"]["pyramid"]
    plan = DistillPlan.parse(found["distill"])
    assert (plan.pyramid.foreground, plan.pyramid.background, plan.pyramid.roi) == ((3, 0.25), (3, 0.25), (1, 0.5))


@pytest.mark.parametrize("block", [None, False, {"pyramid": None}, {"pyramid": {"roi": (1, 1)}}])
def test_a_config_without_that_weight_stays_as_it_is(block):
    assert current_config({"distill": block}) == {"distill": block}
    assert current_config({"model": 1}) == {"model": 1}


def test_terms_have_their_names_of_today_with_and_without_loss_in_front():
    former = {"pyramid": 1, "loss_pyramid_fg": 2, "loss_pyramid_roi": 3, "roi_assistant_cls": 4, "loss": 5, "time": 6}
    assert current_terms(former) == {
        "pyramid_full": 1, "loss_pyramid_foreground": 2, "loss_pyramid_roi": 3, "assistant_roi_cls": 4, "loss": 5,
        "time": 6,
    }  # fmt: skip


def test_the_config_json_of_a_run_is_read_and_a_config_of_ones_own_is_told_the_two_keys(stored, tmp_path):
    pyramid = load_config(stored, {"distill.pyramid.background": (0, 0)}).distill.pyramid
    assert (pyramid.foreground, pyramid.background) == ((3, 0.25), (0, 0))
    (own := tmp_path / "own.py").write_text(f"distill = {FORMER!r}\n")
    with pytest.raises(PlanError, match=r"write foreground=\(3, 0\.25\), background=\(3, 0\.25\)"):
        DistillPlan.parse(load_config(own).distill)


def test_the_config_in_a_checkpoint_is_read(tmp_path):
    meta = {"format": "cskd", "version": 1, "config": {"distill": FORMER}}
    found = checkpoints.parse({"state_dict": {"a": torch.zeros(1)}, "meta": meta}, tmp_path / "best.pth")
    assert set(found.config["distill"]["pyramid"]) == {"full", "foreground", "background"}


def test_runs_of_before_and_after_are_distilled_alike(tmp_path):
    blocks = [FORMER, current_config({"distill": FORMER})["distill"]]
    for place, block in enumerate(blocks):
        (folder := tmp_path / str(place)).mkdir()
        (folder / "config.json").write_text(json.dumps({"data": {"val": {}}, "distill": block}))
        result = {"config": "a.py", "seed": 0, "best": {"bbox_mAP": 0.1}, "last": {"bbox_mAP": 0.1}}
        (folder / "result.json").write_text(json.dumps(result))
    assert load_run(tmp_path / "0").distill == load_run(tmp_path / "1").distill


def test_what_was_taken_in_of_terms_is_gone_on_with():
    watched = DistilledTerms(DistillPlan.parse({"teacher": {"checkpoint": "-"}}), 100)
    watched.load_state_dict({"decided": False, "seen": ["cls", "pyramid"], "sums": {"pyramid_bg": 2.0, "cls": 1.0}})
    assert watched.state_dict() == {
        "decided": False,
        "seen": ["cls", "pyramid_full"],
        "sums": {"pyramid_background": 2.0, "cls": 1.0},
    }


def test_a_run_that_began_before_goes_on_under_todays_names(small_runs, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "Recorder", lambda interval, sinks: Recorder(3, sinks))
    settings = {"distill.pyramid.foreground": (2, 0.5), "distill.pyramid.background": (2, 0.5)}
    options = small_runs.options(tmp_path / "whole", distilled=True, settings=settings)
    whole, _ = train(options)
    assert whole.iterations == 14
    options = replace(options, work_dir=tmp_path / "resumed")
    assert isinstance(train(options, stop_after=3)[0], Interrupted)  # between two records
    contents = checkpoints.read(last := tmp_path / "resumed" / "last.pth")
    former = {
        f"{prefix}pyramid_{key}": f"{prefix}{name}" for key, name in FORMER_TERMS.items() for prefix in ("", "loss_")
    }
    for part, key in (("records", "sums"), ("records", "counts"), ("terms", "sums")):
        contents[part][key] = {former.get(name, name): value for name, value in contents[part][key].items()}
    assert "loss_pyramid_fg" in contents["records"]["sums"]
    contents["terms"]["seen"] = sorted(former.get(name, name) for name in contents["terms"]["seen"])
    pyramid = contents["meta"]["config"]["distill"]["pyramid"]
    pyramid["region"] = pyramid.pop("foreground")
    del pyramid["background"]
    torch.save(contents, last)
    resumed, said = train(replace(options, resume=True))
    assert resumed.iterations == 14, said
    assert "has changed" not in said
    assert log(tmp_path / "resumed") == log(tmp_path / "whole")
    terms = [checkpoints.read(tmp_path / name / "last.pth")["terms"] for name in ("resumed", "whole")]
    assert terms[0] == terms[1]
