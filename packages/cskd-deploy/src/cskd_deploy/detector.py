"""Images in, detections out: a backend between the pre- and post-processing that its manifest describes."""

from __future__ import annotations

import numpy as np

from cskd_deploy.backends.base import IMAGE_SHAPE, INPUT, Backend
from cskd_deploy.postprocess import Detections, select_detections
from cskd_deploy.preprocess import PreparedImage, prepare


class Detector:
    """The three stages of a detection, together (`detect`) or one by one (to time them).

    Args:
        backend: a loaded backend; the detector does not close it.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.manifest = backend.manifest

    def detect(self, image: np.ndarray) -> Detections:
        """Detections of one BGR uint8 image `(height, width, 3)`, in its own pixels."""
        prepared = self.prepare(image)
        return self.select(self.infer(prepared), prepared)

    def prepare(self, image: np.ndarray) -> PreparedImage:
        """Preprocessing."""
        return prepare(image, self.manifest.preprocessing)

    def infer(self, prepared: PreparedImage) -> dict[str, np.ndarray]:
        """Inference."""
        shape = np.array([prepared.resized_size], dtype=np.float32)
        return self.backend.infer({INPUT: prepared.tensor, IMAGE_SHAPE: shape})

    def select(self, outputs: dict[str, np.ndarray], prepared: PreparedImage) -> Detections:
        """Postprocessing."""
        rule = self.manifest.postprocessing
        boxes, scores, labels = outputs["boxes"][0], outputs["scores"][0], outputs["labels"][0]
        return select_detections(boxes, scores, labels, prepared, rule, outputs[rule.threshold_on][0])
