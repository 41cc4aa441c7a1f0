"""The one interface of every runtime: a context manager with `infer`."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import ClassVar, TypeVar

import numpy as np

from cskd_deploy.model.manifest import Manifest

INPUT = "image"
IMAGE_SHAPE = "image_shape"
OUTPUTS = ("boxes", "scores", "labels")
CLASS_SCORES = "class_scores"

Arrays = Mapping[str, np.ndarray]
AnyBackend = TypeVar("AnyBackend", bound="Backend")


class Backend(ABC):
    """A detector in a runtime, loaded on entering the `with` block.

    Its inputs are `image`, as the manifest's `GraphForm` says, and `image_shape`, `(N, 2)` float32, the (height, width)
    of each image before padding, which one-stage detectors with a float input do not use. Its outputs are candidates
    before NMS: `boxes` `(N, k, 4)` as x1, y1, x2, y2 in pixels of the input, `scores` `(N, k)`, `labels` `(N, k)`, and
    `class_scores` `(N, k)` where the manifest has the score threshold apply to them. An exported graph gives the same
    `k` for every input of one size; candidates below the score threshold may be among them. With NMS in the graph the
    three are detections.

    Several threads may use one backend. What a subclass does in `_infer` and `_close` is done by one thread at a time,
    unless `shares_memory` is False.
    """

    name: ClassVar[str]
    device: str = "cpu"  # or "cuda"
    batch_size: int | None = None  # the one that the graph is fixed to; None takes any, or the runtime says which
    manifest: Manifest
    size_bytes: int  # of what is loaded: the model file, or the weights
    shares_memory: bool = True  # inferences write to the same memory; False where each has its own
    # Of the last inference, of whatever thread: until its work was handed to the device; None where the runtime cannot
    # tell.
    enqueue_seconds: float | None = None
    notes: tuple[str, ...] = ()  # what a reader of its results should know of how it runs

    def __init__(self, path: Path) -> None:
        self.path = path
        self._turn = threading.RLock()

    @property
    def label(self) -> str:
        """What to call it in a result: the file's name, the backend and the device."""
        return label(self.path.name, self.name, self.device)

    @property
    def device_milliseconds(self) -> Mapping[str, float]:
        """Of the last inference, of whatever thread: `h2d`, `compute` and `d2h`, where the runtime tells them apart."""
        return {}

    @abstractmethod
    def load(self) -> None:
        """Load the model and set `manifest` and `size_bytes`.

        Raises:
            DeployError: the file cannot be used.
            BackendMissing: the runtime is not installed.
        """

    def infer(self, feed: Arrays) -> dict[str, np.ndarray]:
        """Run the detector once on `image` and `image_shape`."""
        with self._turn if self.shares_memory else nullcontext():
            return self._infer(feed)

    def close(self) -> None:
        """Let go of the model, after an inference that another thread is at."""
        with self._turn:
            self._close()

    @abstractmethod
    def _infer(self, feed: Arrays) -> dict[str, np.ndarray]:
        """What `infer` does in its turn."""

    @abstractmethod
    def _close(self) -> None:
        """What `close` does in its turn."""

    def __enter__(self: AnyBackend) -> AnyBackend:
        self.load()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def label(file: str, backend: str, device: str) -> str:
    """A file in a backend on a device, in words."""
    return f"{file} {backend} {device}"


Shape = tuple[int | None, ...]  # None where a dimension is dynamic
# Before the names of the candidates, which a graph with NMS gives beside its detections until it has been verified.
CANDIDATE = "candidate_"
PROPOSALS = "proposals"  # of a two-stage detector, `(1, proposals, 4)`; given for that check alone


def input_shapes(manifest: Manifest) -> dict[str, Shape]:
    """The shape of each input. Not every graph has `image_shape`."""
    batch = manifest.graph.batch
    size: Shape = (None, None) if manifest.graph.dynamic else manifest.preprocessing.input_size
    image = (batch, *size, 3) if manifest.graph.input == "uint8" else (batch, 3, *size)
    return {INPUT: image, IMAGE_SHAPE: (batch, 2)}


def needed_outputs(manifest: Manifest) -> list[str]:
    """The outputs that post-processing needs."""
    if manifest.graph.nms == "graph":
        return list(OUTPUTS)
    return list(dict.fromkeys([*OUTPUTS, manifest.postprocessing.threshold_on]))


def is_input_of(manifest: Manifest, inputs: Mapping[str, Sequence[object]]) -> bool:
    """Whether a graph with `inputs`, by name, as a runtime describes their shapes, is one of the manifest."""
    expected = input_shapes(manifest)
    found = {
        name: tuple(size if isinstance(size, int) and size >= 0 else None for size in shape)
        for name, shape in inputs.items()
    }
    return INPUT in found and all(expected.get(name) == shape for name, shape in found.items())
