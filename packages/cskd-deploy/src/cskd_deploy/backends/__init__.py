"""The runtimes, and which of them runs which file."""

from __future__ import annotations

from pathlib import Path

from cskd_deploy.backends.base import Backend
from cskd_deploy.backends.onnxruntime_settings import OrtSettings
from cskd_deploy.errors import DeployError
from cskd_deploy.model.manifest import Manifest

ENGINE_SUFFIXES = (".engine", ".plan", ".trt")
CHECKPOINT_SUFFIXES = (".pth", ".pt")
NAMES = ("onnxruntime", "tensorrt", "pytorch")
DEVICES = ("cpu", "cuda")
BUFFERS = ("cuda-python", "pycuda")


def backend_name(path: Path) -> str:
    """The backend that runs a file of this name: engines TensorRT, checkpoints PyTorch, all else ONNX Runtime."""
    suffix = path.suffix.lower()
    if suffix in ENGINE_SUFFIXES:
        return "tensorrt"
    return "pytorch" if suffix in CHECKPOINT_SUFFIXES else "onnxruntime"


def runs(name: str, path: Path) -> bool:
    """Whether a backend runs files of this name."""
    return name == backend_name(path)


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
        device: one of `DEVICES`; by default a GPU where the runtime can use one.
        threads: of ONNX Runtime and PyTorch; None takes every core this process may use.
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
        from cskd_deploy.backends.tensorrt.backend import TensorRTBackend

        return TensorRTBackend(path, buffers=buffers, cuda_graph=cuda_graph, trust_engine=trust_engine)
    if name == "pytorch":
        from cskd_deploy.backends.torch import TorchBackend

        return TorchBackend(path, like=like, threads=threads, device=device)
    from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(path, threads, device=device, settings=ort, allow_external_data=allow_external_data)


def beside(device: str | None, model: Backend) -> str | None:
    """The device of a checkpoint that a loaded model is held against: the model's own, as far as PyTorch has it.

    Args:
        device: as `backend_for` was given it for the model.
    """
    return "cpu" if model.device == "cpu" else device
