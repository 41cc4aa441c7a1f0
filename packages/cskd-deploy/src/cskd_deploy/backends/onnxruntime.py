"""ONNX Runtime, on the CPU or an NVIDIA GPU."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cskd_deploy.backends import onnxruntime_cuda as cuda
from cskd_deploy.backends.base import INPUT, Arrays, Backend, input_shapes, is_input_of, needed_outputs
from cskd_deploy.backends.onnxruntime_settings import OrtSettings
from cskd_deploy.errors import BackendMissing, DeployError
from cskd_deploy.measure.environment import instruction_sets, lacks, thread_count
from cskd_deploy.model.manifest import Manifest, manifest_from_metadata
from cskd_deploy.model.onnx_file import check_manifest, check_metadata, check_model_file

INSTALL = "`pip install onnxruntime` (or `pip install onnxruntime-gpu` for an NVIDIA GPU; never both)"


class OnnxRuntimeBackend(Backend):
    """A file of `cskd-deploy export`.

    Args:
        path: The ONNX file.
        threads: Threads within an operator; None takes every core this process may use.
        device: `cpu` or `cuda`; None takes CUDA where it works. Its inputs and outputs are then copied in each run.
        settings: of the session.
        allow_external_data: weights may lie in other files below the folder of the model.
        profile: where ONNX Runtime writes what each node took, on `close`; the file's name begins so.
    """

    name: ClassVar[str] = "onnxruntime"
    shares_memory = False  # on the processor

    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        *,
        device: str | None = "cpu",
        settings: OrtSettings | None = None,
        allow_external_data: bool = False,
        profile: Path | None = None,
    ) -> None:
        super().__init__(path)
        self._threads = thread_count(threads)
        self._asked = device
        self._settings = settings or OrtSettings()
        self._allow_external_data = allow_external_data
        self._profile = profile
        self._session: Any = None
        self._inputs: list[str] = []
        self._outputs: list[str] = []
        self._bound: cuda.BoundRun | None = None

    @property
    def session(self) -> Any:
        """The loaded `onnxruntime.InferenceSession`."""
        return self._session

    @property
    def device_milliseconds(self) -> dict[str, float]:
        """Of the last inference on a GPU, by the host's clock: `h2d`, `compute` and `d2h`."""
        return {} if self._bound is None else self._bound.milliseconds

    def load(self) -> None:
        runtime = import_onnxruntime()
        self.size_bytes = check_model_file(self.path, self._allow_external_data)
        self._choose_device(runtime)
        session = self._open(runtime)
        metadata = session.get_modelmeta().custom_metadata_map
        check_metadata(metadata, self.path)
        self.manifest = manifest_from_metadata(metadata, self.path)
        check_manifest(self.manifest, self.path)
        self._inputs = [value.name for value in session.get_inputs()]
        self._outputs = needed_outputs(self.manifest)
        _check_interface(session, self.manifest, self._outputs, self.path)
        batch = next(value.shape[0] for value in session.get_inputs() if value.name == INPUT)
        self.batch_size = batch if isinstance(batch, int) else None
        self._session = session
        if self.device == "cuda":
            self.shares_memory = True
            self._bound = cuda.BoundRun(runtime, session, "cuda", self._inputs, self._outputs)
            left = cuda.nodes_on_cpu(session)
            self.notes = (f"{self.path}: {left}",) if left else ()
        self.notes += self._notes_on_processor()

    def _notes_on_processor(self) -> tuple[str, ...]:
        missing = lacks(self.manifest.requires, instruction_sets()) if self.device == "cpu" else ()
        if not missing:
            return ()
        names = ", ".join(name.upper() for name in missing)
        return (f"{self.path}: its numbers differ on this processor, which lacks {names}: export it again",)

    def _choose_device(self, runtime: Any) -> None:
        self.device = self._asked or "cpu"
        if self._asked is None and cuda.PROVIDER in runtime.get_available_providers():
            fault = cuda.fault(runtime)
            if fault is None:
                self.device = "cuda"
            else:
                self.notes = (f"ONNX files run on the CPU: {fault}",)

    def _open(self, runtime: Any) -> Any:
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # errors come as exceptions, which are reported once
        self._settings.apply(runtime, options)
        if self._profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(self._profile)
        try:
            if self.device == "cuda":
                return cuda.open_session(runtime, str(self.path), options)
            return runtime.InferenceSession(str(self.path), sess_options=options, providers=[cuda.CPU_PROVIDER])
        except BackendMissing:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            reason = cuda.first_line(error)
            raise DeployError(
                f"{self.path} cannot be loaded as an ONNX model ({reason}). Expected a file of `cskd-deploy export`"
            ) from error

    def end_profile(self) -> Path:
        """The file that `profile` asked for, written now."""
        return Path(self._session.end_profiling())

    def _infer(self, feed: Arrays) -> dict[str, np.ndarray]:
        try:
            if self._bound is not None:
                return self._bound(feed)
            values = self._session.run(self._outputs, {name: feed[name] for name in self._inputs})
        except Exception as error:
            raise DeployError(f"{self.path} failed in ONNX Runtime: {cuda.first_line(error)}") from error
        return dict(zip(self._outputs, values, strict=True))

    def _close(self) -> None:
        self._session = self._bound = None


def import_onnxruntime() -> Any:
    """The `onnxruntime` module.

    Raises:
        BackendMissing: it is not installed, or is broken.
    """
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise BackendMissing(f"ONNX Runtime cannot be imported ({error}). Install it: {INSTALL}") from error


def _check_interface(session: Any, manifest: Manifest, needed: list[str], path: Path) -> None:
    inputs = {value.name: value.shape for value in session.get_inputs()}
    outputs = {value.name for value in session.get_outputs()}
    if not is_input_of(manifest, inputs) or not outputs.issuperset(needed):
        raise DeployError(
            f"{path} has inputs {inputs} and outputs {sorted(outputs)}; its metadata says "
            f"{INPUT} {input_shapes(manifest)[INPUT]} and {', '.join(needed)}. Export it again"
        )
