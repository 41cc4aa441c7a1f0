"""From the graph's candidates to detections in NumPy: one implementation for every backend, equal to mmdet's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cskd_deploy.detect.preprocess import PreparedImage
from cskd_deploy.model.manifest import Postprocessing

_CHUNK = 128  # boxes whose overlaps are computed at once


@dataclass(frozen=True)
class Detections:
    """Detections of one image, best first, in pixels of the original image."""

    boxes: np.ndarray  # (n, 4) float32: x1, y1, x2, y2
    scores: np.ndarray  # (n,) float32
    labels: np.ndarray  # (n,) int64, index into the manifest's classes

    def __len__(self) -> int:
        return len(self.scores)


def select_detections(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    prepared: PreparedImage,
    rule: Postprocessing,
    threshold_scores: np.ndarray | None = None,
) -> Detections:
    """Detections among the candidates of one image.

    As mmdet's `get_bboxes`: the score threshold (a score equal to it is dropped), boxes clipped to the image before
    padding and scaled back to the original image, NMS per class, the best `max_per_image`. The graph's top-k came
    before the threshold, mmdet's comes after it: the same candidates remain.

    Args:
        boxes: (k, 4) decoded candidates in pixels of the graph's input.
        scores: (k,) between 0 and 1.
        labels: (k,) class index.
        prepared: What preprocessing did to the image.
        rule: Thresholds from the manifest.
        threshold_scores: (k,) what the score threshold applies to; the scores themselves if it is left out.
    """
    above = (scores if threshold_scores is None else threshold_scores) > np.float32(rule.score_threshold)
    boxes, scores, labels = boxes[above].astype(np.float32), scores[above], labels[above].astype(np.int64)
    if rule.clip_boxes:
        height, width = prepared.resized_size
        boxes[:, 0::2] = boxes[:, 0::2].clip(0, width)
        boxes[:, 1::2] = boxes[:, 1::2].clip(0, height)
    boxes /= prepared.scale_factor
    keep = suppress_overlaps(boxes, scores, None if rule.nms_class_agnostic else labels, rule)
    return Detections(boxes[keep], scores[keep], labels[keep])


def placed_detections(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, prepared: PreparedImage, rule: Postprocessing
) -> Detections:
    """Detections of one image from a graph that has removed overlaps itself.

    ONNX says nothing of the order in which NonMaxSuppression gives boxes, and TensorRT promises none: they are sorted.

    Args:
        boxes: (k, 4) in pixels of the graph's input, clipped.
        scores: (k,); those that fill up their number have 0.
        labels: (k,) class index.
        prepared: What preprocessing did to the image.
        rule: Of the manifest; the best `max_per_image` remain.
    """
    order = np.argsort(-scores, kind="stable")[: rule.max_per_image]
    order = order[scores[order] > 0]
    boxes = boxes[order].astype(np.float32) / prepared.scale_factor
    return Detections(boxes, scores[order], labels[order].astype(np.int64))


def suppress_overlaps(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray | None, rule: Postprocessing
) -> np.ndarray:
    """Greedy NMS: indices of the kept boxes, best first, at most `rule.max_per_image`.

    Boxes of different `labels` do not suppress each other: as in mmcv's `batched_nms`, each class is moved to its own
    place in the plane, in float32, so that overlaps near the threshold fall as they do there. Boxes are taken a chunk
    at a time, best first: what the kept ones leave of it, then greedily among themselves, until the last box is kept.
    """
    if len(boxes) == 0:
        return np.zeros(0, dtype=np.int64)
    if labels is not None:
        boxes = boxes + (labels.astype(np.float32) * (boxes.max() + np.float32(1)))[:, None]
    order = np.argsort(-scores, kind="stable")
    threshold = np.float32(rule.nms_iou_threshold)
    keep: list[int] = []
    for begin in range(0, len(order), _CHUNK):
        chunk = order[begin : begin + _CHUNK]
        if keep:
            chunk = chunk[~(_overlaps(boxes[keep], boxes[chunk]) > threshold).any(axis=0)]
        if not len(chunk):
            continue
        suppressed = _overlaps(boxes[chunk], boxes[chunk]) > threshold
        left = np.ones(len(chunk), dtype=bool)
        best = 0
        while left[best]:
            keep.append(int(chunk[best]))
            if len(keep) == rule.max_per_image:
                return np.array(keep, dtype=np.int64)
            left &= ~suppressed[best]
            left[best] = False
            best = int(left.argmax())
    return np.array(keep, dtype=np.int64)


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of boxes `(n, 4)` with others `(m, 4)`: `(n, m)`; NaN, which is above no threshold, of two empty boxes."""
    x1, y1, x2, y2 = boxes.T[:, :, None]
    other_x1, other_y1, other_x2, other_y2 = others.T[:, None, :]
    width = np.minimum(x2, other_x2) - np.maximum(x1, other_x1)
    height = np.minimum(y2, other_y2) - np.maximum(y1, other_y1)
    overlap = width.clip(0) * height.clip(0)
    areas = (x2 - x1) * (y2 - y1) + (other_x2 - other_x1) * (other_y2 - other_y1)
    with np.errstate(divide="ignore", invalid="ignore"):
        iou: np.ndarray = overlap / (areas - overlap)
    return iou
