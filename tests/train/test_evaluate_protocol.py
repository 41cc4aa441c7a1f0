"""Which implementation of the COCO protocol measures, and what it makes of crowd regions, on upright images."""

from __future__ import annotations

import sys

import pytest
from pycocotools.cocoeval import COCOeval

from cskd_data.evaluate import coco_protocol
from cskd_train.engine.evaluate import evaluate

from .known_boxes import KnownBoxes, annotations, config_of

TRUE = (0, "circle", 8, 12, 40, 70)
REGION = (0, "circle", 4, 92, 84, 60)  # below the true box
IN_REGION = [("circle", 6, 95, 30, 50, 0.9), ("circle", 50, 96, 34, 52, 0.8)]


@pytest.fixture(params=["pycocotools", "faster-coco-eval"])
def implementation(request, monkeypatch):
    """Evaluate with each implementation in turn."""
    if request.param == "pycocotools":
        monkeypatch.setitem(sys.modules, "faster_coco_eval", None)  # its import fails
    else:
        pytest.importorskip("faster_coco_eval")
    return request.param


@pytest.fixture
def measure(tiny_config, upright_root, tmp_path):
    """`measure(boxes, crowds, found)`, of the first image: the result of a detector that finds `found` there."""

    def result(boxes, crowds, found):
        cfg, names = config_of(tiny_config, upright_root, annotations(upright_root, boxes, crowds), tmp_path)
        return evaluate(KnownBoxes({names[0]: found}), cfg, "val")

    return result


def test_faster_coco_eval_is_taken_where_it_is_installed():
    faster = pytest.importorskip("faster_coco_eval")
    assert coco_protocol() is faster.COCOeval_faster
    assert coco_protocol().__name__ == "COCOeval_faster"
    assert coco_protocol().__module__.startswith("faster_coco_eval.")


def test_pycocotools_is_taken_where_it_is_not(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    assert coco_protocol() is COCOeval
    assert coco_protocol().__module__ == "pycocotools.cocoeval"


def test_an_evaluation_runs_on_the_implementation_that_was_taken(implementation, measure, monkeypatch):
    ran = []
    classes = {"pycocotools": COCOeval}
    if implementation == "faster-coco-eval":
        classes[implementation] = sys.modules["faster_coco_eval"].COCOeval_faster
    for name, one in classes.items():
        accumulate = one.accumulate
        monkeypatch.setattr(
            one, "accumulate", lambda self, name=name, accumulate=accumulate: (ran.append(name), accumulate(self))[1]
        )
    assert measure([TRUE], [], [("circle", 8, 12, 40, 70, 0.5)]).metrics["bbox_mAP"] == pytest.approx(1.0)
    assert ran == [implementation]


def test_both_implementations_give_the_same_numbers(measure, monkeypatch):
    pytest.importorskip("faster_coco_eval")
    boxes = [TRUE, (0, "star", 50, 20, 30, 44), (0, "star", 10, 100, 18, 26), (1, "cross", 30, 60, 50, 90)]
    found = [
        *IN_REGION,
        ("circle", 10, 16, 40, 66, 0.7),
        ("star", 52, 18, 31, 40, 0.6),
        ("star", 48, 24, 36, 50, 0.65),
        ("star", 12, 101, 18, 27, 0.3),
        ("ring", 5, 5, 20, 40, 0.9),
    ]
    results = [measure(boxes, [REGION], found)]
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    results.append(measure(boxes, [REGION], found))
    assert 0.1 < results[0].metrics["bbox_mAP"] < 0.7
    assert results[0].metrics == pytest.approx(results[1].metrics, rel=1e-12)
    by_class = [{name: ap for name, ap in one.per_class.items() if ap is not None} for one in results]
    assert list(by_class[0]) == ["circle", "star", "cross"]
    assert by_class[0] == pytest.approx(by_class[1], rel=1e-12)
    assert by_class[0]["cross"] == 0
    assert results[0].detections == len(found)


@pytest.mark.parametrize(
    ("boxes", "crowds", "expected"),
    [
        ([TRUE], [REGION], 1.0),  # neither is the region missed, nor do detections in it count
        ([TRUE], [], 1 / 3),  # two false ones before the true one
        ([TRUE, REGION], [], 51 / 101 / 3),  # and half of the objects missed: 51 of the 101 recalls are reached
        ([TRUE], [(0, "ring", *REGION[2:])], 1 / 3),  # a crowd of another class
    ],
    ids=["a crowd", "nothing", "an object", "another class"],
)
def test_a_detection_inside_a_crowd_region_is_not_a_false_positive(implementation, measure, boxes, crowds, expected):
    result = measure(boxes, crowds, [*IN_REGION, ("circle", 8, 12, 40, 70, 0.5)])
    assert result.metrics["bbox_mAP_75"] == pytest.approx(expected, rel=1e-9)
    assert result.per_class["circle"] == pytest.approx(expected, rel=1e-9)
    assert result.per_class["ring"] is None
    assert result.metrics["bbox_AR_100"] == pytest.approx(1 / len(boxes))


def test_a_crowd_region_can_be_detected_any_number_of_times(implementation, measure):
    tiles = [("circle", 6 + 8 * column, 94 + 8 * row, 8, 8, 0.9) for column in range(9) for row in range(6)]
    result = measure([TRUE], [REGION], [*tiles, ("circle", 8, 12, 40, 70, 0.5)])
    assert result.detections == 55
    assert result.metrics["bbox_mAP"] == pytest.approx(1.0)
