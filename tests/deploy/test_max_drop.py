"""Gates go one way: what is better than its reference passes them, by however much."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cskd_data import CocoResult
from cskd_data.results import COCO_METRICS
from cskd_deploy.accuracy.eval import EvaluationResult
from cskd_deploy.commands import eval as eval_command
from cskd_deploy.lower.search import search


def scored(mean: float) -> CocoResult:
    return CocoResult(dict.fromkeys(COCO_METRICS, 0.5) | {"bbox_mAP": mean}, {}, "", 4, 9, 1.0)


@pytest.mark.parametrize(
    ("mean", "reference", "options", "code"),
    [
        (0.3, 0.3019, (), 0),
        (0.3, 0.3021, (), 1),  # 0.2 points are allowed
        (0.3, 0.308, ("--max-drop", 1), 0),
        (0.3, 0.308, ("--max-drop", 0.5), 1),
        (0.3, 0.3, ("--max-drop", 0), 0),
        (0.3, 0.3001, ("--max-drop", 0), 1),
        (0.302, 0.3, (), 0),
        (0.9, 0.1, (), 0),
        (0.9, 0.1, ("--max-drop", 0), 0),
        (0.9, 0.1, ("--max-drop", 50), 0),
        (0.302, 0.3, ("--max-drop", -1), 1),  # a point better is asked for
        (0.32, 0.3, ("--max-drop", -1), 0),
    ],
)
def test_a_drop_is_what_a_model_lies_below_its_reference(
    mean, reference, options, code, deploy, shapes_root, tmp_path, monkeypatch
):
    result = EvaluationResult("found.json", scored(mean), "best.pth", scored(reference))
    monkeypatch.setattr(eval_command, "evaluate_detections", lambda *_, **__: result)
    words = ("--predictions", "found.json", "--ann", "val.json", "--reference", "best.pth", *options)
    done = deploy("eval", *words)
    assert done.code == code, done.err
    assert f"drop: {100 * (reference - mean):+.2f} points of mAP against best.pth" in done.out
    assert (f"mAP drops by {100 * (reference - mean):.2f} points" in done.err) == (code == 1)
    facts = json.loads(deploy("eval", *words, "--json").out)
    assert facts["drop_points"] == pytest.approx(100 * (reference - mean))
    assert facts["max_drop"] == (options[1] if options else 0.2)


def test_an_evaluation_that_finds_all_its_boxes_passes_against_a_model_that_finds_few(
    deploy, model_file, found_annotations, shapes_root, tmp_path
):
    data = json.loads(found_annotations.read_text())
    keys = ("image_id", "category_id", "bbox")
    found = [
        {**{key: box[key] for key in keys}, "score": 1 - place / 1e4} for place, box in enumerate(data["annotations"])
    ]
    (tmp_path / "found.json").write_text(json.dumps(found))
    words = ("--ann", found_annotations, "--images", shapes_root / "images", "--reference", model_file, "--json")
    done = deploy("eval", "--predictions", tmp_path / "found.json", *words)
    assert done.code == 0, done.err
    assert json.loads(done.out)["drop_points"] < -10


@pytest.mark.parametrize(("drop", "quantised_at_once"), [(-3.0, True), (0.4, True), (0.6, False)])
def test_the_search_keeps_nothing_in_float_where_int8_is_better(drop, quantised_at_once):
    costs: Any = {"a": drop, "b": 0.0}
    found = search(list(costs), lambda keep: sum(costs[name] for name in costs if name not in keep), 40.0, 0.5, print)
    assert (found.kept == ()) == quantised_at_once
    assert found.first_drop == drop


@pytest.mark.parametrize(
    ("reference", "options", "refused"),
    [
        (None, ("--backend", "tensorrt", "--device", "npu"), "--backend, --device"),
        (None, ("--threads", 2), "--threads"),
        ("former.json", ("--device", "cpu", "--trust-engine"), "--device, --trust-engine"),
        ("other.onnx", ("--backend", "openvino"), "--backend"),
        ("other.onnx", ("--device", "cpu", "--threads", 1), None),
        (None, (), None),
    ],
)
def test_detections_are_run_in_nothing_and_what_says_how_is_for_a_reference_that_is_run(
    reference, options, refused, deploy, monkeypatch
):
    seen: list[Any] = []

    def evaluate(*_: Any, **given: Any) -> EvaluationResult:
        seen.append(given)
        return EvaluationResult("found.json", scored(0.3))

    monkeypatch.setattr(eval_command, "evaluate_detections", evaluate)
    words = ("--predictions", "found.json", "--ann", "val.json", *(("--reference", reference) if reference else ()))
    done = deploy("eval", *words, *options)
    if refused is None:
        assert done.code == 0, done.err
        assert len(seen) == 1
    else:
        assert done.code == 2
        assert f"{refused}: --predictions are scored, nothing is run with that: leave it out" in done.err
        assert not seen
