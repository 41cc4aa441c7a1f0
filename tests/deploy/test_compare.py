"""`compare` finds where two models differ, image by image and layer by layer."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from .students import GRAPHS


@pytest.fixture(scope="module")
def spoilt(model_file, tmp_path_factory):
    """The model with one layer's weights 5 % larger."""
    model = onnx.load(str(model_file))
    node = next(node for node in model.graph.node if node.op_type == "Conv" and "layer4" in node.name)
    weights = next(value for value in model.graph.initializer if value.name == node.input[1])
    weights.raw_data = (np.frombuffer(weights.raw_data, np.float32) * 1.05).astype(np.float32).tobytes()
    path = tmp_path_factory.mktemp("spoilt") / "spoilt.onnx"
    onnx.save(model, str(path))
    return path, node.output[0]


@pytest.mark.parametrize("family", GRAPHS)
def test_a_checkpoint_and_its_file_find_the_same(deploy, family, exported, shapes_root):
    checkpoint, model = exported(family)
    arguments = ("--images", shapes_root / "images", "--limit", 3, "--tolerance", 1e-3, "--json")
    done = deploy("compare", checkpoint, model, *arguments)
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["share_matched"] == 1
    assert result["detections"] > 100
    assert 0 < result["largest_score_difference"] < 1e-4
    assert len(result["images"]) == 3
    assert result["layers"] is None
    assert result["notes"] == []


def test_a_difference_beyond_the_tolerance_is_exit_code_1_and_its_layer_is_named(
    deploy, model_file, spoilt, shapes_root
):
    path, layer = spoilt
    arguments = ("--images", shapes_root / "images", "--limit", 2, "--layers", "--tolerance", 1e-3)
    done = deploy("compare", model_file, path, *arguments, "--json")
    assert done.code == 1
    assert "detections have no partner" in done.err
    result = json.loads(done.out)
    assert result["share_matched"] < 1
    layers = {one["name"]: one for one in result["layers"]}
    names = list(layers)
    assert len(names) > 50
    first = next(name for name in names if layers[name]["largest"] > 1e-4)
    assert first == layer
    mean = layers[layer]["mean"]
    assert 0 < mean < layers[layer]["largest"]
    assert min(one["cosine"] for one in result["layers"]) < 1 - 1e-6

    text = deploy("compare", model_file, path, *arguments).out
    assert "largest differences by image" in text
    assert f"largest differences by layer, {len(names)} compared" in text


def test_layers_of_a_half_precision_file_are_compared_and_those_after_the_choice_of_proposals_are_not(
    deploy, exported, shapes_root, tmp_path
):
    model, half = exported("FasterRCNN").model, tmp_path / "half.onnx"
    assert deploy("export", "--onnx", model, "--precision", "fp16", "--output", half).code == 0
    arguments = ("--images", shapes_root / "images", "--limit", 1, "--layers", "--json")
    layers = json.loads(deploy("compare", model, half, *arguments).out)["layers"]
    assert len(layers) > 30
    assert any("rpn_head" in one["name"] for one in layers)
    assert not any("shared_fcs" in one["name"] for one in layers)
    assert all(0 < one["largest"] < 0.1 and one["cosine"] > 0.9999 for one in layers)


def test_a_file_differs_in_nothing_from_itself(deploy, model_file, shapes_root):
    arguments = ("--images", shapes_root / "images", "--limit", 2, "--layers", "--tolerance", 0, "--json")
    done = deploy("compare", model_file, model_file, *arguments)
    assert done.code == 0
    result = json.loads(done.out)
    assert {one["largest"] for one in result["layers"]} == {0}
    assert min(one["cosine"] for one in result["layers"]) == pytest.approx(1)


def test_layers_of_a_checkpoint_and_models_of_other_classes_are_refused(
    deploy, checkpoint, model_file, shapes_root, tmp_path
):
    images = shapes_root / "images"
    done = deploy("compare", checkpoint, model_file, "--images", images, "--layers")
    assert done.code == 2
    assert "export the checkpoint" in done.err
    other = tmp_path / "other.onnx"
    content = onnx.load(str(model_file))
    manifest = json.loads(content.metadata_props[0].value)
    content.metadata_props[0].value = json.dumps({**manifest, "classes": ["cat", "dog"]})
    onnx.save(content, str(other))
    done = deploy("compare", model_file, other, "--images", images)
    assert done.code == 2
    assert "cat, dog" in done.err


def test_layers_without_onnx_are_exit_code_3_and_images_are_compared_without_it(edge_deploy, model_file, shapes_root):
    arguments = ("compare", model_file, model_file, "--images", shapes_root / "images", "--limit", 1)
    assert edge_deploy(*arguments).code == 0
    done = edge_deploy(*arguments, "--layers")
    assert done.code == 3
    assert "pip install onnx" in done.err
