"""What a file is, without any package but ONNX Runtime, and its layers by time."""

from __future__ import annotations

import json

import pytest

from cskd_deploy.errors import DeployError
from cskd_deploy.measure.layer_times import timed_layers


def test_a_profile_is_summed_up_without_the_first_run():
    def event(name, microseconds):
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": {"op_name": "Conv"}}

    events = [event("a", 9000), event("b", 9000), event("a", 300), event("b", 100), event("a", 500), event("b", 300)]
    first, second = timed_layers([*events, {"cat": "Session", "name": "model_run", "dur": 5}])
    assert (first.name, first.operator, first.milliseconds) == ("a", "Conv", pytest.approx(0.4))
    assert (second.name, second.milliseconds, second.share) == ("b", pytest.approx(0.2), pytest.approx(1 / 3))
    with pytest.raises(DeployError, match="names no node"):
        timed_layers([])


def test_a_profile_lists_the_slowest_layers_of_this_machine(deploy, model_file):
    facts = json.loads(deploy("inspect", model_file, "--profile", "--top", 1000, "--threads", 1, "--json").out)
    assert sum(layer["share"] for layer in facts["layers"]) == pytest.approx(1)
    times = [layer["milliseconds"] for layer in facts["layers"]]
    assert times == sorted(times, reverse=True)
    assert sum("Conv" in layer["operator"] for layer in facts["layers"]) > 40
    text = deploy("inspect", model_file, "--profile", "--top", 3).out
    assert "slowest layers" in text
    assert "layers" not in json.loads(deploy("inspect", model_file, "--json").out)
    assert "give --profile" in deploy("inspect", model_file, "--top", 3).err
    assert text.count(" ms ") == 3


def test_characters_that_a_terminal_obeys_are_not_printed(deploy, model_file, tmp_path):
    import onnx

    model = onnx.load(str(model_file))
    entry = model.metadata_props[0]
    manifest = json.loads(entry.value)
    entry.value = json.dumps({**manifest, "checkpoint": "\x1b[2Jbest.pth"})
    onnx.save(model, str(tmp_path / "odd.onnx"))
    done = deploy("inspect", tmp_path / "odd.onnx")
    assert done.code == 0
    assert "?[2Jbest.pth" in done.out
    assert "\x1b" not in done.out
    entry.value = json.dumps({**manifest, "classes": ["\x1b[31mred", *manifest["classes"][1:]]})
    onnx.save(model, str(tmp_path / "odd.onnx"))
    refused = deploy("inspect", tmp_path / "odd.onnx")
    assert refused.code == 2
    assert "the class name '\\x1b[31mred'" in refused.err
    assert "\x1b" not in refused.err


def test_an_engine_is_shown_by_its_manifest_alone(deploy, tmp_path):
    engine = tmp_path / "student.engine"
    engine.write_bytes(b"an engine")
    done = deploy("inspect", engine)
    assert done.code == 2
    assert "has no manifest beside it" in done.err
