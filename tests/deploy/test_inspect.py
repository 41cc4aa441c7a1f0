"""What a file is: its operators without any package, its layers by multiplications or by time."""

from __future__ import annotations

import json

import pytest

from cskd_deploy.errors import DeployError
from cskd_deploy.measure.layer_time import count_layers, timed_layers


def test_multiplications_of_the_layers_are_those_that_pytorch_counts(deploy, exported):
    from torch.utils.flop_counter import FlopCounterMode

    from cskd_deploy.backends.torch import TorchBackend
    from cskd_deploy.detect.detector import Detector
    from cskd_deploy.measure.bench import random_images

    for family in ("RetinaNet", "FasterRCNN"):
        facts = json.loads(deploy("inspect", exported(family).model, "--json").out)
        with TorchBackend(exported(family).checkpoint) as backend, FlopCounterMode(display=False) as counter:
            Detector(backend).detect(random_images((128, 128), count=1)[0])
        counted = counter.get_flop_counts()["Global"]
        convolutions = sum(count for operator, count in counted.items() if "bmm" not in str(operator)) // 2
        assert facts["macs"] == pytest.approx(convolutions, rel=0.02)
        costs = [layer["macs"] for layer in facts["layers"]]
        assert costs == sorted(costs, reverse=True)
        assert len(costs) == 10


def test_a_layer_says_its_weights_and_its_output():
    from numpy import float32, zeros
    from onnx import TensorProto, helper, numpy_helper

    def value(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["y"], name="conv", group=2, pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["y"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "v"], ["z"], name="fc", transB=1),
    ]
    shapes = {"w": (8, 2, 3, 3), "b": (8,), "v": (5, 8)}
    weights = [numpy_helper.from_array(zeros(shape, float32), name) for name, shape in shapes.items()]
    graph = helper.make_graph(nodes, "g", [value("image", ["n", 4, "h", "w"])], [value("z", ["n", 5])], weights)
    conv, fc = count_layers(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), (16, 32))
    assert (conv.name, conv.output, conv.macs, conv.parameters) == ("conv", "1 x 8 x 8 x 16", 8 * 8 * 16 * 2 * 9, 152)
    assert (fc.name, fc.operator, fc.macs, fc.parameters) == ("fc", "Gemm", 40, 40)


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
