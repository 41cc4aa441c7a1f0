"""The score from which on detections are right most often: what to cut them at before they serve as labels."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

import numpy as np
from pycocotools.cocoeval import COCOeval

from cskd_data.dataset import Dataset
from cskd_data.errors import DataError
from cskd_data.evaluate import Detections, coco_index, numbered

IOU = 0.5
"""From this overlap on a detection is right."""


@dataclass(frozen=True)
class OperatingPoint:
    """A score, and what the detections of at least that score are worth, all classes together."""

    threshold: float
    precision: float  # share of these detections that are right
    recall: float  # share of the boxes that they find

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        return 2 * self.precision * self.recall / (self.precision + self.recall)


@dataclass(frozen=True)
class ScoreCurve:
    """What the detections of at least a score are worth, for every score that one has, the highest first.

    Attributes:
        scores: (N,), falling.
        precision: (N,) share of the detections of at least that score that are right.
        recall: (N,) share of the boxes that they find.
    """

    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray

    @property
    def f1(self) -> np.ndarray:
        """(N,) harmonic means of precision and recall; 0 where nothing is right."""
        both = self.precision + self.recall
        return np.divide(2 * self.precision * self.recall, both, out=np.zeros_like(both), where=both > 0)

    @property
    def best(self) -> OperatingPoint:
        """The score with the highest F1, of equal ones the higher score. There has to be a detection that is right."""
        place = int(np.argmax(self.f1))
        return OperatingPoint(float(self.scores[place]), float(self.precision[place]), float(self.recall[place]))


def best_f1(dataset: Dataset, detections: Detections) -> OperatingPoint:
    """The score with the highest F1 = 2 TP / (detections + boxes), counted over all classes at once: see `score_curve`.

    Raises:
        DataError: as `score_curve`; no detection is right.
    """
    curve = score_curve(dataset, detections)
    if not curve.recall.any():
        raise DataError(
            f"no detection is right on {dataset.source} (IoU of at least {IOU}), so that no threshold can be chosen: "
            "train the detector longer"
        )
    return curve.best


def score_curve(dataset: Dataset, detections: Detections) -> ScoreCurve:
    """Precision and recall from each score on, counted over all classes at once.

    Detections are matched by pycocotools at IoU 0.5: in each image and class the highest score first, each box once,
    at most 100; what lies on a crowd does not count.

    Args:
        dataset: with boxes drawn by people.
        detections: in COCO's results format with the user's own ids, of all scores.

    Raises:
        DataError: the data set is pseudo-labelled or has no box that counts.
    """
    dataset.refuse_as_truth()
    if not dataset.countable:
        raise DataError(f"no threshold can be chosen: {dataset.nothing_counts()}")
    found = numbered(dataset, detections)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its steps
        protocol = COCOeval(coco_index(dataset, dataset.annotations), coco_index(dataset, found), "bbox")
        protocol.params.iouThrs = np.array([IOU])
        protocol.params.areaRng, protocol.params.areaRngLbl = [[0, 1e10]], ["all"]
        protocol.params.maxDets = [100]
        protocol.evaluate()
    matches = [one for one in protocol.evalImgs if one is not None]
    counting = [~one["dtIgnore"][0].astype(bool) for one in matches]
    scores = np.concatenate([np.asarray(one["dtScores"])[kept] for one, kept in zip(matches, counting, strict=True)])
    right = np.concatenate([one["dtMatches"][0][kept] > 0 for one, kept in zip(matches, counting, strict=True)])
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(right[order])
    last = np.append(scores[:-1] != scores[1:], True)[: len(scores)]  # detections of one score are in or out together
    return ScoreCurve(scores[last], (hits / np.arange(1, len(scores) + 1))[last], (hits / dataset.countable)[last])
