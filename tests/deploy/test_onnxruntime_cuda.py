"""ONNX Runtime on a GPU, with a double for it: tried before it is believed, its inputs and outputs bound, and what it
leaves to the processor named. Never run on a GPU."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from cskd_deploy.backends import onnxruntime_cuda as cuda
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.errors import BackendMissing, DeployError

from .engines import picture, write_graph, write_small_model
from .ort_double import CPU, CUDA, OnnxRuntimeDouble

ONE_RUN = ("--duration", 0, "--iterations", 1, "--warmup", 0, "--no-cold")


@pytest.fixture(autouse=True)
def short_turns(monkeypatch):
    for name in ("TURN_SECONDS", "GPU_TURN_SECONDS", "GPU_UNCOUNTED_SECONDS", "GPU_WARM_UP_SECONDS"):
        monkeypatch.setattr(f"cskd_deploy.measure.bench.{name}", 0.001)


@pytest.fixture
def install(monkeypatch):
    """Put a double where `onnxruntime` is imported from."""

    def put(**options: Any) -> OnnxRuntimeDouble:
        runtime = OnnxRuntimeDouble(**options)
        monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
        return runtime

    return put


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("graph") / "student.onnx")


@pytest.fixture
def image(tmp_path, shapes_root) -> Path:
    folder = tmp_path / "image"
    folder.mkdir()
    return Path(shutil.copy(sorted((shapes_root / "images").iterdir())[0], folder))


def test_the_file_that_is_tried_is_one_convolution():
    model = onnx.load_from_string(cuda.CONVOLUTION)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Conv"]
    session = onnxruntime.InferenceSession(cuda.CONVOLUTION, providers=[CPU])
    two, three = (np.full((1, 1, 1, 1), value, dtype=np.float32) for value in (2, 3))
    assert session.run(None, {"x": two, "w": three})[0].tolist() == [[[[6.0]]]]


def test_a_double_of_cuda_is_taken_where_it_computes_and_the_file_gives_what_it_gives_on_the_processor(
    deploy, graph, image, install
):
    plain = json.loads(deploy("infer", graph, image, "--json", "-").out)
    runtime = install()
    found = json.loads(deploy("infer", graph, image, "--json", "-").out)
    assert (plain.pop("device"), found.pop("device")) == ("cpu", "cuda")
    assert found == plain
    assert found["images"][0]["detections"]
    # A convolution was tried, then the file was opened; each after the libraries were loaded.
    assert runtime.calls[:6] == 2 * ["preload", "session", "no fallback"]
    assert runtime.severity == 2
    for providers in runtime.providers:
        (name, options), rest = providers
        assert (name, rest) == (CUDA, CPU)
        assert options == {"device_id": "0", "cudnn_conv_algo_search": "HEURISTIC"}


def test_the_processor_can_be_asked_for_and_then_no_gpu_is_touched(deploy, graph, image, install):
    runtime = install()
    assert json.loads(deploy("infer", graph, image, "--device", "cpu", "--json", "-").out)["device"] == "cpu"
    assert runtime.calls == []


def test_cuda_that_is_asked_for_is_not_tried_first(deploy, graph, image, install):
    runtime = install(preloads=False)  # as ONNX Runtime before 1.21
    assert deploy("infer", graph, image, "--device", "cuda", "--json", "-").code == 0
    assert runtime.calls[:2] == ["session", "no fallback"]


@pytest.mark.parametrize("reason", ["driver", "library"])
def test_a_double_without_its_libraries_falls_back_with_one_line_or_is_refused_where_it_was_asked_for(
    reason, deploy, graph, image, install, monkeypatch
):
    if reason == "library":
        monkeypatch.setattr(cuda, "find_driver", lambda: None)
        monkeypatch.setattr(cuda.ctypes, "CDLL", raising(OSError("libcublasLt.so.13: cannot open shared object file")))
        expected = "libcublasLt.so.13: cannot open"
    else:
        monkeypatch.setattr(cuda, "find_driver", raising(BackendMissing("there is no NVIDIA driver (x.so.1). Get one")))
        expected = "(there is no NVIDIA driver (x.so.1))"
    install(working=False)
    done = deploy("infer", graph, image, "--json", "-")
    assert done.code == 0
    assert json.loads(done.out)["device"] == "cpu"  # nothing else is printed
    (line,) = [line for line in done.err.splitlines() if line.startswith("note: ")]
    assert "ONNX files run on the CPU: " in line
    for text in (expected, "onnxruntime-gpu[cuda,cudnn]"):
        assert text in line
    facts = json.loads(deploy("bench", graph, shutil.copy(graph, image), *ONE_RUN, "--json").out)
    assert [one["device"] for one in facts["results"]] == ["cpu", "cpu"]
    assert sum("run on the CPU" in note for note in facts["notes"]) == 1
    refused = deploy("infer", graph, image, "--device", "cuda")
    assert refused.code == 3
    for text in (expected, "onnxruntime-gpu[cuda,cudnn]"):
        assert text in refused.err


def raising(error: Exception) -> Any:
    def fail(*_: Any) -> Any:
        raise error

    return fail


def test_an_exception_that_onnx_runtime_caught_is_the_reason(monkeypatch):
    monkeypatch.setattr(cuda, "find_driver", lambda: None)
    runtime = OnnxRuntimeDouble(working=False)
    runtime.preload_dlls = lambda: print("EP Error CUDA failure 35: driver too old when using CUDA\nFalling back")
    assert "(CUDA failure 35: driver too old when using CUDA)" in str(cuda.fault(runtime))


def test_a_gpu_that_fails_when_it_computes_is_not_taken(graph, install, monkeypatch):
    runtime = install()
    real = runtime.InferenceSession

    def failing(model: Any, **options: Any) -> Any:
        session = real(model, **options)
        if model == cuda.CONVOLUTION:
            session.run = raising(RuntimeError("CUDNN_STATUS_NOT_INITIALIZED\nat 0x1"))
        return session

    runtime.InferenceSession = failing
    with OnnxRuntimeBackend(graph, device=None) as backend:
        assert backend.device == "cpu"
        assert "cannot compute on CUDA (CUDNN_STATUS_NOT_INITIALIZED). " in backend.notes[0]
    with OnnxRuntimeBackend(graph, device="cuda") as backend:
        monkeypatch.setattr(backend._bound, "_copied", raising(RuntimeError("out of memory\nat 0x1")))
        with pytest.raises(DeployError, match=r"student.onnx failed in ONNX Runtime: out of memory$"):
            backend.infer(picture())


@pytest.mark.parametrize(
    ("left", "line"),
    [
        ((), None),
        (("Conv",), "1 of 7 nodes run on the CPU: Conv"),
        (("TopK", "Mod"), "3 of 7 nodes run on the CPU: Mod, TopK x 2"),
    ],
)
def test_nodes_that_a_double_leaves_to_the_processor_are_named(left, line, deploy, graph, image, install):
    install(left=left)
    expected = [] if line is None else [f"{graph}: {line}"]
    notes = json.loads(deploy("bench", graph, *ONE_RUN, "--json").out)["notes"]
    assert [note for note in notes if "nodes" in note] == expected
    printed = deploy("infer", graph, image).err.splitlines()
    assert [note for note in printed if "nodes" in note] == [f"note: {note}" for note in expected]
    notes = json.loads(deploy("compare", graph, graph, "--images", image.parent, "--json").out)["notes"]
    assert notes == expected


def test_a_version_that_does_not_say_where_nodes_run_is_not_taken_for_one_that_leaves_none(graph, install):
    install(tells=False)
    with OnnxRuntimeBackend(graph, device="cuda") as backend:
        assert backend.notes == (f"{graph}: this version of ONNX Runtime does not tell which nodes it runs on the CPU",)


def test_a_bound_run_of_a_double_takes_every_size_waits_for_each_copy_and_times_it(tmp_path):
    path = str(write_graph(tmp_path / "dynamic.onnx", dynamic=True))
    runtime = OnnxRuntimeDouble()
    session = cuda.open_session(runtime, path, runtime.SessionOptions())
    run = cuda.BoundRun(runtime, session, "cuda", ["image"], ["labels", "boxes"])
    runtime.calls.clear()
    plain = onnxruntime.InferenceSession(path, providers=[CPU])
    for seed, shape in enumerate([(1, 3, 32, 64), (1, 3, 32, 64), (2, 3, 64, 32), (1, 3, 32, 64)]):
        feed = picture(shape, seed)
        if seed == 1:  # not in the order of memory
            feed = {"image": np.asfortranarray(feed["image"])}
        found = run(feed)
        labels, boxes = plain.run(["labels", "boxes"], feed)
        np.testing.assert_array_equal(found["labels"], labels)
        np.testing.assert_array_equal(found["boxes"], boxes)
        assert list(run.milliseconds) == ["h2d", "compute", "d2h"]
    after = ["inputs are there", "run", "outputs are there", "copy back"]
    small, large = "(1, 3, 32, 64)", "(2, 3, 64, 32)"
    begins = [f"new {small}", f"again {small}", f"new {large}", f"new {small}"]
    assert runtime.calls == [call for begin in begins for call in (begin, *after)]


def test_the_copies_of_a_double_are_shown_beside_its_inference(deploy, graph, install):
    install()
    (result,) = json.loads(deploy("bench", graph, *ONE_RUN, "--json").out)["results"]
    times = result["milliseconds"]
    parts = [times[stage]["mean"] for stage in ("h2d", "compute", "d2h")]
    assert min(parts) > 0
    assert sum(parts) <= times["inference"]["mean"]
    assert "h2d" in deploy("bench", graph, *ONE_RUN).out


def test_onnx_runtimes_own_bindings_give_on_the_processor_what_a_plain_run_gives(tmp_path):
    """No double: the calls exist by name, and outputs of any size are bound; only the device is another."""
    path = str(write_graph(tmp_path / "dynamic.onnx", dynamic=True))
    session = onnxruntime.InferenceSession(path, providers=[CPU])
    run = cuda.BoundRun(onnxruntime, session, "cpu", ["image"], ["labels", "scores"])
    for seed, shape in enumerate([(1, 3, 32, 64), (1, 3, 32, 64), (2, 3, 64, 32), (1, 3, 32, 64)]):
        feed = picture(shape, seed)
        labels, scores = session.run(["labels", "scores"], feed)
        found = run(feed)
        np.testing.assert_array_equal(found["labels"], labels)
        np.testing.assert_array_equal(found["scores"], scores)
    for name in ("disable_fallback", "get_provider_graph_assignment_info"):
        assert callable(getattr(session, name))
    assert callable(onnxruntime.preload_dlls)
    assert callable(onnxruntime.set_default_logger_severity)
