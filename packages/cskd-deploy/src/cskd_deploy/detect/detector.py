"""Images in, detections out: a backend between the pre- and post-processing that its manifest describes."""

from __future__ import annotations

import numpy as np

from cskd_deploy.backends.base import IMAGE_SHAPE, INPUT, OUTPUTS, Backend
from cskd_deploy.detect.postprocess import Detections, placed_detections, select_detections
from cskd_deploy.detect.preprocess import PreparedImage, prepare
from cskd_deploy.errors import DeployError


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
        return prepare(image, self.manifest.preprocessing, self.manifest.graph)

    def feed(self, *prepared: PreparedImage) -> dict[str, np.ndarray]:
        """What the backend infers from: one image, or a batch of images on canvases of one size.

        Raises:
            DeployError: the canvases differ, as those of a dynamic graph may.
        """
        shapes = np.array([one.resized_size for one in prepared], dtype=np.float32)
        tensors = [one.tensor for one in prepared]
        if len({tensor.shape for tensor in tensors}) > 1:
            axes = slice(1, 3) if self.manifest.graph.input == "uint8" else slice(2, 4)
            sizes = [" x ".join(map(str, tensor.shape[axes])) for tensor in tensors]
            raise DeployError(f"images of one batch must be padded to one size, these are {', '.join(sizes)}")
        return {INPUT: tensors[0] if len(tensors) == 1 else np.concatenate(tensors), IMAGE_SHAPE: shapes}

    def infer(self, *prepared: PreparedImage) -> dict[str, np.ndarray]:
        """Inference."""
        return self.backend.infer(self.feed(*prepared))

    def select(self, outputs: dict[str, np.ndarray], prepared: PreparedImage, place: int = 0) -> Detections:
        """Postprocessing of the image at a place in the batch."""
        rule = self.manifest.postprocessing
        boxes, scores, labels = (outputs[name][place] for name in OUTPUTS)
        if self.manifest.graph.nms == "graph":
            return placed_detections(boxes, scores, labels, prepared)
        return select_detections(boxes, scores, labels, prepared, rule, outputs[rule.threshold_on][place])
