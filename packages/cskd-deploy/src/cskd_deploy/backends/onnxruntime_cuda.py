"""ONNX Runtime on an NVIDIA GPU: whether it works here, what it leaves to the processor, the copies around a run."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cskd_deploy.backends.base import Arrays
from cskd_deploy.backends.tensorrt.driver import find_driver
from cskd_deploy.errors import BackendMissing

PROVIDER = "CUDAExecutionProvider"
CPU_PROVIDER = "CPUExecutionProvider"
INSTALL = (
    "CUDA needs an NVIDIA GPU with its driver, and `pip uninstall -y onnxruntime onnxruntime-gpu`, then "
    "`pip install 'onnxruntime-gpu[cuda,cudnn]'`"
)
# ONNX Runtime's own choice tries every algorithm for every new shape of a convolution, which takes seconds: with images
# of many sizes that would happen all through a run. cuDNN's heuristics know an algorithm at once.
OPTIONS = {"device_id": "0", "cudnn_conv_algo_search": "HEURISTIC"}
_RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"
_SILENT, _WARNING = 4, 2  # levels of the logger that belongs to no session; the latter is ONNX Runtime's own
_LIBRARY = "libonnxruntime_providers_cuda.so"
# An ONNX file of one convolution, `y = Conv(x, w)`, all of them float32 of shape (1, 1, 1, 1), in opset 13.
_VALUE = b"\x12\x16\n\x14\x08\x01\x12\x10" + 4 * b"\n\x02\x08\x01"
CONVOLUTION = (
    b'\x08\x07:k\n\x0f\n\x01x\n\x01w\x12\x01y"\x04Conv\x12\x01g'
    + (b"Z\x1b\n\x01x" + _VALUE)
    + (b"Z\x1b\n\x01w" + _VALUE)
    + (b"b\x1b\n\x01y" + _VALUE)
    + b"B\x04\n\x00\x10\r"
)


def open_session(runtime: Any, model: str | bytes, options: Any, exact: bool = False) -> Any:
    """A session on GPU 0; what has no CUDA kernel runs on the processor.

    Args:
        runtime: the module `onnxruntime`.
        model: a file, or its content.
        options: the `onnxruntime.SessionOptions`.
        exact: compute float32 with all its bits: by default convolutions have ten (TF32).

    Raises:
        BackendMissing: no session on CUDA can be made here.
    """
    offered = runtime.get_available_providers()
    if PROVIDER not in offered:
        raise BackendMissing(f"the installed ONNX Runtime has no {PROVIDER}, only {', '.join(offered)}. {INSTALL}")
    own = {**OPTIONS, "use_tf32": "0"} if exact else OPTIONS
    options.add_session_config_entry(_RECORD_ASSIGNMENT, "1")
    # ONNX Runtime prints what it misses and goes on without CUDA; that is said below, once.
    printed = io.StringIO()
    runtime.set_default_logger_severity(_SILENT)
    try:
        with contextlib.redirect_stdout(printed):
            if hasattr(runtime, "preload_dlls"):  # CUDA and cuDNN as pip installs them are found by this alone
                runtime.preload_dlls()
            session = runtime.InferenceSession(model, sess_options=options, providers=[(PROVIDER, own), CPU_PROVIDER])
    finally:
        runtime.set_default_logger_severity(_WARNING)
    if session.get_providers()[0] != PROVIDER:
        raise BackendMissing(
            f"ONNX Runtime makes no session on CUDA ({_reason(runtime, printed.getvalue())}). {INSTALL}"
        )
    session.disable_fallback()  # a failing run fails, it is not repeated on the processor
    return session


@functools.cache
def fault(runtime: Any) -> str | None:
    """Why ONNX Runtime cannot use CUDA here; None where it has computed a convolution with it."""
    try:
        session = open_session(runtime, CONVOLUTION, runtime.SessionOptions())
        one = np.ones((1, 1, 1, 1), dtype=np.float32)
        session.run(None, {"x": one, "w": one})
    except BackendMissing as error:
        return str(error)
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        return f"ONNX Runtime cannot compute on CUDA ({first_line(error)}). {INSTALL}"
    return None


def nodes_on_cpu(session: Any) -> str:
    """A line on the nodes that a session on CUDA runs on the processor; empty where there is none."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return "this version of ONNX Runtime does not tell which nodes it runs on the CPU"
    parts = [
        (part.ep_name, node.op_type)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]
    left = Counter(operator for provider, operator in parts if provider == CPU_PROVIDER)
    if not left:
        return ""
    named = ", ".join(name + (f" x {count}" if count > 1 else "") for name, count in sorted(left.items()))
    return f"{left.total()} of {len(parts)} nodes run on the CPU: {named}"


class BoundRun:
    """Runs of a session whose inputs and outputs lie on its device, with the copies timed.

    Args:
        device: ONNX Runtime's name of it.
    """

    def __init__(self, runtime: Any, session: Any, device: str, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self._runtime, self._session, self._device = runtime, session, device
        self._inputs, self._outputs = inputs, outputs
        self._values: dict[str, Any] = {}
        self._binding = session.io_binding()
        self.milliseconds: dict[str, float] = {}  # of the last run, by the host's clock: h2d, compute, d2h

    def __call__(self, feed: Arrays) -> dict[str, np.ndarray]:
        """Copy the inputs, compute, copy the outputs back; each is waited for."""
        begin = time.perf_counter()
        for name in self._inputs:
            self._binding.bind_ortvalue_input(name, self._copied(name, np.ascontiguousarray(feed[name])))
        # Anew for each run: outputs that are bound already must have the shapes of the run before.
        self._binding.clear_binding_outputs()
        for name in self._outputs:
            self._binding.bind_output(name, self._device)
        self._binding.synchronize_inputs()
        copied = time.perf_counter()
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        computed = time.perf_counter()
        found = dict(zip(self._outputs, self._binding.copy_outputs_to_cpu(), strict=True))
        end = time.perf_counter()
        seconds = {"h2d": copied - begin, "compute": computed - copied, "d2h": end - computed}
        self.milliseconds = {name: 1e3 * value for name, value in seconds.items()}
        return found

    def _copied(self, name: str, array: np.ndarray) -> Any:
        """The array on the device, in the memory of the run before where it fits."""
        value = self._values.get(name)
        if value is not None and tuple(value.shape()) == array.shape:
            value.update_inplace(array)
        else:
            value = self._values[name] = self._runtime.OrtValue.ortvalue_from_numpy(array, self._device, 0)
        return value


def first_line(error: Exception) -> str:
    """The first line of ONNX Runtime's message."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return "".join(one if one.isprintable() else "?" for one in line)  # it may quote names of the file


def _reason(runtime: Any, printed: str) -> str:
    try:
        find_driver()
    except BackendMissing as error:
        return str(error).partition(". ")[0]
    for line in printed.splitlines():
        if line.startswith("EP Error"):  # ONNX Runtime's message of an exception that it has caught
            return line.removeprefix("EP Error").strip(": ")
    try:
        ctypes.CDLL(str(Path(runtime.__file__).parent / "capi" / _LIBRARY))
    except OSError as error:
        return str(error)
    return "it gives no reason"
