"""The NVIDIA driver, asked directly and before anything that needs it.

TensorRT without a driver ends the process: its runtime crashes and its builder raises a TypeError. So the driver's own
library is looked for first, with nothing but ctypes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cskd_deploy.errors import BackendMissing, DeployError

LIBRARY = "libcuda.so.1"
FIX = (
    "Install NVIDIA's driver, or in a container give it the GPU (`docker run --gpus all ...`); "
    "`nvidia-smi` must list the GPU"
)
# CUdevice_attribute of cuda.h
_MULTIPROCESSORS = 16
_CAPABILITY_MAJOR = 75
_CAPABILITY_MINOR = 76
_NAME_BYTES = 256


@dataclass(frozen=True)
class Gpu:
    """A GPU that the driver lists."""

    name: str  # "Orin" of every Jetson Orin
    capability: tuple[int, int]  # compute capability: (8, 7) of an Orin
    multiprocessors: int | None = None  # None where a manifest of schema 1 does not have it

    def __str__(self) -> str:
        multiprocessors = "" if self.multiprocessors is None else f", {self.multiprocessors} SMs"
        return f"{self.name} (compute capability {self.capability[0]}.{self.capability[1]}{multiprocessors})"


@dataclass(frozen=True)
class Driver:
    """A driver that answers, with at least one GPU."""

    cuda: tuple[int, int]  # the newest CUDA version that it runs
    gpus: tuple[Gpu, ...]

    @property
    def cuda_version(self) -> str:
        return f"{self.cuda[0]}.{self.cuda[1]}"


def find_driver(load: Callable[[str], Any] = ctypes.CDLL) -> Driver:
    """Ask the driver for its version and its GPUs, in the order of CUDA (`CUDA_VISIBLE_DEVICES` holds).

    Args:
        load: opens a shared library by name; OSError where there is none.

    Raises:
        BackendMissing: there is no driver, it does not start, or it has no GPU.
    """
    try:
        library = load(LIBRARY)
    except OSError as error:
        raise BackendMissing(f"there is no NVIDIA driver ({error}). {FIX}") from error
    _check(library, library.cuInit(0), "does not start")
    count = ctypes.c_int()
    _check(library, library.cuDeviceGetCount(ctypes.byref(count)), "does not list its GPUs")
    if count.value < 1:
        raise BackendMissing(f"the NVIDIA driver has no GPU to offer. {FIX}")
    version = ctypes.c_int()
    _check(library, library.cuDriverGetVersion(ctypes.byref(version)), "does not give its version")
    cuda = version.value // 1000, version.value % 1000 // 10
    return Driver(cuda, tuple(_gpu(library, index) for index in range(count.value)))


def _gpu(library: Any, index: int) -> Gpu:
    device = ctypes.c_int()
    _check(library, library.cuDeviceGet(ctypes.byref(device), index), f"does not open GPU {index}")
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _check(library, library.cuDeviceGetName(name, _NAME_BYTES, device), f"does not name GPU {index}")
    values = []
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _MULTIPROCESSORS):
        value = ctypes.c_int()
        code = library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        _check(library, code, f"does not describe GPU {index}")
        values.append(value.value)
    return Gpu(name.value.decode(errors="replace"), (values[0], values[1]), values[2])


def memory_in_use(load: Callable[[str], Any] = ctypes.CDLL) -> int | None:
    """Bytes of GPU 0 that are in use, by whatever process; None where the driver does not tell."""
    try:
        library = load(LIBRARY)
    except OSError:
        return None
    device, context = ctypes.c_int(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    if library.cuInit(0) or library.cuDeviceGet(ctypes.byref(device), 0):
        return None
    # The context that the runtimes share, which a process with a model on the GPU has already.
    if library.cuDevicePrimaryCtxRetain(ctypes.byref(context), device):
        return None
    try:
        if library.cuCtxPushCurrent_v2(context):
            return None
        code = library.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
    finally:
        library.cuDevicePrimaryCtxRelease_v2(device)
    return None if code else total.value - free.value


def _check(library: Any, code: int, failing: str) -> None:
    if code == 0:
        return
    text = ctypes.c_char_p()
    library.cuGetErrorName(code, ctypes.byref(text))
    name = text.value.decode() if text.value else "an unknown error"
    raise BackendMissing(f"the NVIDIA driver {failing}: {name} ({code}). {FIX}")


_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on using the GPU


class CudaGraph:
    """What `work` puts on a stream, recorded once and launched again and again.

    Args:
        stream: the handle of a stream that is not the default one, in the context of this thread.
        work: only enqueues on `stream`; it is called once, and nothing of it runs then.
        load: opens a shared library by name.

    Raises:
        DeployError: the driver refuses, as it does when `work` waits or allocates.
    """

    def __init__(self, stream: int, work: Callable[[], None], load: Callable[[str], Any] = ctypes.CDLL) -> None:
        self._driver = load(LIBRARY)
        self._stream = ctypes.c_void_p(stream)
        self._graph = ctypes.c_void_p()
        recorded = ctypes.c_void_p()
        self._check(self._driver.cuStreamBeginCapture_v2(self._stream, _THREAD_LOCAL), "begin recording")
        try:
            work()
        finally:  # a stream left recording could not be used again
            code = self._driver.cuStreamEndCapture(self._stream, ctypes.byref(recorded))
        self._check(code, "record")
        try:
            flags = ctypes.c_ulonglong(0)
            code = self._driver.cuGraphInstantiateWithFlags(ctypes.byref(self._graph), recorded, flags)
            self._check(code, "instantiate")
        finally:
            self._driver.cuGraphDestroy(recorded)

    def launch(self) -> None:
        """Put the recorded work on the stream."""
        self._check(self._driver.cuGraphLaunch(self._graph, self._stream), "launch")

    def close(self) -> None:
        """Free the graph."""
        self._driver.cuGraphExecDestroy(self._graph)

    def _check(self, code: int, action: str) -> None:
        if code != 0:
            raise DeployError(f"the NVIDIA driver cannot {action} a CUDA graph (error {code}): leave --cuda-graph out")
