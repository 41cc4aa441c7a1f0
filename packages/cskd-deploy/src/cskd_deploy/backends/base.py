"""The one interface of every runtime: a context manager with `infer`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import ClassVar, TypeVar

import numpy as np

from cskd_deploy.manifest import Manifest

INPUT = "image"
IMAGE_SHAPE = "image_shape"
OUTPUTS = ("boxes", "scores", "labels")
CLASS_SCORES = "class_scores"

Arrays = Mapping[str, np.ndarray]
AnyBackend = TypeVar("AnyBackend", bound="Backend")


class Backend(ABC):
    """A detector in a runtime, loaded on entering the `with` block.

    Its inputs are `image`, `(1, 3, height, width)` float32, normalised and padded, and `image_shape`, `(1, 2)` float32,
    the (height, width) of the image before padding, which only two-stage detectors use. Its outputs are candidates
    before NMS: `boxes` `(1, k, 4)` as x1, y1, x2, y2 in pixels of the input, `scores` `(1, k)`, `labels` `(1, k)`, and
    `class_scores` `(1, k)` where the manifest has the score threshold apply to them. An exported graph always gives the
    same `k`; candidates below the score threshold may be among them.
    """

    name: ClassVar[str]
    device: str = "cpu"
    manifest: Manifest
    size_bytes: int  # of what is loaded: the model file, or the weights

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def load(self) -> None:
        """Load the model and set `manifest` and `size_bytes`.

        Raises:
            DeployError: the file cannot be used.
            BackendMissing: the runtime is not installed.
        """

    @abstractmethod
    def infer(self, feed: Arrays) -> dict[str, np.ndarray]:
        """Run the detector once on `image` and `image_shape`."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the model."""

    def __enter__(self: AnyBackend) -> AnyBackend:
        self.load()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
