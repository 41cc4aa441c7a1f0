"""The runtimes, and which of them runs which file."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from cskd_deploy.backends.base import Backend
from cskd_deploy.backends.onnxruntime_settings import OrtSettings
from cskd_deploy.errors import DeployError
from cskd_deploy.model.manifest import Manifest

ENGINE_SUFFIXES = (".engine", ".plan", ".trt")
CHECKPOINT_SUFFIXES = (".pth", ".pt", ".safetensors")
# The backends, and the devices that each of them runs on.
DEVICES_OF = {
    "onnxruntime": ("cpu", "cuda"),
    "openvino": ("cpu", "gpu", "npu"),
    "tensorrt": ("cuda",),
    "pytorch": ("cpu", "cuda"),
}
NAMES = tuple(DEVICES_OF)
DEVICES = DEVICES_OF["pytorch"]  # where an export is verified
RUN_DEVICES = tuple(dict.fromkeys(device for devices in DEVICES_OF.values() for device in devices))
BUFFERS = ("cuda-python", "pycuda")


def backend_name(path: Path) -> str:
    """The backend that runs a file of this name: engines TensorRT, checkpoints PyTorch, all else ONNX Runtime."""
    suffix = path.suffix.lower()
    if suffix in ENGINE_SUFFIXES:
        return "tensorrt"
    return "pytorch" if suffix in CHECKPOINT_SUFFIXES else "onnxruntime"


def runs(name: str, path: Path) -> bool:
    """Whether a backend runs files of this name; ONNX files run in ONNX Runtime and in OpenVINO."""
    natural = backend_name(path)
    return name == natural or (name == "openvino" and natural == "onnxruntime")


def backend_for(
    path: Path,
    name: str | None = None,
    *,
    device: str | None = None,
    threads: int | None = None,
    buffers: str | None = None,
    cuda_graph: bool = False,
    trust_engine: bool = False,
    like: Manifest | None = None,
    ort: OrtSettings | None = None,
    allow_external_data: bool = False,
) -> Backend:
    """The backend of a model file, not loaded yet.

    Args:
        name: one of `NAMES`; by default that of `backend_name`.
        device: one of `DEVICES_OF` the backend; by default `cuda` where the runtime can use it, else `cpu`.
        threads: of ONNX Runtime, OpenVINO and PyTorch; None takes every core this process may use.
        buffers: one of `BUFFERS`: the package that TensorRT gets its GPU memory from; by default the first one found.
        cuda_graph: TensorRT replays its work as a CUDA graph.
        trust_engine: load a TensorRT engine that its manifest does not vouch for.
        like: a checkpoint gets its images on the canvases of this manifest's graph, and keeps as many proposals; by
            default as its config has it.
        ort: settings of ONNX Runtime.
        allow_external_data: an ONNX file may keep weights in other files below its folder.

    Raises:
        DeployError: there is no such backend, or it does not run files of this kind, or not on this device.
    """
    # Imported on use: a broken runtime must not keep the others from working.
    natural = backend_name(path)
    name = name or natural
    if name not in NAMES:
        raise DeployError(f"there is no backend {name!r}, expected one of {', '.join(NAMES)}")
    if not runs(name, path):
        raise DeployError(f"{name} does not run {path}: files of this name are for {natural}")
    if name == "tensorrt":
        if device == "cpu":
            raise DeployError(f"{path} is an engine, which runs on a GPU only: leave --device cpu out")
        _check_device(path, name, device)
        from cskd_deploy.backends.tensorrt.backend import TensorRTBackend

        return TensorRTBackend(path, buffers=buffers, cuda_graph=cuda_graph, trust_engine=trust_engine)
    _check_device(path, name, device)
    if name == "pytorch":
        from cskd_deploy.backends.torch import TorchBackend

        return TorchBackend(path, like=like, threads=threads, device=device)
    if name == "openvino":
        from cskd_deploy.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(path, threads, device=device, allow_external_data=allow_external_data)
    from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(path, threads, device=device, settings=ort, allow_external_data=allow_external_data)


def _check_device(path: Path, name: str, device: str | None) -> None:
    known = DEVICES_OF[name]
    if device is not None and device not in known:
        others = [other for other, devices in DEVICES_OF.items() if device in devices and runs(other, path)]
        instead = f", or give --backend {others[0]}" if others else ""
        raise DeployError(
            f"{name}, which runs {path}, runs on {', '.join(known)}, not on {device}: change --device{instead}"
        )


def device_among(name: str, names: Collection[str], device: str | None) -> str | None:
    """The device of a backend that runs beside others: `device`, or the processor where only another one has it.

    Args:
        name: of the backend.
        names: of all of them.
        device: that they were asked to run on.
    """
    mine = device is None or device in DEVICES_OF[name]
    return device if mine or not any(device in DEVICES_OF[other] for other in names) else "cpu"


def beside(device: str | None, model: Backend) -> str | None:
    """The device of a checkpoint that a loaded model is held against: the model's own, where PyTorch has it.

    Args:
        device: as `backend_for` was given it for the model.
    """
    return device if model.device in DEVICES[1:] else "cpu"
