"""Buffers of PyTorch: tensors of bytes."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from cskd_deploy.backends.buffers.base import Block, Buffers


class TorchBuffers(Buffers):
    """GPU memory from PyTorch's allocator.

    Raises:
        ImportError: PyTorch is missing, or is a build without CUDA.
    """

    name: ClassVar[str] = "torch"
    failures = (RuntimeError,)

    def __init__(self) -> None:
        import torch

        if not torch.cuda.is_available():
            raise ImportError(f"PyTorch {torch.__version__} sees no GPU")
        self._torch = torch
        self._stream = torch.cuda.Stream(0)
        self.stream = self._stream.cuda_stream
        self._hosts: dict[int, Any] = {}  # by address: the tensors whose memory the host arrays are

    def allocate(self, size: int) -> Block:
        with self._torch.cuda.stream(self._stream):
            tensor = self._torch.empty(max(size, 1), dtype=self._torch.uint8, device="cuda:0")
        return Block(tensor.data_ptr(), size, tensor)

    def free(self, block: Block) -> None:
        """The memory goes back when the last reference to the block goes."""

    def page_locked(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        size = int(np.prod(shape)) * dtype.itemsize
        tensor = self._torch.empty(max(size, 1), dtype=self._torch.uint8, pin_memory=True)
        self._hosts[tensor.data_ptr()] = tensor
        array: np.ndarray = tensor.numpy()[:size].view(dtype).reshape(shape)
        return array

    def copy_in(self, block: Block, array: np.ndarray) -> None:
        with self._torch.cuda.stream(self._stream):
            block.owner[: array.nbytes].copy_(self._host(array), non_blocking=True)

    def copy_out(self, array: np.ndarray, block: Block) -> None:
        with self._torch.cuda.stream(self._stream):
            self._host(array).copy_(block.owner[: array.nbytes], non_blocking=True)

    def mark(self) -> Any:
        event = self._torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def milliseconds(self, first: Any, second: Any) -> float:
        return float(first.elapsed_time(second))

    def synchronize(self) -> None:
        self._stream.synchronize()

    def close(self) -> None:
        self._hosts.clear()

    def _host(self, array: np.ndarray) -> Any:
        # The pinned tensor itself, not `from_numpy`: PyTorch knows that this one is page-locked.
        return self._hosts[array.ctypes.data][: array.nbytes]
