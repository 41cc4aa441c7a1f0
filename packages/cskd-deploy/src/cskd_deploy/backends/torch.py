"""PyTorch: the stock mmdet student itself, the reference that every other backend is held against."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cskd_deploy.backends.base import CLASS_SCORES, IMAGE_SHAPE, INPUT, OUTPUTS, Arrays, Backend
from cskd_deploy.exporter.student import Student, load_student, torch_device, torch_threads
from cskd_deploy.measure.environment import thread_count
from cskd_deploy.model.manifest import Manifest


class TorchBackend(Backend):
    """A checkpoint, run eagerly by mmdet up to NMS: its forward, score threshold, top-k and decoding.

    Of a two-stage detector: its forward, proposals, scores and boxes of every pair of proposal and class.

    Args:
        path: The checkpoint.
        config: Replaces the config stored in it.
        like: lays images on the canvases of this manifest's graph, and keeps as many proposals; by default as the
            config has it.
        threads: Threads within an operator; None takes every core this process may use.
        device: `cpu` or `cuda`; None takes a GPU where PyTorch sees one.
    """

    name: ClassVar[str] = "pytorch"

    def __init__(
        self,
        path: Path,
        config: Path | None = None,
        like: Manifest | None = None,
        threads: int | None = None,
        device: str | None = "cpu",
    ) -> None:
        super().__init__(path)
        self._asked = device
        self._config = config
        self._like = like
        self._threads = thread_count(threads)
        self._student: Student | None = None
        self._held = ExitStack()  # PyTorch's threads, which are the process's

    def load(self) -> None:
        student = load_student(self.path, self._config)
        proposals = None if self._like is None else self._like.graph.proposals
        if proposals is not None and student.manifest().graph.proposals is not None:
            student = student.with_proposals(proposals)
        self.device = torch_device(self._asked)
        student.model.to(self.device)
        self.manifest = _laid_out(student.manifest(), self._like)
        self.size_bytes = sum(value.numel() * value.element_size() for value in student.model.state_dict().values())
        self._held.enter_context(torch_threads(self._threads))
        self._student = student

    def _infer(self, feed: Arrays) -> dict[str, np.ndarray]:
        assert self._student is not None
        self._synchronize()  # what was enqueued before is not part of this
        found = mmdet_candidates(self._student.model, feed[INPUT], feed[IMAGE_SHAPE])
        self._synchronize()
        if self.manifest.postprocessing.threshold_on == CLASS_SCORES:
            # mmdet has left out what lies below the threshold; a score of 0 only fills a batch up.
            found[CLASS_SCORES] = (found["scores"] > 0).astype(np.float32)
        return found

    def _synchronize(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()

    def _close(self) -> None:
        self._student = None
        self._held.close()


def _laid_out(manifest: Manifest, like: Manifest | None) -> Manifest:
    """The manifest with images on the canvases of another one's graph, one or several at a time."""
    if like is None:
        return replace(manifest, graph=replace(manifest.graph, dynamic=True, batch=None))
    rule = like.preprocessing
    return replace(
        manifest,
        preprocessing=replace(manifest.preprocessing, input_size=rule.input_size, canvases=rule.canvases),
        graph=replace(manifest.graph, dynamic=like.graph.dynamic, batch=None),
    )


def mmdet_candidates(
    model: Any,
    image: np.ndarray,
    image_shape: np.ndarray,
    score_threshold: float | None = None,
    with_factors: bool = True,
) -> dict[str, np.ndarray]:
    """Candidates of an mmdet detector by mmdet's own code, on the device of its weights.

    Args:
        image: `(n, 3, height, width)` float32.
        image_shape: `(n, 2)`: (height, width) before padding.
        score_threshold: replaces the one in the `test_cfg` of a one-stage model. Candidates of a two-stage model are
            all pairs of proposal and class, whatever their score.
        with_factors: multiply the class scores by the score factor (centerness), where the head has one.

    Returns:
        The outputs of a `Backend` but for the class scores; boxes are clipped to the image. In a batch the images with
        fewer candidates are filled up with empty boxes of score 0.
    """
    # Not at the top: an edge box imports this module, and has no torch.
    import torch

    metas = _metas(image_shape)
    with torch.inference_mode():
        features = model.extract_feat(_beside(model, image))
        if hasattr(model, "roi_head"):
            candidates = _pairs_of_proposals(model, features, metas, model.rpn_head.simple_test_rpn(features, metas))
        else:
            candidates = _best_of_levels(model, features, metas, score_threshold, with_factors)
    return _named(candidates)


def mmdet_level_cuts(model: Any, image: np.ndarray) -> list[tuple[int, float]]:
    """How many candidates each pyramid level of a one-stage detector keeps of one image, and the last one's score."""
    import torch

    with torch.inference_mode():
        maps = model.bbox_head(model.extract_feat(_beside(model, image)))[0]
        kept = [
            values[0].flatten().topk(min(model.test_cfg["nms_pre"], values[0].numel()))[0].sigmoid() for values in maps
        ]
    return [(len(scores), float(scores[-1])) for scores in kept]


def mmdet_proposals(model: Any, image: np.ndarray, image_shape: np.ndarray) -> np.ndarray:
    """The proposals of a two-stage detector for one image, `(n, 4)`."""
    import torch

    with torch.inference_mode():
        features = model.extract_feat(_beside(model, image))
        boxes: np.ndarray = model.rpn_head.simple_test_rpn(features, _metas(image_shape))[0][:, :4].cpu().numpy()
    return boxes


def mmdet_pairs(model: Any, image: np.ndarray, image_shape: np.ndarray, proposals: np.ndarray) -> dict[str, np.ndarray]:
    """As `mmdet_candidates` of a two-stage detector for one image, from proposals `(n, 4)` that are given."""
    import torch

    metas = _metas(image_shape)
    with torch.inference_mode():
        features = model.extract_feat(_beside(model, image))
        return _named(_pairs_of_proposals(model, features, metas, [_beside(model, proposals)]))


def _beside(model: Any, array: np.ndarray) -> Any:
    """A tensor on the device of the model's weights."""
    import torch

    return torch.from_numpy(array).to(next(model.parameters()).device)


def _metas(image_shape: np.ndarray) -> list[dict[str, Any]]:
    scale = np.ones(4, dtype=np.float32)
    return [{"img_shape": (height, width, 3), "scale_factor": scale} for height, width in image_shape.tolist()]


def _named(candidates: Any) -> dict[str, np.ndarray]:
    """The candidates of each image, as arrays of the batch by name."""
    columns = zip(*candidates, strict=True)
    return {
        name: _stack([values.cpu().numpy() for values in column]) for name, column in zip(OUTPUTS, columns, strict=True)
    }


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


def _pairs_of_proposals(model: Any, features: Any, metas: list[dict[str, Any]], proposals: Any) -> Any:
    import torch

    # Without a test_cfg mmdet stops before the threshold and NMS; the last column of the scores is the background's.
    found = model.roi_head.simple_test_bboxes(features, metas, proposals, None)
    pairs = []
    for boxes, scores in zip(*found, strict=True):
        classes = scores.shape[1] - 1
        labels = torch.arange(classes, device=scores.device).expand(len(scores), classes)
        pairs.append((boxes.reshape(-1, 4), scores[:, :classes].reshape(-1), labels.reshape(-1)))
    return pairs
