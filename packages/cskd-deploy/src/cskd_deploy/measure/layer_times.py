"""Which layers of a file take how long, by the profiler of the runtime that it is for."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cskd_deploy.accuracy.against_fp32 import feed_of
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.detect.detector import Detector
from cskd_deploy.errors import DeployError
from cskd_deploy.measure.bench import random_images

RUNS = 10


@dataclass(frozen=True)
class TimedLayer:
    """A node as ONNX Runtime ran it, or a layer of an engine, after all optimisations."""

    name: str
    operator: str
    milliseconds: float  # mean of a run
    share: float  # of all nodes

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)


def time_layers(path: Path, threads: int | None = None, allow_external_data: bool = False) -> list[TimedLayer]:
    """Run a model some times on a random image under ONNX Runtime's profiler; the slowest nodes first.

    Raises:
        DeployError: the file cannot be used.
    """
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "profile"
        options = {"allow_external_data": allow_external_data, "profile": prefix}
        with OnnxRuntimeBackend(path, threads, **options) as backend:  # type: ignore[arg-type]
            detector = Detector(backend)
            feed = _feed(detector)
            for _ in range(RUNS + 1):
                backend.infer(feed)
            events = json.loads(backend.end_profile().read_text())
    return timed_layers(events)


def timed_layers(events: list[Mapping[str, Any]]) -> list[TimedLayer]:
    """The nodes among the events of ONNX Runtime's profile, without the first run of each, which is not warm.

    Raises:
        DeployError: there is none.
    """
    times: dict[str, list[float]] = {}
    operators = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            name = name.removesuffix("_kernel_time")
            times.setdefault(name, []).append(event["dur"] / 1e3)
            operators[name] = str(event["args"].get("op_name", ""))
    if not times:
        raise DeployError("ONNX Runtime's profile names no node")
    runs = max(map(len, times.values()))
    means = {name: sum(values[len(values) // runs :]) / max(runs - 1, 1) for name, values in times.items()}
    return _slowest_first((name, operators[name], milliseconds) for name, milliseconds in means.items())


def time_engine(path: Path) -> list[TimedLayer]:
    """Run a TensorRT engine some times on a random image under TensorRT's profiler; the slowest layers first.

    Raises:
        DeployError: the engine cannot be used, or names no layer.
        BackendMissing: there is no GPU, or no TensorRT.
    """
    from cskd_deploy.backends.tensorrt.backend import TensorRTBackend

    with TensorRTBackend(path) as backend:
        times = backend.time_layers(_feed(Detector(backend)), RUNS)
    if not times:
        raise DeployError(f"TensorRT's profile of {path} names no layer")
    return _slowest_first((one.name, one.kind, one.milliseconds) for one in times)


def _feed(detector: Detector) -> dict[str, np.ndarray]:
    return feed_of(detector, random_images(detector.manifest.preprocessing.input_size, count=1)[0])


def _slowest_first(layers: Iterable[tuple[str, str, float]]) -> list[TimedLayer]:
    """Of name, operator and milliseconds."""
    ordered = sorted(layers, key=lambda layer: -layer[2])
    total = sum(milliseconds for _, _, milliseconds in ordered)
    return [
        TimedLayer(name, operator, milliseconds, milliseconds / total if total else 0.0)
        for name, operator, milliseconds in ordered
    ]
