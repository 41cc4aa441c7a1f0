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
HALF = "_fp16"  # after the name of a tensor in an FP16 file
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


def class_logits(graph: Any) -> dict[str, list[str]]:
    """The tensors of class logits, one a pyramid level, by the layer that gives them, of an FP32 graph.

    mmdet calls such a layer so in every head: `bbox_head.retina_cls`, of Faster R-CNN `rpn_head.rpn_cls` and, for the
    proposals, `bbox_head.fc_cls`.
    """
    found = {}
    for name, nodes in layers(graph).items():
        if name.endswith("_cls") and nodes[0].op_type in WEIGHTED:
            by_level = sorted(nodes, key=lambda node: (len(node.name), node.name))  # Conv, Conv_1, ...
            found[name] = [node.output[0] for node in by_level]
    return found


def as_seen(graph: Any) -> dict[str, str]:
    """What further nodes see of a tensor, by its name in the FP32 file: it, its FP16 form or what quantisation leaves.

    An activation that quantisation merged into a layer happens on the way.
    """
    quantised = {node.input[0]: node.output[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    restored = {node.input[0]: node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    found: dict[str, str] = {}
    for node in graph.node:
        for name in node.output:
            found.setdefault(name.removesuffix(HALF), restored.get(quantised.get(name, ""), name))
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
