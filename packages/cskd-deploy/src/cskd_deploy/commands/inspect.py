"""`cskd-deploy inspect`."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import click

from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def command(model: Path, as_json: bool) -> None:
    """Show what an exported model is and expects: metadata, inputs, outputs, size, operators.

    \b
    Example:
      cskd-deploy inspect student.onnx
    """
    with OnnxRuntimeBackend(model, threads=1) as backend:
        session = backend.session
        facts: dict[str, Any] = {
            "path": str(model),
            "size_bytes": backend.size_bytes,
            "inputs": {value.name: f"{value.type} {value.shape}" for value in session.get_inputs()},
            "outputs": {value.name: f"{value.type} {value.shape}" for value in session.get_outputs()},
            "operators": _operators(model),
            "metadata": backend.manifest.to_dict(),
        }
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    click.echo(f"{model}: {facts['size_bytes'] / 1e6:.1f} MB")
    for title in ("inputs", "outputs"):
        click.echo(title)
        for name, kind in facts[title].items():
            click.echo(f"  {name:<20} {kind}")
    operators = facts["operators"]
    if operators is None:
        click.echo("operators\n  not counted: `pip install onnx` to see them")
    else:
        counts = ", ".join(f"{count} {name}" for name, count in operators.items())
        click.echo(f"operators ({sum(operators.values())})\n  {counts}")
    click.echo("metadata")
    for name, value in _flat(facts["metadata"]):
        click.echo(f"  {name:<34} {value}")


def _operators(model: Path) -> dict[str, int] | None:
    """How often each operator stands in the graph; None without the onnx package."""
    try:
        onnx = importlib.import_module("onnx")
    except ImportError:
        return None
    graph = onnx.load(str(model), load_external_data=False).graph
    return dict(Counter(node.op_type for node in graph.node).most_common())


def _flat(data: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in data.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)))
    return rows
