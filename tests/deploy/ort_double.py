"""An ONNX Runtime for CUDA that is none: the installed one, which computes on the processor and says that it is a GPU.

It keeps to what is true of a GPU alone: memory there is not read before a copy was waited for, outputs of an earlier
run are bound anew, and a library that is missing is printed and passed over.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as real

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class OnnxRuntimeDouble:
    """`onnxruntime` as far as it is used; all else is the installed one's.

    Args:
        working: CUDA's libraries are there.
        left: operators that it has no CUDA kernel for.
        tells: it says which node runs where, as newer versions do.
        preloads: it has `preload_dlls`, as newer versions have.
    """

    __file__ = real.__file__

    def __init__(
        self, working: bool = True, left: tuple[str, ...] = (), tells: bool = True, preloads: bool = True
    ) -> None:
        self.calls: list[str] = []
        self.providers: list[Any] = []  # of each session on CUDA
        self.severity = 2
        self._working, self._left, self._tells = working, left, tells
        self.OrtValue = _Values(self)
        if preloads:
            self.preload_dlls = self._preload

    def __getattr__(self, name: str) -> Any:
        return getattr(real, name)

    def get_available_providers(self) -> list[str]:
        return [CUDA, CPU]

    def set_default_logger_severity(self, level: int) -> None:
        self.severity = level

    def _preload(self) -> None:
        self.calls.append("preload")
        print("Failed to load libcublasLt.so.13: cannot open shared object file")

    def InferenceSession(self, model: Any, sess_options: Any = None, providers: Any = ()) -> Any:  # noqa: N802
        if providers == [CPU]:
            return real.InferenceSession(model, sess_options=sess_options, providers=[CPU])
        self.calls.append("session")
        self.providers.append(providers)
        assert self.severity == 4, "the logger would print of its own"
        session = real.InferenceSession(model, sess_options=sess_options, providers=[CPU])
        return _Session(self, session) if self._working else session


class _Session:
    def __init__(self, runtime: OnnxRuntimeDouble, session: Any) -> None:
        self._runtime, self._session = runtime, session
        if not runtime._tells:
            return
        self.get_provider_graph_assignment_info = self._assignment

    def __getattr__(self, name: str) -> Any:
        if name == "get_provider_graph_assignment_info":
            raise AttributeError(name)
        return getattr(self._session, name)

    def get_providers(self) -> list[str]:
        return [CUDA, CPU]

    def disable_fallback(self) -> None:
        self._runtime.calls.append("no fallback")

    def _assignment(self) -> list[Any]:
        nodes = [node for part in self._session.get_provider_graph_assignment_info() for node in part.get_nodes()]
        return [_Part(CPU if node.op_type in self._runtime._left else CUDA, node) for node in nodes]

    def io_binding(self) -> Any:
        return _Binding(self._runtime, self._session)

    def run_with_iobinding(self, binding: _Binding) -> None:
        binding.run()


class _Part:
    def __init__(self, provider: str, node: Any) -> None:
        self.ep_name, self._node = provider, node

    def get_nodes(self) -> list[Any]:
        return [self._node]


class _Values:
    """`onnxruntime.OrtValue`."""

    def __init__(self, runtime: OnnxRuntimeDouble) -> None:
        self._runtime = runtime

    def ortvalue_from_numpy(self, array: np.ndarray, device: str, number: int) -> _Value:
        assert (device, number) == ("cuda", 0)
        self._runtime.calls.append(f"new {array.shape}")
        return _Value(self._runtime, array)


class _Value:
    def __init__(self, runtime: OnnxRuntimeDouble, array: np.ndarray) -> None:
        self._runtime, self.array = runtime, array.copy()

    def shape(self) -> list[int]:
        return list(self.array.shape)

    def update_inplace(self, array: np.ndarray) -> None:
        assert (array.shape, array.dtype) == (self.array.shape, self.array.dtype)
        assert array.flags.c_contiguous
        self._runtime.calls.append(f"again {array.shape}")
        self.array = array.copy()


class _Binding:
    def __init__(self, runtime: OnnxRuntimeDouble, session: Any) -> None:
        self._runtime, self._session = runtime, session
        self._inputs: dict[str, _Value] = {}
        self._outputs: dict[str, np.ndarray | None] = {}
        self._done = False

    def bind_ortvalue_input(self, name: str, value: _Value) -> None:
        self._inputs[name] = value

    def bind_output(self, name: str, device: str) -> None:
        assert device == "cuda"
        self._outputs[name] = None

    def clear_binding_outputs(self) -> None:
        self._outputs.clear()

    def synchronize_inputs(self) -> None:
        self._runtime.calls.append("inputs are there")

    def run(self) -> None:
        assert self._runtime.calls[-1] == "inputs are there"
        assert all(value is None for value in self._outputs.values()), "bound to the shapes of the run before"
        self._runtime.calls.append("run")
        feed = {name: value.array for name, value in self._inputs.items()}
        self._outputs = dict(zip(self._outputs, self._session.run(list(self._outputs), feed), strict=True))
        self._done = False

    def synchronize_outputs(self) -> None:
        self._runtime.calls.append("outputs are there")
        self._done = True

    def copy_outputs_to_cpu(self) -> list[Any]:
        assert self._done, "read before it was waited for"
        self._runtime.calls.append("copy back")
        return list(self._outputs.values())
