"""PyTorch: the stock mmdet student itself, the reference that every other backend is held against."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cskd_deploy.backends.base import CLASS_SCORES, IMAGE_SHAPE, INPUT, OUTPUTS, Arrays, Backend
from cskd_deploy.exporter.student import Student, load_student, torch_threads
from cskd_deploy.model.manifest import GraphForm


class TorchBackend(Backend):
    """A checkpoint, run eagerly by mmdet up to NMS: its forward, score threshold, top-k and decoding.

    Of a two-stage detector: its forward, proposals, scores and boxes of every pair of proposal and class.

    Args:
        path: The checkpoint.
        config: Replaces the config stored in it.
        input_size: (height, width); by default that of the config's test pipeline.
        threads: Threads within an operator; None takes every core this process may use.
        dynamic: pad each image to its own size, as mmdet does, not all to `input_size`.
    """

    name: ClassVar[str] = "pytorch"

    def __init__(
        self,
        path: Path,
        config: Path | None = None,
        input_size: tuple[int, int] | None = None,
        threads: int | None = None,
        dynamic: bool = False,
    ) -> None:
        super().__init__(path)
        self._dynamic = dynamic
        self._config = config
        self._input_size = input_size
        self._threads = threads
        self._student: Student | None = None
        self._held = ExitStack()  # PyTorch's threads, which are the process's

    def load(self) -> None:
        student = load_student(self.path, self._config)
        self.manifest = student.manifest(self._input_size, graph=GraphForm(dynamic=self._dynamic))
        self.size_bytes = sum(value.numel() * value.element_size() for value in student.model.state_dict().values())
        self._held.enter_context(torch_threads(self._threads))
        self._student = student

    def infer(self, feed: Arrays) -> dict[str, np.ndarray]:
        assert self._student is not None
        found = mmdet_candidates(self._student.model, feed[INPUT], feed[IMAGE_SHAPE])
        if self.manifest.postprocessing.threshold_on == CLASS_SCORES:
            # mmdet has left out what lies below the threshold; a score of 0 only fills a batch up.
            found[CLASS_SCORES] = (found["scores"] > 0).astype(np.float32)
        return found

    def close(self) -> None:
        self._student = None
        self._held.close()


def mmdet_candidates(
    model: Any,
    image: np.ndarray,
    image_shape: np.ndarray,
    score_threshold: float | None = None,
    with_factors: bool = True,
) -> dict[str, np.ndarray]:
    """Candidates of an mmdet detector by mmdet's own code.

    Args:
        image: `(n, 3, height, width)` float32.
        image_shape: `(n, 2)`: (height, width) before padding.
        score_threshold: replaces the one in the `test_cfg` of a one-stage model. Candidates of a two-stage model are
            all pairs of proposal and class, whatever their score.
        with_factors: multiply the class scores by the centerness, where the head has one.

    Returns:
        The outputs of a `Backend` but for the class scores; boxes are clipped to the image. In a batch the images with
        fewer candidates are filled up with empty boxes of score 0.
    """
    # Not at the top: an edge box imports this module, and has no torch.
    import torch

    scale = np.ones(4, dtype=np.float32)
    metas = [{"img_shape": (height, width, 3), "scale_factor": scale} for height, width in image_shape.tolist()]
    with torch.inference_mode():
        features = model.extract_feat(torch.from_numpy(image))
        if hasattr(model, "roi_head"):
            candidates = _pairs_of_proposals(model, features, metas)
        else:
            candidates = _best_of_levels(model, features, metas, score_threshold, with_factors)
    columns = zip(*candidates, strict=True)
    return {name: _stack([values.numpy() for values in column]) for name, column in zip(OUTPUTS, columns, strict=True)}


def _stack(images: list[np.ndarray]) -> np.ndarray:
    stacked = np.zeros((len(images), max(map(len, images)), *images[0].shape[1:]), dtype=images[0].dtype)
    for place, values in enumerate(images):
        stacked[place, : len(values)] = values
    return stacked


def _best_of_levels(
    model: Any, features: Any, metas: list[dict[str, Any]], score_threshold: float | None, with_factors: bool
) -> Any:
    from mmcv import ConfigDict

    settings = ConfigDict(model.test_cfg)
    if score_threshold is not None:
        settings = ConfigDict({**settings, "score_thr": score_threshold})
    maps = model.bbox_head(features)
    if not with_factors:
        maps = maps[:2]
    return model.bbox_head.get_bboxes(*maps, img_metas=metas, cfg=settings, with_nms=False)


def _pairs_of_proposals(model: Any, features: Any, metas: list[dict[str, Any]]) -> Any:
    import torch

    proposals = model.rpn_head.simple_test_rpn(features, metas)
    # Without a test_cfg mmdet stops before the threshold and NMS; the last column of the scores is the background's.
    found = model.roi_head.simple_test_bboxes(features, metas, proposals, None)
    pairs = []
    for boxes, scores in zip(*found, strict=True):
        classes = scores.shape[1] - 1
        labels = torch.arange(classes).expand(len(scores), classes)
        pairs.append((boxes.reshape(-1, 4), scores[:, :classes].reshape(-1), labels.reshape(-1)))
    return pairs
