"""ONNX Runtime on the CPU."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cskd_deploy.backends.base import IMAGE_SHAPE, INPUT, OUTPUTS, Arrays, Backend
from cskd_deploy.environment import usable_cores
from cskd_deploy.errors import BackendMissing, DeployError
from cskd_deploy.manifest import manifest_from_metadata

PROVIDER = "CPUExecutionProvider"
INSTALL = "`pip install onnxruntime` (or `pip install onnxruntime-gpu` for an NVIDIA GPU; never both)"


class OnnxRuntimeBackend(Backend):
    """A file of `cskd-deploy export`.

    Args:
        path: The ONNX file.
        threads: Threads within an operator; None takes every core this process may use.
    """

    name: ClassVar[str] = "onnxruntime"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        super().__init__(path)
        self._threads = threads or usable_cores()
        self._session: Any = None
        self._inputs: list[str] = []
        self._outputs: list[str] = []

    @property
    def session(self) -> Any:
        """The loaded `onnxruntime.InferenceSession`."""
        return self._session

    def load(self) -> None:
        runtime = import_onnxruntime()
        _check_file(self.path)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # errors come as exceptions, which are reported once
        try:
            session = runtime.InferenceSession(str(self.path), sess_options=options, providers=[PROVIDER])
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            reason = str(error).strip().splitlines()[0]
            raise DeployError(
                f"{self.path} cannot be loaded as an ONNX model ({reason}). Expected a file of `cskd-deploy export`"
            ) from error
        # ONNX Runtime falls back to another provider without a word.
        if session.get_providers()[0] != PROVIDER:
            raise DeployError(f"onnxruntime runs {self.path} on {session.get_providers()[0]}, asked for {PROVIDER}")
        self.manifest = manifest_from_metadata(session.get_modelmeta().custom_metadata_map, self.path)
        self._inputs = [value.name for value in session.get_inputs()]
        self._outputs = list(dict.fromkeys([*OUTPUTS, self.manifest.postprocessing.threshold_on]))
        _check_interface(session, self.manifest.preprocessing.input_size, self._outputs, self.path)
        self._session = session
        self.size_bytes = self.path.stat().st_size

    def infer(self, feed: Arrays) -> dict[str, np.ndarray]:
        values = self._session.run(self._outputs, {name: feed[name] for name in self._inputs})
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        self._session = None


def import_onnxruntime() -> Any:
    """The `onnxruntime` module.

    Raises:
        BackendMissing: it is not installed, or is broken.
    """
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise BackendMissing(f"ONNX Runtime cannot be imported ({error}). Install it: {INSTALL}") from error


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise DeployError(f"model {path} does not exist" if not path.exists() else f"model {path} is not a file")
    with path.open("rb") as file:
        head = file.read(4)
    if not head:
        raise DeployError(f"model {path} is empty (0 bytes): export it again")
    if head == b"PK\x03\x04":
        raise DeployError(
            f"model {path} is a PyTorch checkpoint, expected an ONNX file: "
            f"run `cskd-deploy export --checkpoint {path}` first (or give it as --reference)"
        )


def _check_interface(session: Any, input_size: tuple[int, int], needed: list[str], path: Path) -> None:
    inputs = {value.name: value.shape for value in session.get_inputs()}
    outputs = {value.name for value in session.get_outputs()}
    expected = {INPUT: [1, 3, *input_size]}
    if inputs not in (expected, {**expected, IMAGE_SHAPE: [1, 2]}) or not outputs.issuperset(needed):
        raise DeployError(
            f"{path} has inputs {inputs} and outputs {sorted(outputs)}; its metadata says "
            f"{INPUT} (1, 3, {input_size[0]}, {input_size[1]}) and {', '.join(needed)}. Export it again"
        )
