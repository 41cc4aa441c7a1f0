"""What a run keeps of its epochs: which is `best.pth`, which is `last.pth`, and which were evaluated."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch

from cskd_data.results import COCO_METRICS, CocoResult
from cskd_train.errors import TrainError

EVALUATE = "cskd_train.engine.run.evaluate"  # what a run measures its student with


@pytest.fixture
def measure(monkeypatch):
    """`measure(0.3, 0.2)`: the mAP that a run finds, one an evaluation; gives the weights that it finds it of."""

    def replace(*means):
        left, weights = list(means), []

        def evaluate(model, *_, **__):
            if not left:
                raise TrainError("nothing to measure with")
            weights.append({key: value.detach().clone() for key, value in model.state_dict().items()})
            metrics = dict.fromkeys(COCO_METRICS, 0.125) | {"bbox_mAP": left.pop(0)}
            return CocoResult(metrics, {}, split="val", images=6, detections=1, seconds=0.5)

        monkeypatch.setattr(EVALUATE, evaluate)
        return weights

    return replace


def kept(work_dir, name):
    """Epoch, mAP and weights of a checkpoint."""
    contents = torch.load(work_dir / name, weights_only=True)
    return contents["meta"]["epoch"], contents["meta"]["metrics"].get("bbox_mAP"), contents["state_dict"]


def same(weights, others):
    return list(weights) == list(others) and all(torch.equal(value, others[key]) for key, value in weights.items())


def evaluated(work_dir):
    """(epoch, iteration, mAP) of each evaluation in the log."""
    records = map(json.loads, (work_dir / "log.jsonl").read_text().splitlines())
    return [(one["epoch"], one["iter"], one["bbox_mAP"]) for one in records if one["mode"] == "val"]


@pytest.mark.parametrize(
    ("means", "best"),
    [
        ((0.3, 0.2), 1),
        ((0.2, 0.3), 2),
        ((0.3, 0.3), 1),
        ((0.0, 0.0), 1),
        ((0.3, 0.2, 0.25), 1),
        ((0.2, 0.1, 0.3), 3),
    ],
    ids=str,
)
def test_the_first_epoch_of_the_highest_map_is_kept_beside_the_last(train_upright, measure, tmp_path, means, best):
    weights = measure(*means)
    code, _, err = train_upright(tmp_path, f"runner.max_epochs={len(means)}")
    assert code == 0, err
    assert len(weights) == len(means)
    assert not any(same(one, other) for one, other in pairwise(weights))
    epoch, mean, found = kept(tmp_path, "best.pth")
    assert (epoch, mean) == (best, means[best - 1])
    assert same(found, weights[best - 1])
    epoch, mean, found = kept(tmp_path, "last.pth")
    assert (epoch, mean) == (len(means), means[-1])
    assert same(found, weights[-1])
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["best_epoch"], result["best"]["bbox_mAP"]) == (best, means[best - 1])
    assert result["last"]["bbox_mAP"] == means[-1]
    assert evaluated(tmp_path) == [(number, 3 * number, mean) for number, mean in enumerate(means, 1)]


@pytest.mark.parametrize(("interval", "epochs", "expected"), [(2, 3, [2, 3]), (2, 4, [2, 4]), (9, 2, [2])])
def test_every_so_many_epochs_are_evaluated_and_the_last_one_always(
    train_upright, measure, tmp_path, interval, epochs, expected
):
    means = [0.4 - 0.1 * place for place in range(len(expected))]
    weights = measure(*means)
    code, _, err = train_upright(tmp_path, f"evaluation.interval={interval}", f"runner.max_epochs={epochs}")
    assert code == 0, err
    assert evaluated(tmp_path) == [(epoch, 3 * epoch, mean) for epoch, mean in zip(expected, means, strict=True)]
    epoch, mean, found = kept(tmp_path, "best.pth")
    assert (epoch, mean) == (expected[0], means[0])
    assert same(found, weights[0])
    assert kept(tmp_path, "last.pth")[:2] == (epochs, means[-1])


@pytest.mark.parametrize(("later", "best"), [(0.2, 1), (0.3, 1), (0.4, 2)])
def test_a_resumed_run_knows_the_best_of_its_earlier_session(train_upright, measure, tmp_path, later, best):
    first = measure(0.3)
    assert train_upright(tmp_path, "runner.max_epochs=1")[0] == 0
    second = measure(later)
    code, _, err = train_upright(tmp_path, "--resume")
    assert code == 0, err
    epoch, mean, found = kept(tmp_path, "best.pth")
    assert (epoch, mean) == (best, max(0.3, later))
    assert same(found, [*first, *second][best - 1])
    assert kept(tmp_path, "last.pth")[0] == 2
    assert json.loads((tmp_path / "result.json").read_text())["best_epoch"] == best


def test_an_epoch_that_was_not_evaluated_is_saved_and_is_no_best(train_upright, measure, tmp_path):
    measure()
    code, _, err = train_upright(tmp_path, "evaluation.interval=2")
    assert (code, err.splitlines()[-1]) == (2, "error: nothing to measure with")  # after the second epoch
    assert kept(tmp_path, "last.pth")[:2] == (2, None)  # it was saved before
    assert not (tmp_path / "best.pth").exists()
