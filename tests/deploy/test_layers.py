"""Which nodes of an exported graph are the network, what its layers are called, and a choice among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from cskd_deploy.errors import DeployError
from cskd_deploy.lower.layers import WEIGHTED, layers, matching, network

from .students import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_with_weights_has_the_name_of_its_module(family, exported):
    import torch

    from cskd_deploy.exporter.student import load_student

    model = load_student(exported(family).checkpoint).model
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    modules = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    found = layers(_graph(exported(family).model))
    weighted = [name for name, nodes in found.items() if nodes[0].op_type in WEIGHTED]
    # The exporter leaves out `roi_head`, through which nothing is called.
    assert sorted(weighted) == sorted(name.removeprefix("roi_head.") for name in modules)
    levels = {len(found[name]) for name in weighted if "cls" in name and "fc_cls" not in name}
    assert levels == {5}


@pytest.mark.parametrize("family", FAMILIES)
def test_normalisation_decoding_and_proposals_are_not_the_network(family, exported):
    graph = _graph(exported(family).model)
    inside = network(graph)
    assert {node.op_type for node in inside} <= {
        *("Conv", "Gemm", "Relu", "Add", "MaxPool", "Resize", "Flatten", "RoiAlign", "Concat"),
        *("Reshape", "InstanceNormalization", "Mul"),  # group normalisation
        *("Slice", "Expand"),  # maps of Faster R-CNN in the size of the largest
    }
    assert {node.op_type for node in graph.node} - {node.op_type for node in inside} >= {"Sigmoid", "TopK", "Exp"} - (
        set() if family in ("RetinaNet", "ATSS", "FasterRCNN") else {"Exp"}
    )
    assert any(node.op_type == "RoiAlign" for node in inside) == (family == "FasterRCNN")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_slow_in_onnx_runtime_is_left_out(family, exported):
    """A product with a vector, fifteen times as slow as with a matrix of one column; a choice among pixels."""
    graph = _graph(exported(family).model)
    sizes = {one.name: len(one.dims) for one in graph.initializer}
    assert not [node.name for node in graph.node if node.op_type == "MatMul" and 1 in map(sizes.get, node.input)]
    before_the_network = {name for node in graph.node if node.op_type == "Conv" for name in node.input}
    assert not [node.name for node in graph.node if node.op_type == "Where" and before_the_network & {*node.output}]


def test_layers_are_chosen_by_name_module_or_glob():
    names = [
        "neck.conv",
        "neck.Add",
        "bbox_head.cls_convs.0.conv",
        "bbox_head.cls_convs.1.conv",
        "bbox_head.retina_cls",
    ]
    assert matching(names, ["bbox_head.retina_cls"]) == names[4:]
    assert matching(names, ["bbox_head"]) == names[2:]
    assert matching(names, ["*.cls_convs"]) == names[2:4]
    assert matching(names, ["neck.Add", "bbox_head.*.1.conv"]) == [names[1], names[3]]
    assert matching(names, []) == []
    for wrong in ("bbox", "bbox_head.retina_reg", "neck.*.conv"):
        with pytest.raises(DeployError, match="is no layer of this model"):
            matching(names, [wrong])


def _graph(path: Path) -> Any:
    return onnx.load(str(path)).graph
