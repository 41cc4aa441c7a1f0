"""GPU memory, a stream and events for TensorRT, by one of two packages, each imported when it is asked for."""

from __future__ import annotations

import ctypes
import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from cskd_deploy.backends import BUFFERS
from cskd_deploy.errors import BackendMissing, DeployError


@dataclass(frozen=True)
class Block:
    """A piece of GPU memory. `owner` is the package's own object, which keeps it alive."""

    address: int
    size: int  # bytes
    owner: Any


class Buffers(ABC):
    """Memory of GPU 0, page-locked memory of the host, one stream and its events.

    All but `close` is done within `active`, in any thread, one at a time.

    Copies are put on the stream and return at once: host arrays are those of `page_locked`, which a copy may still be
    reading or writing until `synchronize`.
    """

    name: ClassVar[str]
    stream: int  # the handle of a stream that is not the default one
    failures: tuple[type[Exception], ...] = ()  # what the package raises when the GPU fails, beside DeployError

    @abstractmethod
    def active(self) -> AbstractContextManager[None]:
        """While it lasts, this thread works on the GPU."""

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

    @contextmanager
    def active(self) -> Iterator[None]:
        # The runtime does so by itself at its first call in a thread; the driver's calls for a CUDA graph do not.
        self._check(self._cuda.cudaSetDevice(0))
        yield

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
        with self.active():
            self._stream = self._cuda.Stream()
        self.stream = int(self._stream.handle)
        self._hosts: list[np.ndarray] = []

    @contextmanager
    def active(self) -> Iterator[None]:
        self._context.push()  # PyCUDA has contexts by thread, and frees nothing of one that is another thread's alone
        try:
            yield
        finally:
            self._context.pop()

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
        with self.active():
            self._hosts.clear()
        self._context.detach()


INSTALL = {
    "cuda-python": "`pip install cuda-python` (its major version is the driver's CUDA version, 12 or 13)",
    "pycuda": "`pip install pycuda` (built from source: needs the CUDA toolkit and a C++ compiler)",
}


def open_buffers(name: str | None = None) -> Buffers:
    """The buffers of a package; of the first usable one of `BUFFERS` when no name is given.

    Raises:
        BackendMissing: the package is not installed, or sees no GPU.
        DeployError: there is no such package.
    """
    if name is not None:
        return _open(name)
    missing = []
    for candidate in BUFFERS:
        try:
            return _open(candidate)
        except BackendMissing as error:
            missing.append(str(error))
    raise BackendMissing(
        "TensorRT needs a package that holds its GPU memory, and none can be used. " + "; ".join(missing)
    )


def _open(name: str) -> Buffers:
    if name not in BUFFERS:
        raise DeployError(f"there are no buffers {name!r}, expected one of {', '.join(BUFFERS)}")
    try:
        return CudaPythonBuffers() if name == "cuda-python" else PycudaBuffers()
    except Exception as error:  # missing, broken, or of another CUDA than the driver's
        raise BackendMissing(f"{name} cannot be used ({error}): install {INSTALL[name]}") from error
