"""From the graph's candidates to detections in NumPy: one implementation for every backend, equal to mmdet's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cskd_deploy.manifest import Postprocessing
from cskd_deploy.preprocess import PreparedImage


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
    judged: np.ndarray | None = None,
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
        judged: (k,) what the score threshold applies to; the scores themselves if it is left out.
    """
    likely = (scores if judged is None else judged) > np.float32(rule.score_threshold)
    boxes, scores, labels = boxes[likely].astype(np.float32), scores[likely], labels[likely].astype(np.int64)
    if rule.clip_boxes:
        height, width = prepared.resized_size
        boxes[:, 0::2] = boxes[:, 0::2].clip(0, width)
        boxes[:, 1::2] = boxes[:, 1::2].clip(0, height)
    boxes /= prepared.scale_factor
    keep = suppress_overlaps(boxes, scores, None if rule.nms_class_agnostic else labels, rule)
    return Detections(boxes[keep], scores[keep], labels[keep])


def suppress_overlaps(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray | None, rule: Postprocessing
) -> np.ndarray:
    """Greedy NMS: indices of the kept boxes, best first, at most `rule.max_per_image`.

    Boxes of different `labels` do not suppress each other: as in mmcv's `batched_nms`, each class is moved to its own
    place in the plane, in float32, so that overlaps near the threshold fall as they do there. It stops at the last box
    that can be kept, so the cost is that of `max_per_image` rows, not of all pairs.
    """
    if len(boxes) == 0:
        return np.zeros(0, dtype=np.int64)
    if labels is not None:
        boxes = boxes + (labels.astype(np.float32) * (boxes.max() + np.float32(1)))[:, None]
    remaining = np.argsort(-scores, kind="stable")
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    keep: list[int] = []
    while len(remaining) and len(keep) < rule.max_per_image:
        best, remaining = remaining[0], remaining[1:]
        keep.append(int(best))
        corners = boxes[remaining]
        width = np.minimum(boxes[best, 2], corners[:, 2]) - np.maximum(boxes[best, 0], corners[:, 0])
        height = np.minimum(boxes[best, 3], corners[:, 3]) - np.maximum(boxes[best, 1], corners[:, 1])
        overlap = width.clip(0) * height.clip(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            iou = overlap / (areas[best] + areas[remaining] - overlap)
        # Two empty boxes give 0 / 0, which is not above any threshold.
        remaining = remaining[~(iou > np.float32(rule.nms_iou_threshold))]
    return np.array(keep, dtype=np.int64)
