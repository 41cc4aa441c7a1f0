"""What a command is told about the runtime gets there: threads, settings of ONNX Runtime, those of TensorRT."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import cv2
import onnx
import onnxruntime
import pytest
import torch

from cskd_deploy.backends.tensorrt import backend as tensorrt
from cskd_deploy.errors import DeployError
from cskd_deploy.measure import cold_start
from cskd_deploy.measure.environment import usable_cores

from .engines import MANIFEST, write_small_model
from .students import write_checkpoint
from .unusual import config_with

ONE_RUN = ("--duration", 0, "--iterations", 1, "--warmup", 0, "--no-cold")
OTHERS = {None: usable_cores(), 3: 3}  # `--threads`, and how many there are then


@pytest.fixture(autouse=True)
def short_turns(monkeypatch):
    monkeypatch.setattr("cskd_deploy.measure.bench.TURN_SECONDS", 0.001)
    before = cv2.getNumThreads()
    yield
    cv2.setNumThreads(before)


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    """Of a few hundred bytes, with one layer."""
    return write_small_model(tmp_path_factory.mktemp("graph") / "student.onnx")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory) -> Path:
    """A checkpoint with the classes of `graph`."""
    folder = tmp_path_factory.mktemp("narrow")
    config = config_with("RetinaNet", MANIFEST.classes, {})
    return write_checkpoint(folder / "best.pth", MANIFEST.classes, config)


@pytest.fixture(scope="module")
def data(shapes_root, tmp_path_factory) -> dict[str, Any]:
    """Words of the command lines below."""
    image = sorted((shapes_root / "images").iterdir())[0]
    images = tmp_path_factory.mktemp("one image")
    shutil.copy(image, images)
    return {"ann": shapes_root / "annotations" / "val.json", "all": shapes_root / "images", "one": images}


@pytest.fixture
def sessions(monkeypatch) -> list[Any]:
    """The options of every ONNX Runtime session that is opened."""
    opened: list[Any] = []
    real = onnxruntime.InferenceSession

    def session(*arguments: Any, sess_options: Any, **more: Any) -> Any:
        opened.append(sess_options)
        return real(*arguments, sess_options=sess_options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    return opened


@pytest.fixture
def cold_here(monkeypatch) -> None:
    """Cold starts take place in this process, after their way through JSON."""

    def run(command: list[str], **_: Any) -> Any:
        request = json.loads(command[-1])
        start = cold_start.run_cold(request)
        return subprocess.CompletedProcess(command, 0, json.dumps(vars(start)), "")

    monkeypatch.setattr(cold_start.subprocess, "run", run)


def filled(line: str, **named: Any) -> list[Any]:
    """The words of a command line; `{quick}` stands for several."""
    return [word for one in line.split() for word in (ONE_RUN if one == "{quick}" else [one.format(**named)])]


# Threads

IN_ONNX_RUNTIME = {
    "infer": "infer {graph} {one}",
    "bench": "bench {graph} --batch 1 {quick}",
    "two files in turns": "bench {graph} {copy} --images {one} {quick}",
    "eval": "eval {graph} --ann {ann} --images {all} --limit 1",
    "the reference of eval": "eval {graph} --ann {ann} --images {all} --limit 1 --reference {copy} --max-drop 100",
    "compare": "compare {graph} {copy} --images {one}",
    "the layers of compare": "compare {graph} {copy} --images {one} --layers",
    "a profile": "inspect {graph} --profile",
}
COUNTS = {"two files in turns": 2, "the reference of eval": 2, "compare": 2, "the layers of compare": 4}


@pytest.mark.parametrize("threads", OTHERS)
@pytest.mark.parametrize("what", IN_ONNX_RUNTIME)
def test_every_session_of_onnx_runtime_has_the_threads_of_the_command(
    what, threads, deploy, graph, data, sessions, tmp_path
):
    copy = shutil.copy(graph, tmp_path / "copy.onnx")
    line = filled(IN_ONNX_RUNTIME[what], graph=graph, copy=copy, **data)
    done = deploy(*line, *(() if threads is None else ("--threads", threads)))
    assert done.code == 0, done.err
    if what == "a profile":
        sessions = sessions[1:]  # the first one only says what is in the file
    assert [options.intra_op_num_threads for options in sessions] == [OTHERS[threads]] * COUNTS.get(what, 1)
    assert {options.inter_op_num_threads for options in sessions} == {1}


@pytest.mark.parametrize("threads", OTHERS)
@pytest.mark.parametrize(
    "line",
    [
        "infer {narrow} {one}",
        "bench {narrow} {quick}",
        "bench {graph} --reference {narrow} --images {one} --force {quick}",
        "eval {narrow} --ann {ann} --images {all} --limit 1",
        "eval {graph} --ann {ann} --images {all} --limit 1 --reference {narrow} --max-drop 100",
        "compare {narrow} {graph} --images {one}",
    ],
)
def test_pytorch_computes_with_the_threads_of_the_command_and_gives_them_back(
    line, threads, deploy, graph, narrow, data, monkeypatch
):
    taken: list[int] = []
    real, before = torch.set_num_threads, torch.get_num_threads()
    monkeypatch.setattr(torch, "set_num_threads", lambda count: (taken.append(count), real(count)))
    words = filled(line, graph=graph, narrow=narrow, **data)
    done = deploy(*words, *(() if threads is None else ("--threads", threads)))
    assert done.code == 0, done.err
    assert taken == [OTHERS[threads], before]
    assert torch.get_num_threads() == before


def test_opencv_prepares_images_with_the_threads_of_a_benchmark(deploy, graph, monkeypatch):
    taken: list[int] = []
    before = cv2.getNumThreads()
    monkeypatch.setattr(cv2, "setNumThreads", taken.append)
    facts = json.loads(deploy("bench", graph, *ONE_RUN, "--threads", 3, "--json").out)
    assert (taken, facts["environment"]["threads"]) == ([3, before], 3)


# Settings of ONNX Runtime


@pytest.mark.parametrize(
    ("settings", "level", "arena", "spinning"),
    [
        ((), "ORT_ENABLE_ALL", True, "1"),
        (("graph=none",), "ORT_DISABLE_ALL", True, "1"),
        (("graph=basic", "arena=on"), "ORT_ENABLE_BASIC", True, "1"),
        (("graph=extended", "spinning=on"), "ORT_ENABLE_EXTENDED", True, "1"),
        (("arena=off",), "ORT_ENABLE_ALL", False, "1"),
        (("spinning=off", "graph=all"), "ORT_ENABLE_ALL", True, "0"),
    ],
)
def test_settings_of_onnx_runtime_reach_the_session_and_that_of_the_cold_start(
    settings, level, arena, spinning, deploy, graph, sessions, cold_here
):
    given = [word for setting in settings for word in ("--ort", setting)]
    facts = json.loads(deploy("bench", graph, *ONE_RUN, "--cold", "--threads", 3, *given, "--json").out)
    assert facts["results"][0]["cold_start"]["load_ms"] > 0
    assert len(sessions) == 2
    for options in sessions:
        assert options.graph_optimization_level == getattr(onnxruntime.GraphOptimizationLevel, level)
        assert (options.enable_cpu_mem_arena, options.enable_mem_pattern) == (arena, arena)
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == spinning
        assert options.intra_op_num_threads == 3


def test_without_cold_there_is_no_cold_start(deploy, graph, sessions, cold_here):
    facts = json.loads(deploy("bench", graph, *ONE_RUN, "--json").out)
    assert facts["results"][0]["cold_start"] is None
    assert len(sessions) == 1


@pytest.mark.parametrize(
    "line",
    [
        "infer {model} {one}",
        "bench {model} {quick} --cold",
        "eval {model} --ann {ann} --images {all} --limit 1",
        "eval {graph} --ann {ann} --images {all} --limit 1 --reference {model} --max-drop 100",
        "inspect {model}",
        "inspect {model} --profile",
    ],
)
def test_weights_in_other_files_are_read_by_every_command_that_is_allowed_to(
    line, deploy, graph, data, tmp_path, cold_here
):
    model = tmp_path / "divided.onnx"
    onnx.save(onnx.load(str(graph)), str(model), save_as_external_data=True, location="weights.bin", size_threshold=0)
    words = filled(line, graph=graph, model=model, **data)
    refused = deploy(*words)
    assert refused.code == 2
    assert "--allow-external-data" in refused.err
    done = deploy(*words, "--allow-external-data")
    assert done.code == 0, done.err
    assert "cold start of" not in done.out  # as a note, that it failed


# TensorRT


ENGINE_LINES = [
    "infer {engine} {one}",
    "bench {engine} {quick}",
    "eval {engine} --ann {ann} --images {all}",
    "eval {graph} --ann {ann} --images {all} --limit 1 --reference {engine}",
]
ENGINE_OPTIONS = [
    ((), {}),
    (("--buffers", "pycuda"), {"buffers": "pycuda"}),
    (("--cuda-graph",), {"cuda_graph": True}),
    (("--trust-engine",), {"trust_engine": True}),
]


@pytest.mark.parametrize(
    ("line", "options", "expected"),
    [(line, *options) for line in ENGINE_LINES for options in ENGINE_OPTIONS],
)
def test_options_of_tensorrt_reach_the_engine(line, options, expected, deploy, graph, data, tmp_path, monkeypatch):
    opened: list[Any] = []

    def engine_backend(path: Path, **given: Any) -> Any:
        opened.append((path, given))
        raise DeployError("seen")

    monkeypatch.setattr(tensorrt, "TensorRTBackend", engine_backend)
    engine = tmp_path / "student.engine"
    assert "seen" in deploy(*filled(line, graph=graph, engine=engine, **data), *options).err
    assert opened == [(engine, {"buffers": None, "cuda_graph": False, "trust_engine": False, **expected})]
