"""Which layers of an exported graph take most time, by ONNX Runtime's own clock."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.detect.detector import Detector
from cskd_deploy.errors import DeployError
from cskd_deploy.measure.bench import random_images

RUNS = 10


@dataclass(frozen=True)
class TimedLayer:
    """A node as ONNX Runtime ran it, after its optimisations."""

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
            prepared = detector.prepare(random_images(detector.manifest.preprocessing.input_size, count=1)[0])
            for _ in range(RUNS + 1):
                detector.infer(prepared)
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
    total = sum(means.values())
    slowest = sorted(means, key=lambda name: -means[name])
    return [TimedLayer(name, operators[name], means[name], means[name] / total if total else 0.0) for name in slowest]
