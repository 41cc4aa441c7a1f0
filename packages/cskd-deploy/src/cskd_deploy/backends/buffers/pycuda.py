"""Buffers of PyCUDA."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import numpy as np

from cskd_deploy.backends.buffers.base import Block, Buffers


class PycudaBuffers(Buffers):
    """GPU memory from PyCUDA, in the primary context of GPU 0: the one that TensorRT works in.

    Raises:
        ImportError: PyCUDA is missing.
    """

    name: ClassVar[str] = "pycuda"

    def __init__(self) -> None:
        self._cuda: Any = importlib.import_module("pycuda.driver")
        self.failures = (self._cuda.Error,)
        self._cuda.init()
        # pycuda.autoinit would make a context of its own.
        self._context = self._cuda.Device(0).retain_primary_context()
        self._context.push()
        self._stream = self._cuda.Stream()
        self.stream = int(self._stream.handle)
        self._hosts: list[np.ndarray] = []

    def allocate(self, size: int) -> Block:
        allocation = self._cuda.mem_alloc(max(size, 1))
        return Block(int(allocation), size, allocation)

    def free(self, block: Block) -> None:
        block.owner.free()

    def page_locked(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        array: np.ndarray = self._cuda.pagelocked_empty(shape, dtype)
        self._hosts.append(array)
        return array

    def copy_in(self, block: Block, array: np.ndarray) -> None:
        self._cuda.memcpy_htod_async(block.owner, array, self._stream)

    def copy_out(self, array: np.ndarray, block: Block) -> None:
        self._cuda.memcpy_dtoh_async(array, block.owner, self._stream)

    def mark(self) -> Any:
        event = self._cuda.Event()
        event.record(self._stream)
        return event

    def milliseconds(self, first: Any, second: Any) -> float:
        return float(first.time_till(second))

    def synchronize(self) -> None:
        self._stream.synchronize()

    def close(self) -> None:
        self._hosts.clear()
        self._context.pop()
        self._context.detach()
