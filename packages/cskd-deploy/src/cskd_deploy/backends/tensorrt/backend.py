"""TensorRT on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np

from cskd_deploy.backends.base import INPUT, Arrays, Backend, input_shapes, is_input_of, needed_outputs
from cskd_deploy.backends.tensorrt.api import import_tensorrt
from cskd_deploy.backends.tensorrt.driver import Gpu, find_driver
from cskd_deploy.backends.tensorrt.export import read_model
from cskd_deploy.backends.tensorrt.manifest import EngineManifest, manifest_path, mismatches, read_engine_manifest
from cskd_deploy.backends.tensorrt.memory import open_buffers
from cskd_deploy.backends.tensorrt.session import EngineSession, LayerTime, LoadedEngine, load_engine
from cskd_deploy.backends.tensorrt.worker import run_in_worker
from cskd_deploy.errors import BackendMissing, DeployError
from cskd_deploy.model.manifest import Manifest

Result = TypeVar("Result")


class TensorRTBackend(Backend):
    """An engine of `cskd-deploy export --format trt`.

    Args:
        path: The engine; its manifest lies beside it.
        buffers: one of `backends.BUFFERS`; by default the first that can be used.
        cuda_graph: replay the engine's work as a CUDA graph: less work for the processor between layers.
        trust_engine: load an engine without a manifest that matches. It is tried in another process first.
    """

    name: ClassVar[str] = "tensorrt"
    device = "cuda"

    def __init__(
        self,
        path: Path,
        *,
        buffers: str | None = None,
        cuda_graph: bool = False,
        trust_engine: bool = False,
    ) -> None:
        super().__init__(path)
        self._buffers = buffers
        self._cuda_graph = cuda_graph
        self._trust = trust_engine
        self._session: EngineSession | None = None
        self._failures: tuple[type[Exception], ...] = ()
        self._outputs: list[str] = []

    @property
    def device_milliseconds(self) -> dict[str, float]:
        """Of the last inference, by events on the GPU: `h2d`, `compute` and `d2h`."""
        return {} if self._session is None else self._session.milliseconds

    def load(self) -> None:
        content = _read(self.path)
        engine_manifest = _read_manifest(self.path, self._trust)
        try:
            driver = find_driver()
        except BackendMissing as error:
            raise BackendMissing(f"{self.path} cannot run here: {error}") from error
        trt = import_tensorrt()
        if self._trust:
            host_code = True
            run_in_worker("load", {"engine": str(self.path), "host_code": host_code})
        else:
            assert engine_manifest is not None
            _check_trusted(self.path, engine_manifest, content, trt.__version__, driver.gpus[0])
            host_code = engine_manifest.version_compatible
        self.manifest = _manifest_of_onnx(self.path) if engine_manifest is None else engine_manifest.model
        loaded = load_engine(trt, content, host_code)
        self._outputs = needed_outputs(self.manifest)
        _check_interface(self.path, loaded, self.manifest)
        buffers = open_buffers(self._buffers)
        self._session = EngineSession(loaded, buffers, self._cuda_graph)
        self._failures = buffers.failures
        self.size_bytes = len(content)
        images = [profile[INPUT] for profile in loaded.profiles]
        batches = {size for one in images for size in (one.min[0], one.max[0])}
        self.batch_size = batches.pop() if len(batches) == 1 else None

    def _infer(self, feed: Arrays) -> dict[str, np.ndarray]:
        outputs = self._told(lambda session: session.run(feed))
        assert self._session is not None
        # Until `execute_async_v3`, or the launch of the CUDA graph, returned.
        self.enqueue_seconds = self._session.enqueue_seconds
        return {name: outputs[name] for name in self._outputs}

    def time_layers(self, feed: Arrays, runs: int) -> list[LayerTime]:
        """The engine's layers and what they take of a run; see `EngineSession.time_layers`."""
        with self._turn:
            return self._told(lambda session: session.time_layers(feed, runs))

    def _told(self, work: Callable[[EngineSession], Result]) -> Result:
        """What comes of the session, whose failures are named after the file."""
        assert self._session is not None
        try:
            return work(self._session)
        except DeployError as error:
            raise DeployError(f"{self.path}: {error}") from error
        except self._failures as error:
            raise DeployError(f"{self.path} failed on the GPU: {error}") from error

    def _close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            try:
                session.close()
            except self._failures as error:
                raise DeployError(f"{self.path} failed on the GPU: {error}") from error


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise DeployError(f"engine {path} does not exist" if not path.exists() else f"engine {path} is not a file")
    content = path.read_bytes()
    if not content:
        raise DeployError(f"engine {path} is empty (0 bytes): build it again")
    return content


def _read_manifest(path: Path, trust: bool) -> EngineManifest | None:
    manifest = read_engine_manifest(path)
    if manifest is None and not trust:
        raise DeployError(
            f"engine {path} is refused: its manifest {manifest_path(path)} does not exist. An engine is code: build it "
            "with `cskd-deploy export --format trt`, or load it with --trust-engine if you know its origin"
        )
    return manifest


def _check_trusted(path: Path, manifest: EngineManifest, content: bytes, tensorrt: str, gpu: Gpu) -> None:
    reasons = mismatches(manifest, content, tensorrt, gpu)
    if reasons:
        raise DeployError(
            f"engine {path} is refused: {'; '.join(reasons)}. Build it here with "
            f"`cskd-deploy export --onnx {manifest.onnx} --format trt`, or load it with --trust-engine if you know its "
            "origin"
        )


def _manifest_of_onnx(path: Path) -> Manifest:
    """What an engine without a manifest is, from the ONNX file beside it."""
    onnx = path.with_suffix(".onnx")
    if not onnx.is_file():
        raise DeployError(
            f"nothing says which classes and which input {path} has: put its manifest {manifest_path(path).name} "
            f"beside it, or the ONNX file {onnx.name} that it was built from"
        )
    return read_model(onnx)[1]


def _check_interface(path: Path, loaded: LoadedEngine, manifest: Manifest) -> None:
    needed = needed_outputs(manifest)
    inputs: dict[str, Sequence[object]] = {name: loaded.shapes[name] for name in loaded.inputs}
    if not is_input_of(manifest, inputs) or not set(loaded.outputs).issuperset(needed):
        raise DeployError(
            f"{path} has inputs {inputs} and outputs {', '.join(loaded.outputs)}; its manifest says "
            f"{INPUT} {input_shapes(manifest)[INPUT]} and {', '.join(needed)}. Build it again"
        )
