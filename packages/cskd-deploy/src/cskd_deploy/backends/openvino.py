"""OpenVINO, on Intel and other x86 and ARM processors, Intel GPUs and NPUs: the same ONNX files as ONNX Runtime.

An INT8 file for TensorRT, whose activations are signed, runs in INT8 kernels here; ONNX Runtime has none for it on x86
and dequantises it layer by layer.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cskd_deploy.backends.base import INPUT, Arrays, Backend, input_shapes, is_input_of, needed_outputs
from cskd_deploy.errors import BackendMissing, DeployError
from cskd_deploy.measure.environment import instruction_sets, lacks, thread_count
from cskd_deploy.model.onnx_file import check_model_file, read_model

INSTALL = "`pip install openvino`"
DEVICES = ("cpu", "gpu", "npu")
DRIVERS = {
    "gpu": "an Intel GPU needs Intel's driver for OpenCL",
    "npu": "an Intel NPU needs Intel's NPU driver",
}
# One stream, each inference waited for. Float32 is computed as float32: OpenVINO's own choice is bfloat16 on processors
# with AMX, and float16 on GPUs.
HINTS = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
MOST_REASON = 300  # characters of a message
PRECISION = "INFERENCE_PRECISION_HINT"


class OpenVinoBackend(Backend):
    """A file of `cskd-deploy export`, checked before OpenVINO sees it.

    Args:
        path: The ONNX file.
        threads: Threads within an operator, on the processor; None takes every core this process may use.
        device: one of `DEVICES`; None takes the processor.
        allow_external_data: weights may lie in other files below the folder of the model.
    """

    name: ClassVar[str] = "openvino"

    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        *,
        device: str | None = "cpu",
        allow_external_data: bool = False,
    ) -> None:
        super().__init__(path)
        self.device = device or "cpu"
        self._threads = thread_count(threads)
        self._allow_external_data = allow_external_data
        self._request: Any = None
        self._inputs: list[str] = []
        self._outputs: list[str] = []

    def load(self) -> None:
        core = core_of(import_openvino())
        self.size_bytes = check_model_file(self.path, self._allow_external_data)
        _, self.manifest = read_model(self.path, self._allow_external_data)
        self._outputs = needed_outputs(self.manifest)
        _check_device(core, self.device)
        self._refuse_dynamic_on_npu()
        model = self._loaded(lambda: core.read_model(str(self.path)))
        inputs = {value.get_any_name(): _shape(value) for value in model.inputs}
        self._check_interface(inputs, {name for value in model.outputs for name in value.get_names()})
        self._inputs = list(inputs)
        self.batch_size = inputs[INPUT][0]
        compiled = self._loaded(lambda: core.compile_model(model, self.device.upper(), self._settings()))
        self._request = compiled.create_infer_request()
        self.notes = self._notes()

    def _settings(self) -> dict[str, str]:
        settings = dict(HINTS)
        if self.device != "npu":  # which has float16 and integers alone
            settings[PRECISION] = "f16" if self.manifest.precision == "fp16" and self.device == "gpu" else "f32"
        if self.device == "cpu":
            settings["INFERENCE_NUM_THREADS"] = str(self._threads)
        return settings

    def _notes(self) -> tuple[str, ...]:
        if self.device == "npu" and self.manifest.precision == "fp32":
            return (f"{self.path}: an NPU has no float32, it computes in float16",)
        # Weights of 8 bits: sums of two products saturate at 16 bits without VNNI, whatever the activations' sign.
        wide = ("vnni",) if self.manifest.precision == "int8-tensorrt" else ()
        missing = lacks((*self.manifest.requires, *wide), instruction_sets()) if self.device == "cpu" else ()
        if missing:
            names = ", ".join(name.upper() for name in dict.fromkeys(missing))
            return (
                f"{self.path}: OpenVINO's INT8 numbers differ on this processor, which lacks {names}: take a file of "
                "`export --precision int8 --target cpu`",
            )
        return ()

    def _refuse_dynamic_on_npu(self) -> None:
        graph = self.manifest.graph
        if self.device == "npu" and (graph.dynamic or graph.batch is None):
            raise DeployError(
                f"{self.path} takes images of several sizes or batches, an NPU takes one: export it with "
                "--input-size H W and --batch 1"
            )

    def _loaded(self, step: Any) -> Any:
        try:
            return step()
        except Exception as error:  # OpenVINO's exceptions are RuntimeErrors, and some of its bindings' own
            raise DeployError(
                f"{self.path} cannot be loaded in OpenVINO on {self.device} ({reason(error)}). Expected a file of "
                "`cskd-deploy export`; ONNX Runtime may run it (leave --backend openvino out)"
            ) from error

    def _check_interface(self, inputs: dict[str, tuple[int | None, ...]], outputs: set[str]) -> None:
        if not is_input_of(self.manifest, inputs) or not outputs.issuperset(self._outputs):
            raise DeployError(
                f"{self.path} has inputs {inputs} and outputs {sorted(outputs)}; its metadata says {INPUT} "
                f"{input_shapes(self.manifest)[INPUT]} and {', '.join(self._outputs)}. Export it again"
            )

    def _infer(self, feed: Arrays) -> dict[str, np.ndarray]:
        try:
            self._request.infer({name: np.ascontiguousarray(feed[name]) for name in self._inputs}, share_inputs=True)
            # Copies: the request's memory is written again by the next inference.
            return {name: self._request.get_tensor(name).data.copy() for name in self._outputs}
        except Exception as error:
            raise DeployError(f"{self.path} failed in OpenVINO: {reason(error)}") from error

    def _close(self) -> None:
        self._request = None


def import_openvino() -> Any:
    """The `openvino` module.

    Raises:
        BackendMissing: it is not installed, or is broken.
    """
    try:
        return importlib.import_module("openvino")
    except Exception as error:  # a broken installation may fail with anything
        raise BackendMissing(f"OpenVINO cannot be imported ({error}). Install it: {INSTALL}") from error


@lru_cache
def core_of(runtime: Any) -> Any:
    """The process's one `openvino.Core`, which is never freed.

    OpenVINO's processor plugin gives the thread that loads it a stack for signal handlers, and unmaps it when its core
    is freed. Of two cores freed in the order in which they were made, the second puts the first one's stack back, which
    is no longer mapped: the next signal that Python handles (Ctrl-C, the end of a child process) kills the process.
    Seen with OpenVINO 2026.4.1.

    Args:
        runtime: the `openvino` module.
    """
    return runtime.Core()


def devices(core: Any) -> list[str]:
    """Those of `DEVICES` that an `openvino.Core` finds here: it calls several GPUs GPU.0, GPU.1."""
    there = {name.partition(".")[0].lower() for name in core.available_devices}
    return [name for name in DEVICES if name in there]


def _check_device(core: Any, device: str) -> None:
    there = devices(core)
    if device not in there:
        needs = f". {DRIVERS[device][0].upper()}{DRIVERS[device][1:]}" if device in DRIVERS else ""
        raise BackendMissing(f"OpenVINO finds no {device} here, only {', '.join(there) or 'no device'}{needs}")


def reason(error: Exception) -> str:
    """What went wrong in one line, without the places in OpenVINO's sources that its messages begin with."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    line = (" ".join(said) or type(error).__name__)[:MOST_REASON].removesuffix(".")
    return "".join(one if one.isprintable() else "?" for one in line)  # it may quote names of the file


def _shape(value: Any) -> tuple[int | None, ...]:
    return tuple(None if size.is_dynamic else size.get_length() for size in value.get_partial_shape())
