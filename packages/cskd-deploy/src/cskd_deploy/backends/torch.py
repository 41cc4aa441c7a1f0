"""PyTorch: the stock mmdet student itself, the reference that every other backend is held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cskd_deploy.backends.base import INPUT, OUTPUTS, Arrays, Backend
from cskd_deploy.environment import usable_cores
from cskd_deploy.student import Student, load_student


class TorchBackend(Backend):
    """A checkpoint, run eagerly by mmdet up to NMS: its forward, score threshold, top-k and decoding.

    Args:
        path: The checkpoint.
        config: Replaces the config stored in it.
        input_size: (height, width); by default that of the config's test pipeline.
        threads: Threads within an operator; None takes every core this process may use.
    """

    name: ClassVar[str] = "pytorch"

    def __init__(
        self,
        path: Path,
        config: Path | None = None,
        input_size: tuple[int, int] | None = None,
        threads: int | None = None,
    ) -> None:
        super().__init__(path)
        self._config = config
        self._input_size = input_size
        self._threads = threads or usable_cores()
        self._student: Student | None = None
        self._threads_before: int | None = None

    def load(self) -> None:
        # Not at the top: an edge box imports this module, and has no torch.
        student = load_student(self.path, self._config)
        import torch

        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        self.manifest = student.manifest(self._input_size)
        self.size_bytes = sum(value.numel() * value.element_size() for value in student.model.state_dict().values())
        self._student = student

    def infer(self, feed: Arrays) -> dict[str, np.ndarray]:
        assert self._student is not None
        return mmdet_candidates(self._student.model, feed[INPUT])

    def close(self) -> None:
        self._student = None
        if self._threads_before is not None:
            import torch

            torch.set_num_threads(self._threads_before)


def mmdet_candidates(model: Any, image: np.ndarray, score_threshold: float | None = None) -> dict[str, np.ndarray]:
    """Candidates of a one-stage mmdet detector by mmdet's own code, for one image.

    Args:
        image: `(1, 3, height, width)` float32.
        score_threshold: replaces the one in the model's `test_cfg`.

    Returns:
        The outputs of a `Backend`; boxes are clipped to the input.
    """
    import torch
    from mmcv import ConfigDict

    settings = ConfigDict(model.test_cfg)
    if score_threshold is not None:
        settings = ConfigDict({**settings, "score_thr": score_threshold})
    whole = {"img_shape": (*image.shape[2:], 3), "scale_factor": np.ones(4, dtype=np.float32)}
    with torch.inference_mode():
        predictions = model.bbox_head(model.extract_feat(torch.from_numpy(image)))
        candidates = model.bbox_head.get_bboxes(*predictions, img_metas=[whole], cfg=settings, with_nms=False)[0]
    return {name: values.numpy()[None] for name, values in zip(OUTPUTS, candidates, strict=True)}
