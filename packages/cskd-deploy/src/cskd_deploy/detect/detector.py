"""Images in, detections out: a backend between the pre- and post-processing that its manifest describes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TypeVar

import numpy as np

from cskd_deploy.arguments import whole
from cskd_deploy.backends.base import IMAGE_SHAPE, INPUT, OUTPUTS, Backend
from cskd_deploy.detect.postprocess import Detections, placed_detections, select_detections
from cskd_deploy.detect.preprocess import PreparedImage, placement, prepare
from cskd_deploy.errors import DeployError

Item = TypeVar("Item")


class Detector:
    """The three stages of a detection, together (`detect`) or one by one (to time them).

    A context manager that closes its backend, which is open already. Several threads may use one detector.

    Args:
        backend: a loaded backend.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.manifest = backend.manifest
        self._closed = False

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the model; a second time does nothing."""
        if not self._closed:
            self._closed = True
            self.backend.close()

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each label."""
        return self.manifest.classes

    def detect(self, image: np.ndarray) -> Detections:
        """Detections of one BGR uint8 image `(height, width, 3)`, in its own pixels, best first.

        Raises:
            DeployError: it is no such image, the detector is closed, or the runtime fails.
        """
        return self.detect_batch([image])[0]

    def detect_batch(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """What `detect` gives of each of some images, in one inference.

        Args:
            images: no more than a graph of a fixed batch takes; where they are fewer, the last one fills up. All must
                be padded to one size: `batches` gives such. Of none nothing is inferred, and the list is empty.

        Raises:
            DeployError: as `detect`; also when the images are not to be one batch.
        """
        for image in images:
            _check_image(image)
        self._require_open()
        if not len(images):
            return []
        prepared = [self.prepare(image) for image in images]
        try:
            outputs = self.infer(*prepared)
        except Exception:
            self._require_open()  # another thread may have closed it meanwhile
            raise
        return [self.select(outputs, one, place) for place, one in enumerate(prepared)]

    def _require_open(self) -> None:
        if self._closed:
            raise DeployError(f"{self.backend.path} has been closed: load it again")

    def batch(self, asked: int | None = None) -> int:
        """How many images at a time: as many as are asked for, else as the graph is fixed to, else one.

        Raises:
            DeployError: it is no whole number from 1 on, or the graph is fixed to another one.
        """
        asked = None if asked is None else whole(asked, "batch")
        fixed = self.backend.batch_size
        if asked is not None and fixed not in (None, asked):
            raise DeployError(
                f"{self.backend.path} takes batches of {fixed} only, asked for {asked}: "
                "export it with --batch any, or leave --batch out"
            )
        return asked or fixed or 1

    def canvas(self, size: tuple[int, int]) -> tuple[int, int]:
        """What an image of this size is padded to, both as (height, width)."""
        return placement(size, self.manifest.preprocessing, self.manifest.graph).canvas

    def batches(
        self, items: Iterable[Item], size_of: Callable[[Item], tuple[int, int]], count: int
    ) -> Iterator[list[Item]]:
        """Items that follow each other, at most `count` at a time, whose images are padded to one size.

        Args:
            size_of: the (height, width) of an item's image.
        """
        batch: list[Item] = []
        canvas = None
        for item in items:
            own = self.canvas(size_of(item))
            if batch and own != canvas:
                yield batch
                batch = []
            canvas = own
            batch.append(item)
            if len(batch) == count:
                yield batch
                batch = []
        if batch:
            yield batch

    def prepare(self, image: np.ndarray) -> PreparedImage:
        """Preprocessing."""
        return prepare(image, self.manifest.preprocessing, self.manifest.graph)

    def feed(self, *prepared: PreparedImage) -> dict[str, np.ndarray]:
        """What the backend infers from: one image, or a batch of images on canvases of one size.

        A graph of a fixed batch gets no fewer: the last image fills up.

        Raises:
            DeployError: the canvases differ, as those of a dynamic graph may, or there are too many images, or none.
        """
        if not prepared:
            raise DeployError("there is no image to infer from: give one at least")
        fixed = self.backend.batch_size or len(prepared)
        if len(prepared) > fixed:
            raise DeployError(f"{self.backend.path} takes {fixed} images at a time, given {len(prepared)}")
        prepared += prepared[-1:] * (fixed - len(prepared))
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
        """Postprocessing of the image at a place in the batch.

        Raises:
            DeployError: a detection has a label beyond the class names.
        """
        rule = self.manifest.postprocessing
        boxes, scores, labels = (outputs[name][place] for name in OUTPUTS)
        if self.manifest.graph.nms == "graph":
            found = placed_detections(boxes, scores, labels, prepared, rule)
        else:
            found = select_detections(boxes, scores, labels, prepared, rule, outputs[rule.threshold_on][place])
        self._check_labels(found.labels)
        return found

    def _check_labels(self, labels: np.ndarray) -> None:
        count = len(self.classes)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < count:
            strange = int(labels.max()) if labels.max() >= count else int(labels.min())
            raise DeployError(
                f"{self.backend.path} found label {strange}, and its metadata names {count} classes, from label 0 to "
                f"{count - 1}: export the checkpoint again, with the names of all its classes"
            )


def _check_image(image: object) -> None:
    """Refuse what OpenCV's `imread` does not give.

    Raises:
        DeployError: says what was given.
    """
    if not isinstance(image, np.ndarray):
        given = "None, which cv2.imread gives for a file that it cannot read" if image is None else f"a {type(image)}"
    elif image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        given = f"{image.dtype} {image.shape}"
    else:
        return
    raise DeployError(f"expected an image as uint8 (height, width, 3) in BGR order, was given {given}")
