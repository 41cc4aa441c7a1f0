"""Buffers of cuda-python, NVIDIA's bindings of the CUDA runtime."""

from __future__ import annotations

import ctypes
import importlib
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from cskd_deploy.backends.buffers.base import Block, Buffers
from cskd_deploy.errors import DeployError


class CudaPythonBuffers(Buffers):
    """GPU memory from `cudaMalloc`.

    Raises:
        ImportError: cuda-python is missing.
        DeployError: CUDA refuses.
    """

    name: ClassVar[str] = "cuda-python"

    def __init__(self) -> None:
        self._cuda = _runtime()
        self._check(self._cuda.cudaSetDevice(0))
        self._stream = self._check(self._cuda.cudaStreamCreate())
        self.stream = int(self._stream)
        self._blocks: dict[int, Block] = {}
        self._hosts: list[int] = []

    def allocate(self, size: int) -> Block:
        address = int(self._check(self._cuda.cudaMalloc(max(size, 1))))
        block = self._blocks[address] = Block(address, size, None)
        return block

    def free(self, block: Block) -> None:
        del self._blocks[block.address]
        self._check(self._cuda.cudaFree(block.address))

    def page_locked(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        size = int(np.prod(shape)) * dtype.itemsize
        address = int(self._check(self._cuda.cudaMallocHost(max(size, 1))))
        self._hosts.append(address)
        memory: Any = (ctypes.c_uint8 * size).from_address(address)
        array: np.ndarray = np.frombuffer(memory, dtype).reshape(shape)
        return array

    def copy_in(self, block: Block, array: np.ndarray) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._check(self._cuda.cudaMemcpyAsync(block.address, array.ctypes.data, array.nbytes, kind, self._stream))

    def copy_out(self, array: np.ndarray, block: Block) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._check(self._cuda.cudaMemcpyAsync(array.ctypes.data, block.address, array.nbytes, kind, self._stream))

    def mark(self) -> Any:
        event = _Event(self._cuda, self._check(self._cuda.cudaEventCreate()))
        self._check(self._cuda.cudaEventRecord(event.handle, self._stream))
        return event

    def milliseconds(self, first: Any, second: Any) -> float:
        return float(self._check(self._cuda.cudaEventElapsedTime(first.handle, second.handle)))

    def synchronize(self) -> None:
        self._check(self._cuda.cudaStreamSynchronize(self._stream))

    def close(self) -> None:
        # Unchecked: after an error on the GPU every call repeats it, and the first one has been reported.
        for address in self._blocks:
            self._cuda.cudaFree(address)
        for address in self._hosts:
            self._cuda.cudaFreeHost(address)
        self._cuda.cudaStreamDestroy(self._stream)

    def _check(self, result: tuple[Any, ...]) -> Any:
        code, *values = result
        if code != self._cuda.cudaError_t.cudaSuccess:
            _, text = self._cuda.cudaGetErrorString(code)
            raise DeployError(f"CUDA says: {text.decode()} ({code.name})")
        return values[0] if values else None


class _Event:
    """An event that is destroyed with its last reference: one inference makes four of them."""

    def __init__(self, cuda: ModuleType, handle: Any) -> None:
        self._cuda = cuda
        self.handle = handle

    def __del__(self) -> None:
        self._cuda.cudaEventDestroy(self.handle)


def _runtime() -> ModuleType:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        return importlib.import_module("cuda.cudart")  # its name before 12.6
