"""The settings of ONNX Runtime that change speed and memory, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cskd_deploy.arguments import several
from cskd_deploy.errors import DeployError

GRAPH_LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
SWITCHES = ("arena", "spinning")


@dataclass(frozen=True)
class OrtSettings:
    """How an ONNX Runtime session works; the defaults are ONNX Runtime's own."""

    graph: str = "all"  # optimisations of the graph: one of `GRAPH_LEVELS`
    arena: bool = True  # memory is kept between runs, in one arena, and reused by a plan made in the first run
    spinning: bool = True  # waiting threads spin: faster alone, slower beside other work

    def apply(self, runtime: Any, options: Any) -> None:
        """Put the settings into an `onnxruntime.SessionOptions`."""
        options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, GRAPH_LEVELS[self.graph])
        options.enable_cpu_mem_arena = self.arena
        options.enable_mem_pattern = self.arena
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if self.spinning else "0")

    def __str__(self) -> str:
        named = {"graph": self.graph, **{name: "on" if getattr(self, name) else "off" for name in SWITCHES}}
        return " ".join(f"{name}={value}" for name, value in named.items())


def parse_settings(texts: Sequence[str]) -> OrtSettings:
    """Settings from texts like `graph=extended` and `arena=off`.

    Raises:
        DeployError: an unknown name or value.
    """
    chosen: dict[str, Any] = {}
    for text in several(texts):
        name, _, value = str(text).partition("=")
        if name == "graph" and value in GRAPH_LEVELS:
            chosen[name] = value
        elif name in SWITCHES and value in ("on", "off"):
            chosen[name] = value == "on"
        else:
            known = [f"graph={'|'.join(GRAPH_LEVELS)}", *(f"{switch}=on|off" for switch in SWITCHES)]
            raise DeployError(f"--ort {text!r} is no setting, expected one of {', '.join(known)}")
    return OrtSettings(**chosen)
