"""What a package must give so that TensorRT can run with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np


@dataclass(frozen=True)
class Block:
    """A piece of GPU memory. `owner` is the package's own object, which keeps it alive."""

    address: int
    size: int  # bytes
    owner: Any


class Buffers(ABC):
    """Memory of GPU 0, page-locked memory of the host, one stream and its events.

    Copies are put on the stream and return at once: host arrays are those of `page_locked`, which a copy may still be
    reading or writing until `synchronize`.
    """

    name: ClassVar[str]
    stream: int  # the handle of a stream that is not the default one
    failures: tuple[type[Exception], ...] = ()  # what the package raises when the GPU fails, beside DeployError

    @abstractmethod
    def allocate(self, size: int) -> Block:
        """At least one byte of GPU memory, aligned to 256."""

    @abstractmethod
    def free(self, block: Block) -> None:
        """Give a block back; nothing on the stream may use it any more."""

    @abstractmethod
    def page_locked(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """A contiguous host array that is never swapped out, alive until `close`."""

    @abstractmethod
    def copy_in(self, block: Block, array: np.ndarray) -> None:
        """Put a copy from the host to the GPU on the stream."""

    @abstractmethod
    def copy_out(self, array: np.ndarray, block: Block) -> None:
        """Put a copy from the GPU to the host on the stream."""

    @abstractmethod
    def mark(self) -> Any:
        """Put an event on the stream, and return it."""

    @abstractmethod
    def milliseconds(self, first: Any, second: Any) -> float:
        """Between two events that the stream has passed."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until the stream is empty."""

    @abstractmethod
    def close(self) -> None:
        """Free what is left."""
