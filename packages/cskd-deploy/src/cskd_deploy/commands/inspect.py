"""`cskd-deploy inspect`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from cskd_data.files import sha256_of_file
from cskd_deploy.backends import backend_name
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.backends.tensorrt.manifest import read_engine_manifest
from cskd_deploy.detect.detector import Detector
from cskd_deploy.errors import DeployError
from cskd_deploy.measure.bench import random_images
from cskd_deploy.model.onnx_file import operators_of

TOP = 10
RUNS = 10


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--profile", is_flag=True, help="Run the model and list its layers by time. Timings of this machine.")
@click.option("--top", type=click.IntRange(min=1), help="With --profile: layers to list. [default: 10]")
@click.option("--threads", type=click.IntRange(min=1), help="With --profile. [default: every core]")
@click.option("--allow-external-data", is_flag=True, help="Read weights from other files below the model's folder.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def command(
    model: Path, profile: bool, top: int | None, threads: int | None, allow_external_data: bool, as_json: bool
) -> None:
    """Show what an exported model is and expects: metadata, inputs, outputs, size, operators.

    With --profile also the layers that take most time, by ONNX Runtime's profiler. Of a TensorRT engine, its manifest
    is shown.

    \b
    Examples:
      cskd-deploy inspect student.onnx
      cskd-deploy inspect student.onnx --profile --top 20
    """
    if not profile and (top or threads):
        raise DeployError("--top and --threads are of a profile: give --profile with them")
    if backend_name(model) == "tensorrt":
        facts = _engine(model)
    else:
        facts = _onnx(model, profile, top or TOP, threads, allow_external_data)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        for line in _lines(facts):
            # Data from a file, on a terminal: no control characters.
            click.echo("".join(one if one.isprintable() else "?" for one in line))


def _onnx(path: Path, profile: bool, top: int, threads: int | None, allow_external_data: bool) -> dict[str, Any]:
    with OnnxRuntimeBackend(path, threads=1, allow_external_data=allow_external_data) as backend:
        session, manifest = backend.session, backend.manifest
        facts: dict[str, Any] = {
            "path": str(path),
            "size_bytes": backend.size_bytes,
            "file_sha256": sha256_of_file(path),
            "inputs": {value.name: f"{value.type} {value.shape}" for value in session.get_inputs()},
            "outputs": {value.name: f"{value.type} {value.shape}" for value in session.get_outputs()},
            "operators": operators_of(path.read_bytes()),
        }
    if profile:
        facts["layers"] = [layer.to_dict() for layer in time_layers(path, threads, allow_external_data)[:top]]
    facts["metadata"] = manifest.to_dict()
    return facts


def _engine(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DeployError(f"engine {path} does not exist")
    manifest = read_engine_manifest(path)
    if manifest is None:
        raise DeployError(f"engine {path} has no manifest beside it, and an engine itself says nothing: build it again")
    data = manifest.to_dict()
    metadata = data.pop("model")
    own = sha256_of_file(path)
    return {
        "path": str(path),
        "size_bytes": path.stat().st_size,
        "file_sha256": own,
        "manifest_matches": own == manifest.sha256,
        "engine": data,
        "metadata": metadata,
    }


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    yield f"{facts['path']}: {facts['size_bytes'] / 1e6:.1f} MB, sha256 {facts['file_sha256'][:12]}"
    for title in ("inputs", "outputs", "engine", "metadata"):
        if title not in facts:
            continue
        yield title
        for name, value in _flat(facts[title]):
            yield f"  {name:<34} {value}"
        if title == "outputs":
            yield from _lines_of_graph(facts)
    if facts.get("manifest_matches") is False:
        yield "note: the engine is not the one that its manifest describes (sha256 differs)"


def _lines_of_graph(facts: dict[str, Any]) -> Iterator[str]:
    operators = facts["operators"]
    yield f"operators ({sum(operators.values())})"
    yield "  " + ", ".join(f"{count} {name}" for name, count in operators.items())
    if "layers" in facts:
        yield "slowest layers, after ONNX Runtime's optimisations"
        for layer in facts["layers"]:
            time = f"{layer['milliseconds']:>9.3f} ms {100 * layer['share']:>5.1f} %"
            yield f"  {time} {layer['operator']:<18} {layer['name']}"


def _flat(data: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in data.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            rows.append((prefix + name, text))
    return rows


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
