"""The layers of an exported graph: which nodes are the network, what they are called, and a choice by name.

Lower precision is for the network alone. What stands around it, normalisation before the first convolution and decoding
after the last, holds coordinates and indices, which need all of float32.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

from cskd_deploy.errors import DeployError

WEIGHTED = ("Conv", "Gemm")
# Operators that pick values by index, or look at shapes: what they give is no feature map any more.
_NO_MAP = ("TopK", "Gather", "GatherElements", "GatherND", "NonMaxSuppression", "Shape")
# Operators whose further inputs are weights, shapes or boxes.
_ONE_MAP = (*WEIGHTED, "RoiAlign", "Resize", "Reshape", "Clip")


def network(graph: Any) -> list[Any]:
    """The nodes of an `onnx.GraphProto` from the first layer with weights to the last, in the graph's order.

    A node is one of them if features flow to it from a layer with weights, and on from it to another. So the proposals
    of a two-stage detector, which come from a convolution and steer the pooling before the next layer, are not.
    """
    reached: set[str] = set()
    after = []
    for node in graph.node:  # in topological order
        if node.op_type in WEIGHTED or (node.op_type not in _NO_MAP and reached.intersection(_maps(node))):
            after.append(node)
            reached.update(node.output)
    wanted: set[str] = set()
    nodes = []
    for node in reversed(after):
        if node.op_type in WEIGHTED or wanted.intersection(node.output):
            nodes.append(node)
            wanted.update(_maps(node))
    return nodes[::-1]


def layers(graph: Any) -> dict[str, list[Any]]:
    """The nodes of the network by layer, in the graph's order.

    A layer with weights has its name in the student, `bbox_head.cls_convs.0.conv`; the nodes that apply the same
    weights to other pyramid levels belong to it. Any other node is a layer of its own: its module's name and its
    operator, `neck.Add_1`.
    """
    weights: dict[str, list[Any]] = {}
    grouped: list[tuple[str, list[Any]]] = []
    for node in network(graph):
        if node.op_type not in WEIGHTED:
            grouped.append((_path(node.name), [node]))
        elif node.input[1] in weights:
            weights[node.input[1]].append(node)
        else:
            weights[node.input[1]] = [node]
            grouped.append(("", weights[node.input[1]]))
    found: dict[str, list[Any]] = {}
    for name, nodes in grouped:
        # Of conv, conv_1, ... (one a level, in any order) the first one is the module's own name.
        name = name or _path(min((node.name for node in nodes), key=len)).removesuffix(f".{nodes[0].op_type}")
        found.setdefault(name, []).extend(nodes)
    return found


def matching(names: Sequence[str], patterns: Iterable[str]) -> list[str]:
    """Those of `names` that a pattern means: the name itself, a module above it, or a glob (`bbox_head.*_convs`).

    Raises:
        DeployError: a pattern means none of them.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        found = [
            name for name in names if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*")
        ]
        if not found:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
            raise DeployError(
                f"--keep-float {pattern} is no layer of this model. Expected a layer, a module that holds layers or a "
                f"glob: {', '.join(near)}, ..."
            )
        chosen.update(found)
    return [name for name in names if name in chosen]


def _maps(node: Any) -> Sequence[str]:
    """The inputs of a node that may be feature maps."""
    inputs: Sequence[str] = node.input
    return inputs[:1] if node.op_type in _ONE_MAP else inputs


def _path(name: str) -> str:
    """`/backbone/layer1/layer1.0/conv1/Conv`, as torch names a node, as `backbone.layer1.0.conv1.Conv`."""
    parts: list[str] = []
    for part in name.strip("/").split("/"):
        if parts and part.startswith(f"{parts[-1]}."):  # an item of a Sequential names the Sequential again
            parts.pop()
        parts.append(part)
    return ".".join(parts)
