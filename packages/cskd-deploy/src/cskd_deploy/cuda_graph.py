"""CUDA graphs through the driver: one way for every package that may own the stream (PyCUDA knows no graphs)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from cskd_deploy.errors import DeployError
from cskd_deploy.gpu_driver import LIBRARY

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
