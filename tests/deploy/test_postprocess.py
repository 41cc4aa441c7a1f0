"""Threshold, clipping and NMS equal a slow reference and mmdet's own."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cskd_deploy.detect.postprocess import placed_detections, select_detections, suppress_overlaps
from cskd_deploy.detect.preprocess import PreparedImage
from cskd_deploy.model.manifest import Postprocessing

RULE = Postprocessing(
    score_threshold=0.05, nms_iou_threshold=0.5, nms_class_agnostic=False, max_per_image=100, clip_boxes=True
)


def crowd(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Overlapping boxes on 160 x 120 pixels, some of them reaching outside."""
    generator = np.random.default_rng(seed)
    corners = generator.uniform(-10, 130, (count, 2))
    boxes = np.hstack([corners, corners + generator.uniform(5, 60, (count, 2))]).astype(np.float32)
    return boxes, generator.uniform(0, 1, count).astype(np.float32), generator.integers(0, 4, count)


def slow_nms(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, threshold: float) -> list[int]:
    """Greedy NMS, one pair at a time."""
    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda place: -scores[place]):
        for j in kept:
            width = min(boxes[i, 2], boxes[j, 2]) - max(boxes[i, 0], boxes[j, 0])
            height = min(boxes[i, 3], boxes[j, 3]) - max(boxes[i, 1], boxes[j, 1])
            common = max(width, 0) * max(height, 0)
            areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (boxes[i], boxes[j])]
            if labels[i] == labels[j] and common / (sum(areas) - common) > threshold:
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_nms_keeps_what_the_slow_reference_keeps(threshold):
    boxes, scores, labels = crowd(200)
    rule = Postprocessing(0.0, threshold, False, 1000, True)
    assert suppress_overlaps(boxes, scores, labels, rule).tolist() == slow_nms(boxes, scores, labels, threshold)
    everything = np.zeros_like(labels)
    assert suppress_overlaps(boxes, scores, None, rule).tolist() == slow_nms(boxes, scores, everything, threshold)


def test_stopping_at_the_last_box_gives_the_first_of_all():
    boxes, scores, labels = crowd(300)
    everything = suppress_overlaps(boxes, scores, labels, Postprocessing(0.0, 0.5, False, 1000, True))
    few = suppress_overlaps(boxes, scores, labels, Postprocessing(0.0, 0.5, False, 7, True))
    assert few.tolist() == everything[:7].tolist()


def test_detections_are_those_of_mmdets_batched_nms():
    import torch
    from mmcv.ops import batched_nms

    boxes, scores, labels = crowd(400, seed=3)
    factors = np.array([0.5, 0.4, 0.5, 0.4], dtype=np.float32)
    found = select_detections(boxes, scores, labels, PreparedImage(np.zeros(0), (120, 150), factors), RULE)

    likely = torch.from_numpy(scores) > 0.05
    clipped = torch.from_numpy(boxes)[likely].clone()
    clipped[:, 0::2].clamp_(0, 150)
    clipped[:, 1::2].clamp_(0, 120)
    clipped /= torch.from_numpy(factors)
    classes = torch.from_numpy(labels)[likely]
    expected, keep = batched_nms(
        clipped, torch.from_numpy(scores)[likely], classes, {"type": "nms", "iou_threshold": 0.5}
    )

    np.testing.assert_array_equal(found.boxes, expected[:100, :4].numpy())
    np.testing.assert_array_equal(found.scores, expected[:100, 4].numpy())
    np.testing.assert_array_equal(found.labels, classes[keep][:100].numpy())


def test_the_threshold_may_apply_to_other_values_than_those_that_rank():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]], dtype=np.float32)
    image = PreparedImage(np.zeros(0), (100, 100), np.ones(4, dtype=np.float32))
    scores = np.array([0.01, 0.02, 0.9], dtype=np.float32)
    judged = np.array([0.2, 0.1, 0.04], dtype=np.float32)
    found = select_detections(boxes, scores, np.zeros(3), image, RULE, judged)
    assert found.boxes.tolist() == [[1, 0, 11, 10]]
    assert found.scores.tolist() == [np.float32(0.02)]


def test_no_candidate_above_the_threshold_gives_no_detection():
    boxes, scores, labels = crowd(5)
    image = PreparedImage(np.zeros(0), (120, 160), np.ones(4, dtype=np.float32))
    found = select_detections(boxes, np.full_like(scores, 0.05), labels, image, RULE)
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)


def test_boxes_outside_the_image_do_not_upset_nms():
    boxes = np.array([[-20, -20, -5, -5], [-30, -9, -8, -7], [10, 10, 20, 20]], dtype=np.float32)
    image = PreparedImage(np.zeros(0), (100, 100), np.ones(4, dtype=np.float32))
    found = select_detections(boxes, np.array([0.9, 0.8, 0.7], dtype=np.float32), np.zeros(3), image, RULE)
    assert found.boxes[-1].tolist() == [10, 10, 20, 20]
    assert np.isfinite(found.boxes).all()


def test_detections_of_a_graph_with_nms_are_sorted_whatever_their_order():
    scores = np.array([0.3, 0.0, 0.9, 0.3, 0.7, 0.0], dtype=np.float32)
    boxes = np.arange(24, dtype=np.float32).reshape(6, 4)
    labels = np.array([5, 0, 1, 2, 3, 0])
    factors = np.array([0.5, 0.25, 0.5, 0.25], dtype=np.float32)
    prepared = PreparedImage(np.zeros(0), (90, 120), factors)
    found = placed_detections(boxes, scores, labels, prepared, dataclasses.replace(RULE, max_per_image=9))
    assert found.scores.tolist() == np.float32([0.9, 0.7, 0.3, 0.3]).tolist()
    assert found.labels.tolist() == [1, 3, 5, 2]  # of equal scores, the first stays first
    np.testing.assert_array_equal(found.boxes, boxes[[2, 4, 0, 3]] / factors)
    best = placed_detections(boxes, scores, labels, prepared, dataclasses.replace(RULE, max_per_image=3))
    assert best.labels.tolist() == [1, 3, 5]
