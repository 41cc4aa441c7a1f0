"""A GPU that is none: memory of the host, a stream that does nothing until it is waited for, and the driver's library.

What reads a result too early, uses freed memory, or waits while a graph is recorded fails with it.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from cskd_deploy.backends.tensorrt.memory import Block, Buffers

STREAM = 0x7F00_1234_5678  # wider than 32 bits, as real handles are
Work = Callable[[], None]


class GpuDouble:
    """Everything that is asked of it is in `calls`, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.memory: dict[int, Any] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.recording: list[Work] | None = None
        self._queue: list[Work] = []

    def allocate(self, size: int) -> int:
        assert self.recording is None, "memory is allocated while a graph is recorded"
        memory = (ctypes.c_uint8 * max(size, 1))()
        ctypes.memset(memory, 0xAB, max(size, 1))
        self.memory[ctypes.addressof(memory)] = memory
        return ctypes.addressof(memory)

    def free(self, address: int) -> None:
        del self.memory[address]

    def enqueue(self, name: str, work: Work) -> None:
        self.calls.append(name)
        (self._queue if self.recording is None else self.recording).append(work)

    def drain(self) -> None:
        assert self.recording is None, "the stream is waited for while a graph is recorded"
        while self._queue:
            self._queue.pop(0)()

    def array(self, address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """The memory at an address, which must be allocated and large enough."""
        array = np.frombuffer(self.memory[address], dtype, count=int(np.prod(shape)))
        return array.reshape(shape)


class BuffersDouble(Buffers):
    name: ClassVar[str] = "double"
    stream = STREAM

    def __init__(self, gpu: GpuDouble) -> None:
        self.gpu = gpu
        self._at_work: int | None = None  # the thread that is
        self._clock = 0.0
        self._marks = 0

    @contextmanager
    def active(self) -> Iterator[None]:
        assert self._at_work is None, "two threads at a time"
        self._at_work = threading.get_ident()
        try:
            yield
        finally:
            self._at_work = None

    def _require_active(self) -> None:
        assert self._at_work == threading.get_ident(), "not within `active`"

    def allocate(self, size: int) -> Block:
        self._require_active()
        self.gpu.calls.append(f"allocate {size}")
        return Block(self.gpu.allocate(size), size, None)

    def free(self, block: Block) -> None:
        self._require_active()
        self.gpu.calls.append(f"free {block.size}")
        self.gpu.free(block.address)

    def page_locked(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        self._require_active()
        return np.full(shape, 0xCD, dtype)

    def copy_in(self, block: Block, array: np.ndarray) -> None:
        self._require_active()
        target = self.gpu.array(block.address, (array.nbytes,), np.uint8)
        self.gpu.enqueue("copy in", lambda: np.copyto(target, array.reshape(-1).view(np.uint8)))

    def copy_out(self, array: np.ndarray, block: Block) -> None:
        self._require_active()
        source = self.gpu.array(block.address, (array.nbytes,), np.uint8)
        self.gpu.enqueue("copy out", lambda: np.copyto(array.reshape(-1).view(np.uint8), source))

    def mark(self) -> list[float]:
        self._require_active()
        reached: list[float] = []

        def pass_by() -> None:
            self._marks += 1
            self._clock += 1.0 + (self._marks - 1) % 4  # the four marks of a run are 2, 3 and 4 apart
            reached.append(self._clock)

        self.gpu.enqueue("mark", pass_by)
        return reached

    def milliseconds(self, first: list[float], second: list[float]) -> float:
        return second[0] - first[0]

    def synchronize(self) -> None:
        self._require_active()
        self.gpu.calls.append("synchronize")
        self.gpu.drain()

    def close(self) -> None:
        assert self._at_work is None
        self.gpu.calls.append("close")


class DriverDouble:
    """`libcuda.so.1` as ctypes gives it: functions return codes and write through references.

    Args:
        failing: a function that returns an error code instead.
    """

    def __init__(
        self,
        gpu: GpuDouble | None = None,
        count: int = 1,
        name: str = "Double of Orin",
        capability: tuple[int, int] = (8, 7),
        multiprocessors: int = 14,
        failing: dict[str, int] | None = None,
    ) -> None:
        self._gpu = gpu or GpuDouble()
        self._count, self._name = count, name
        self._attributes = {16: multiprocessors, 75: capability[0], 76: capability[1]}
        self._failing = failing or {}

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)
        call = getattr(self, f"_{name}")

        def called(*arguments: Any) -> int:
            if name in self._failing:
                return self._failing[name]
            call(*arguments)
            return 0

        return called

    def _cuInit(self, flags: int) -> None:  # noqa: N802 (CUDA's names, as below)
        assert flags == 0

    def _cuDeviceGetCount(self, count: Any) -> None:  # noqa: N802
        count._obj.value = self._count

    def _cuDriverGetVersion(self, version: Any) -> None:  # noqa: N802
        version._obj.value = 13020

    def _cuDeviceGet(self, device: Any, place: int) -> None:  # noqa: N802
        device._obj.value = place

    def _cuDeviceGetName(self, buffer: Any, size: int, device: Any) -> None:  # noqa: N802
        buffer.value = self._name.encode()[: size - 1]

    def _cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> None:  # noqa: N802
        value._obj.value = self._attributes[attribute]

    def _cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> None:  # noqa: N802
        self.context = "retained"
        context._obj.value = 0x7D00_0000_0001

    def _cuCtxPushCurrent_v2(self, context: Any) -> None:  # noqa: N802
        assert (context.value, self.context) == (0x7D00_0000_0001, "retained")
        self.context = "current"

    def _cuMemGetInfo_v2(self, free: Any, total: Any) -> None:  # noqa: N802
        assert self.context == "current"
        free._obj.value, total._obj.value = 5 << 32, 7 << 32

    def _cuCtxPopCurrent_v2(self, context: Any) -> None:  # noqa: N802
        assert self.context == "current"
        self.context = "retained"

    def _cuDevicePrimaryCtxRelease_v2(self, device: Any) -> None:  # noqa: N802
        assert self.context == "retained"
        self.context = "released"

    def _cuGetErrorName(self, code: int, text: Any) -> None:  # noqa: N802
        text._obj.value = {100: b"CUDA_ERROR_NO_DEVICE"}[code]

    def _cuStreamBeginCapture_v2(self, stream: Any, mode: int) -> None:  # noqa: N802
        assert (stream.value, mode) == (STREAM, 1)
        self._gpu.calls.append("begin capture")
        self._gpu.recording = []

    def _cuStreamEndCapture(self, stream: Any, graph: Any) -> None:  # noqa: N802
        assert self._gpu.recording is not None
        self._gpu.calls.append("end capture")
        graph._obj.value = 0x7E00_0000_0001
        self._gpu.graphs[graph._obj.value] = self._gpu.recording
        self._gpu.recording = None

    def _cuGraphInstantiateWithFlags(self, made: Any, graph: Any, flags: Any) -> None:  # noqa: N802
        assert flags.value == 0
        self._gpu.calls.append("instantiate")
        made._obj.value = 0x7E00_0000_0002
        self._gpu.graphs[made._obj.value] = self._gpu.graphs[graph.value]

    def _cuGraphDestroy(self, graph: Any) -> None:  # noqa: N802
        del self._gpu.graphs[graph.value]

    def _cuGraphExecDestroy(self, graph: Any) -> None:  # noqa: N802
        self._gpu.calls.append("destroy graph")
        del self._gpu.graphs[graph.value]

    def _cuGraphLaunch(self, graph: Any, stream: Any) -> None:  # noqa: N802
        works = self._gpu.graphs[graph.value]
        self._gpu.enqueue("launch", lambda: [work() for work in works])  # type: ignore[arg-type,return-value]
