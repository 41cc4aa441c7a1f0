"""Files come from elsewhere: weights in other files, huge metadata and damaged bytes are refused before a runtime."""

from __future__ import annotations

import json
import os
import random

import onnx
import pytest

from cskd_deploy.errors import DeployError
from cskd_deploy.model import onnx_file as rules
from cskd_deploy.model.onnx_file import check_model_file, operators_of


@pytest.fixture
def divided(model_file, tmp_path):
    """The model with its weights in `weights.bin` beside it."""
    path = tmp_path / "models" / "student.onnx"
    path.parent.mkdir()
    model = onnx.load(str(model_file))
    onnx.save(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=1000)
    return path


def relocate(path, location):
    """Write the model anew with another name for its weights."""
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str(location)
    path.write_bytes(model.SerializeToString())


def test_weights_in_other_files_are_refused_unless_allowed(deploy, divided, model_file, shapes_root):
    for command in ("bench", "inspect", "infer"):
        more = [shapes_root / "images"] if command == "infer" else []
        done = deploy(command, divided, *more)
        assert done.code == 2
        assert "keeps weights in other files ('weights.bin')" in done.err
        assert "--allow-external-data" in done.err
    image = sorted((shapes_root / "images").iterdir())[0]
    arguments = (image, "--json", "-", "--allow-external-data")
    found = [json.loads(deploy("infer", path, *arguments).out)["images"] for path in (divided, model_file)]
    assert found[0] == found[1]
    facts = json.loads(deploy("inspect", divided, "--allow-external-data", "--json").out)
    assert facts["size_bytes"] == divided.stat().st_size + (divided.parent / "weights.bin").stat().st_size


@pytest.mark.parametrize("location", ["../weights.bin", "a/../../weights.bin", "absolute", "", "we\\ights.bin", "a\nb"])
def test_weights_outside_the_folder_of_the_model_are_refused_even_when_allowed(deploy, divided, location):
    outside = divided.parent.parent / "weights.bin"
    (divided.parent / "weights.bin").rename(outside)
    relocate(divided, outside if location == "absolute" else location)
    done = deploy("inspect", divided, "--allow-external-data")
    assert done.code == 2
    assert "do not lie below its own folder" in done.err


def test_weights_behind_a_link_out_of_the_folder_are_refused_and_inside_it_taken(divided):
    weights = divided.parent / "weights.bin"
    (divided.parent / "parts").mkdir()
    weights.rename(divided.parent / "parts" / "all.bin")
    os.symlink("parts/all.bin", weights)
    assert check_model_file(divided, allow_external_data=True) > 11e6
    weights.unlink()
    (divided.parent / "parts" / "all.bin").rename(divided.parent.parent / "all.bin")
    os.symlink("../all.bin", weights)
    with pytest.raises(DeployError, match="do not lie below its own folder"):
        check_model_file(divided, allow_external_data=True)
    weights.unlink()
    with pytest.raises(DeployError, match=r"'weights\.bin', which is not in"):
        check_model_file(divided, allow_external_data=True)


def test_weights_of_a_nested_graph_and_of_a_function_are_found(tmp_path):
    from onnx import TensorProto, helper

    hidden = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    hidden.ClearField("float_data")
    hidden.data_location = TensorProto.EXTERNAL
    hidden.external_data.add(key="location", value="/etc/passwd")
    branch = helper.make_graph([helper.make_node("Constant", [], ["y"], value=hidden)], "branch", [], [])
    nested = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    sparse = helper.make_sparse_tensor(hidden, helper.make_tensor("i", TensorProto.INT64, [1], [0]), [4])
    function = helper.make_function(
        "own", "f", [], ["y"], [helper.make_node("Constant", [], ["y"], value=hidden)], [helper.make_opsetid("", 17)]
    )
    for place, (nodes, functions, sparses) in enumerate([([nested], [], []), ([], [function], []), ([], [], [sparse])]):
        graph = helper.make_graph(nodes, "g", [], [], sparse_initializer=sparses)
        path = tmp_path / f"{place}.onnx"
        path.write_bytes(helper.make_model(graph, functions=functions).SerializeToString())
        with pytest.raises(DeployError, match="'/etc/passwd'"):
            check_model_file(path)
        with pytest.raises(DeployError, match="do not lie below"):
            check_model_file(path, allow_external_data=True)


def test_files_and_metadata_beyond_any_models_size_are_refused(deploy, model_file, monkeypatch, tmp_path):
    huge = tmp_path / "huge.onnx"
    with huge.open("wb") as file:
        file.truncate((1 << 31) + 1)  # a hole: it takes no room
    done = deploy("inspect", huge)
    assert done.code == 2
    assert "more than the 2 GiB" in done.err
    monkeypatch.setattr(rules, "MOST_METADATA", 100)
    done = deploy("inspect", model_file)
    assert done.code == 2
    assert "more than the 100 allowed" in done.err


def test_sizes_in_the_metadata_that_no_memory_holds_are_refused(deploy, model_file, tmp_path):
    model = onnx.load(str(model_file))
    entry = model.metadata_props[0]
    manifest = json.loads(entry.value)
    manifest["preprocessing"]["scale"] = [1 << 30, 1 << 30]
    entry.value = json.dumps(manifest)
    onnx.save(model, str(tmp_path / "huge.onnx"))
    done = deploy("inspect", tmp_path / "huge.onnx")
    assert done.code == 2
    assert "at most 16384 pixels a side" in done.err


def test_damaged_files_are_errors_of_one_message_wherever_the_damage_is(model_file, tmp_path):
    """Cut anywhere, or with bytes changed in its structure: refused, or read as it stands, never a crash."""
    content = model_file.read_bytes()
    generator = random.Random(0)
    path = tmp_path / "damaged.onnx"
    for _ in range(40):
        damaged = bytearray(content[: generator.randrange(1, len(content))])
        for _ in range(generator.randrange(3)):
            damaged[generator.randrange(min(len(damaged), 4000))] = generator.randrange(256)
        path.write_bytes(damaged)
        with pytest.raises(DeployError, match=r"damaged.onnx .*(cannot be loaded as an ONNX model|keeps weights)"):
            check_model_file(path)
    path.write_bytes(bytes(generator.randrange(256) for _ in range(5000)))
    with pytest.raises(DeployError, match="cannot be loaded"):
        check_model_file(path)


def test_operators_are_those_that_the_onnx_package_counts(model_file):
    names = [node.op_type for node in onnx.load(str(model_file)).graph.node]
    found = operators_of(model_file.read_bytes())
    assert found == {name: names.count(name) for name in names}
    assert list(found.values()) == sorted(found.values(), reverse=True)
