"""Whether an exported file computes what mmdet does: the check that every file passes before it gets its name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cskd_deploy.accuracy.agreement import Agreement, Boxes, match
from cskd_deploy.backends.base import CANDIDATE, IMAGE_SHAPE, INPUT, OUTPUTS
from cskd_deploy.backends.torch import mmdet_candidates
from cskd_deploy.detect.postprocess import select_detections
from cskd_deploy.detect.preprocess import PreparedImage, normalised, padded_pixels
from cskd_deploy.errors import CheckFailed
from cskd_deploy.model.manifest import Manifest, Preprocessing

# Candidates that are equal to mmdet's; below 1 because float rounding may swap two at the last rank of a level.
LEAST_SHARE = 0.999
LEAST_SHARE_TWO_STAGE = 0.99  # nor may it swap an overlap at the threshold of the proposals' NMS
MOST_SCORE_DIFFERENCE = 1e-4

Arrays = dict[str, np.ndarray]


def verify(model: Any, manifest: Manifest, path: Path) -> Agreement:
    """Compare all candidates of the written file with those of mmdet's own code on random images.

    The score threshold is left out on both sides: a random image seldom has anything above it. Images end before the
    canvas does, as padded ones. A dynamic file is tried at two sizes and, where it can, with a batch of two; of one
    with NMS inside, the detections must be those of NMS outside on its own candidates.

    Args:
        model: the mmdet detector.
        path: the file; one with NMS inside still gives its candidates too.

    Returns:
        The agreement of the worst image.

    Raises:
        CheckFailed: too few agree.
    """
    import onnxruntime

    inside = manifest.graph.nms == "graph"
    prefix = CANDIDATE if inside else ""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), sess_options=options, providers=["CPUExecutionProvider"])
    inputs = {value.name for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    worst: Agreement | None = None
    for seed, canvas in enumerate(_canvases(manifest)):
        feed, tensors = _random_feed(manifest, canvas, seed)
        found = session.run(names, {name: values for name, values in feed.items() if name in inputs})
        for place, tensor in enumerate(tensors):
            one = {name: values[place : place + 1] for name, values in zip(names, found, strict=True)}
            shape = feed[IMAGE_SHAPE][place : place + 1]
            candidates = {name.removeprefix(prefix): one[name] for name in names if name.startswith(prefix)}
            agreement = _compare(model, manifest, candidates, tensor, shape)
            if inside:
                _check_detections(manifest, one, candidates, shape)
            if worst is None or agreement.share < worst.share:
                worst = agreement
    assert worst is not None
    return worst


def _canvases(manifest: Manifest) -> Iterator[tuple[int, int]]:
    height, width = manifest.preprocessing.input_size
    yield height, width
    if manifest.graph.dynamic:
        yield width + manifest.preprocessing.pad_divisor, height


def _random_feed(manifest: Manifest, canvas: tuple[int, int], seed: int) -> tuple[Arrays, list[np.ndarray]]:
    """What the file is fed, and for mmdet each image normalised."""
    generator = np.random.default_rng(seed)
    sizes = [(canvas[0] - canvas[0] // 8, canvas[1] - canvas[1] // 8), (canvas[0] - 1, canvas[1] - canvas[1] // 4)]
    pictures = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes[: 1 + manifest.batched]]
    rule: Preprocessing = manifest.preprocessing
    tensors = [normalised(picture, canvas, rule) for picture in pictures]
    raw = manifest.graph.input == "uint8"
    image = np.concatenate([padded_pixels(picture, canvas) for picture in pictures] if raw else tensors)
    shapes = np.array([picture.shape[:2] for picture in pictures], dtype=np.float32)
    return {INPUT: image, IMAGE_SHAPE: shapes}, tensors


def _compare(model: Any, manifest: Manifest, found: Arrays, tensor: np.ndarray, shape: np.ndarray) -> Agreement:
    rule = manifest.postprocessing
    if rule.clip_boxes:  # mmdet has clipped its boxes to the image
        found = {**found, "boxes": found["boxes"].clip(0, np.tile(shape[:, ::-1], 2))}
    expected = mmdet_candidates(model, tensor, shape, score_threshold=0.0)
    agreement = match(_likely(expected), _likely(found), score=MOST_SCORE_DIFFERENCE)
    if rule.threshold_on != "scores":
        expected = mmdet_candidates(model, tensor, shape, score_threshold=0.0, with_factors=False)
        judged = match(
            _likely(expected), _likely({**found, "scores": found[rule.threshold_on]}), score=MOST_SCORE_DIFFERENCE
        )
        agreement = min(agreement, judged, key=lambda one: one.share)
    least = LEAST_SHARE_TWO_STAGE if manifest.family == "faster_rcnn" else LEAST_SHARE
    if not np.isfinite(found["boxes"]).all() or agreement.share < least:
        raise CheckFailed(
            f"the exported graph does not compute what mmdet does: {agreement.matched} of {agreement.reference} "
            "candidates agree on a random input. No file was written. Are the weights finite and trained? "
            "If so, please report this with the checkpoint's config"
        )
    return agreement


def _check_detections(manifest: Manifest, found: Arrays, candidates: Arrays, shape: np.ndarray) -> None:
    rule = manifest.postprocessing
    height, width = shape[0].astype(int).tolist()
    prepared = PreparedImage(np.zeros(0), (height, width), np.ones(4, dtype=np.float32))
    boxes, scores, labels = (candidates[name][0] for name in OUTPUTS)
    expected = select_detections(boxes, scores, labels, prepared, rule, candidates[rule.threshold_on][0])
    agreement = match((expected.boxes, expected.scores, expected.labels), _likely(found))
    if agreement.share < LEAST_SHARE_TWO_STAGE:
        raise CheckFailed(
            f"NMS in the graph does not give what NMS outside gives: {agreement.matched} of {agreement.reference} "
            "detections agree on a random input. No file was written. Please report this with the checkpoint's config"
        )


def _likely(outputs: Arrays) -> Boxes:
    """Boxes, scores and labels without those that fill up a fixed number."""
    real = outputs["scores"][0] > 0
    return outputs["boxes"][0][real], outputs["scores"][0][real], outputs["labels"][0][real]
