"""What pre- and post-processing and the painted scenes compute, as hashes of their bits: `python arithmetic.py`.

It needs the edge packages alone, so that any environment can be held against another.
"""

from __future__ import annotations

import hashlib
import itertools
import json

import cv2
import numpy as np

from cskd_data.shapes.scene import draw_scene
from cskd_deploy.accuracy.agreement import match
from cskd_deploy.detect.postprocess import Detections, placed_detections, select_detections
from cskd_deploy.detect.preprocess import PreparedImage, prepare
from cskd_deploy.model.manifest import GraphForm, Postprocessing, Preprocessing

SIZES = {"lying": (97, 311), "upright": (240, 131)}  # (height, width)
FORMS = {"float": GraphForm(), "uint8": GraphForm("uint8"), "dynamic": GraphForm("uint8", dynamic=True)}
RULE = Preprocessing(
    input_size=(96, 128),
    scale=(128, 96),
    keep_ratio=True,
    mean=(123.675, 116.28, 103.53),
    std=(58.395, 57.12, 57.375),
    channel_order="rgb",
    pad_divisor=32,
    pad_value=0.0,
)


def digests() -> dict[str, str]:
    """A hash of types, shapes and bits for each of the cases."""
    return {**_geometry(), **_scenes()}


def _geometry() -> dict[str, str]:
    found: dict[str, str] = {}
    for name, (height, width) in SIZES.items():
        rng = np.random.default_rng(height)
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for form, graph in FORMS.items():
            prepared = prepare(image, RULE, graph)
            found[f"prepare {name} {form}"] = _digest(prepared.tensor, prepared.scale_factor)
            for seed, threshold, agnostic in itertools.product((0, 1), (0.05, 0.3), (False, True)):
                rule = Postprocessing(threshold, 0.6, agnostic, 100, clip_boxes=not seed)
                one = select_detections(*_candidates(seed), prepared, rule)
                found[f"select {name} {form} {seed} {threshold} {agnostic}"] = _digest_of(one)
            found[f"placed {name} {form}"] = _digest_of(_placed(prepared))
    boxes, scores, labels = _candidates(0)
    moved = boxes + np.float32(0.004), scores + np.float32(0.0005), labels
    agreement = match((boxes, scores, labels), moved)
    found["match"] = repr([float(value) for value in (agreement.share, agreement.largest_corner_difference)])
    return found


def _scenes() -> dict[str, str]:
    return {f"scene {seed}": _digest(draw_scene(np.random.default_rng(seed), 60, 90).image) for seed in range(12)}


def _candidates(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-10, 130, (300, 2))
    boxes = np.hstack([corners, corners + rng.uniform(5, 60, (300, 2))]).astype(np.float32)
    return boxes, rng.uniform(0, 1, 300).astype(np.float32), rng.integers(0, 4, 300)


def _placed(prepared: PreparedImage) -> Detections:
    boxes, scores, labels = _candidates(2)
    rule = Postprocessing(0.05, 0.6, False, 100, clip_boxes=True)
    return placed_detections(boxes, np.where(scores > np.float32(0.4), scores, np.float32(0)), labels, prepared, rule)


def _digest_of(one: Detections) -> str:
    return _digest(one.boxes, one.scores, one.labels)


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    print(json.dumps({"numpy": np.__version__, "opencv": cv2.__version__, "digests": digests()}))
