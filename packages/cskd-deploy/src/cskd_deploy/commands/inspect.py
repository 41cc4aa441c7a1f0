"""`cskd-deploy inspect`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from cskd_data.files import sha256_of_file
from cskd_deploy.backends import backend_name
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.backends.tensorrt.manifest import read_engine_manifest
from cskd_deploy.errors import DeployError
from cskd_deploy.measure.layer_times import time_engine, time_layers
from cskd_deploy.model.onnx_file import operators_of

TOP = 10


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
    is shown; with --profile its layers, by TensorRT's profiler. What each of them is, an engine says that was built
    with `--trt profilingVerbosity=detailed`.

    \b
    Examples:
      cskd-deploy inspect student.onnx
      cskd-deploy inspect student.onnx --profile --top 20
      cskd-deploy inspect student.engine --profile
    """
    if not profile and (top or threads):
        raise DeployError("--top and --threads are of a profile: give --profile with them")
    if backend_name(model) == "tensorrt":
        if threads:
            raise DeployError(f"--threads is of ONNX Runtime, {model} is an engine: leave it out")
        facts = _engine(model)
        if profile:
            facts["layers"] = [layer.to_dict() for layer in time_engine(model)[: top or TOP]]
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
        if title in ("outputs", "engine") and "layers" in facts:
            yield from _lines_of_layers(facts["layers"], "ONNX Runtime" if title == "outputs" else "TensorRT")
    if facts.get("manifest_matches") is False:
        yield "note: the engine is not the one that its manifest describes (sha256 differs)"


def _lines_of_graph(facts: dict[str, Any]) -> Iterator[str]:
    operators = facts["operators"]
    yield f"operators ({sum(operators.values())})"
    yield "  " + ", ".join(f"{count} {name}" for name, count in operators.items())


def _lines_of_layers(layers: Sequence[Mapping[str, Any]], runtime: str) -> Iterator[str]:
    yield f"slowest layers, after {runtime}'s optimisations"
    for layer in layers:
        time = f"{layer['milliseconds']:>9.3f} ms {100 * layer['share']:>5.1f} %"
        yield f"  {time} {layer['operator']:<18} {layer['name']}"


def _flat(data: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in data.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            if isinstance(value, (list, tuple)) and any(isinstance(one, dict) for one in value):
                rows += _flat({str(place): one for place, one in enumerate(value)}, f"{prefix}{name}.")
                continue
            text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            rows.append((prefix + name, text))
    return rows
