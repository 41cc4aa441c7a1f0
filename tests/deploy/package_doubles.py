"""The two packages that GPU memory may come from, as far as they are used, with the host's memory for a GPU's.

Each records its calls in `calls`. cuda-python: the names and the tuples of its module `cuda.bindings.runtime`. PyCUDA:
the names of `pycuda.driver`.
"""

from __future__ import annotations

import ctypes
import enum
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from .gpu_double import STREAM


def cuda_python(failing: str = "") -> Any:
    """`failing` is a function that returns an error."""
    cuda: Any = ModuleType("cuda.bindings.runtime")
    cuda.calls = []
    cuda.memory = {}
    cuda.cudaError_t = enum.IntEnum("cudaError_t", {"cudaSuccess": 0, "cudaErrorMemoryAllocation": 2})
    cuda.cudaMemcpyKind = enum.IntEnum("cudaMemcpyKind", {"cudaMemcpyHostToDevice": 1, "cudaMemcpyDeviceToHost": 2})
    clock = iter(range(1000))

    def allocate(size: int) -> int:
        memory = (ctypes.c_uint8 * size)()
        cuda.memory[ctypes.addressof(memory)] = memory
        return ctypes.addressof(memory)

    def copy(target: int, source: int, size: int, kind: Any, stream: Any) -> None:
        assert stream == STREAM
        device = target if kind == cuda.cudaMemcpyKind.cudaMemcpyHostToDevice else source
        assert device in cuda.memory
        ctypes.memmove(target, source, size)

    functions = {
        "cudaSetDevice": lambda device: None,
        "cudaStreamCreate": lambda: STREAM,
        "cudaStreamSynchronize": lambda stream: None,
        "cudaStreamDestroy": lambda stream: None,
        "cudaMalloc": allocate,
        "cudaMallocHost": allocate,
        "cudaFree": lambda address: cuda.memory.pop(address) and None,
        "cudaFreeHost": lambda address: cuda.memory.pop(address) and None,
        "cudaMemcpyAsync": copy,
        "cudaEventCreate": lambda: [],
        "cudaEventRecord": lambda event, stream: event.append(next(clock)),
        "cudaEventElapsedTime": lambda first, second: float(second[0] - first[0]),
        "cudaEventDestroy": lambda event: None,
    }

    def answering(name: str, function: Any) -> Any:
        def call(*arguments: Any) -> tuple[Any, ...]:
            cuda.calls.append(name)
            if name == failing:
                return (cuda.cudaError_t.cudaErrorMemoryAllocation, None)
            value = function(*arguments)
            return (cuda.cudaError_t.cudaSuccess,) if value is None else (cuda.cudaError_t.cudaSuccess, value)

        return call

    for name, function in functions.items():
        setattr(cuda, name, answering(name, function))
    cuda.cudaGetErrorString = lambda code: (cuda.cudaError_t.cudaSuccess, b"out of memory")
    return cuda


def pycuda() -> Any:
    """A context is current in the threads that have pushed it, and all else fails in the others."""
    calls: list[str] = []
    clock = iter(range(1000))
    pushed: list[int] = []

    def require_context() -> None:
        assert threading.get_ident() in pushed, "invalid device context"

    class Allocation:
        def __init__(self, size: int) -> None:
            require_context()
            self.memory = (ctypes.c_uint8 * size)()

        def __int__(self) -> int:
            return ctypes.addressof(self.memory)

        def free(self) -> None:
            require_context()
            calls.append("free")

    class Stream:
        handle = STREAM

        def __init__(self) -> None:
            require_context()

        def synchronize(self) -> None:
            require_context()
            calls.append("synchronize")

    class Event:
        def record(self, stream: Stream) -> None:
            require_context()
            self.time = next(clock)

        def time_till(self, other: Event) -> float:
            return float(other.time - self.time)

    class Context:
        def push(self) -> None:
            calls.append("push")
            pushed.append(threading.get_ident())

        def pop(self) -> None:
            calls.append("pop")
            pushed.remove(threading.get_ident())

        def detach(self) -> None:
            calls.append("detach")

    class Device:
        def __init__(self, place: int) -> None:
            assert place == 0

        def retain_primary_context(self) -> Context:
            return Context()

    def page_locked(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        require_context()
        return np.empty(shape, dtype)

    def copy_in(target: Allocation, source: np.ndarray, stream: Stream) -> None:
        require_context()
        ctypes.memmove(int(target), source.ctypes.data, source.nbytes)

    def copy_out(target: np.ndarray, source: Allocation, stream: Stream) -> None:
        require_context()
        ctypes.memmove(target.ctypes.data, int(source), target.nbytes)

    return SimpleNamespace(
        calls=calls,
        Error=type("Error", (Exception,), {}),
        init=lambda: calls.append("init"),
        Device=Device,
        Stream=Stream,
        Event=Event,
        mem_alloc=Allocation,
        pagelocked_empty=page_locked,
        memcpy_htod_async=copy_in,
        memcpy_dtoh_async=copy_out,
    )
