"""The order of calls in which an engine runs, against doubles of TensorRT 10 and 11 and of a GPU."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest

from cskd_deploy.backends.base import INPUT
from cskd_deploy.backends.tensorrt import session as engine_session
from cskd_deploy.backends.tensorrt.driver import CudaGraph
from cskd_deploy.backends.tensorrt.memory import Block
from cskd_deploy.backends.tensorrt.session import load_engine
from cskd_deploy.backends.tensorrt.settings import BuildSettings
from cskd_deploy.backends.tensorrt.shapes import ProfileShapes
from cskd_deploy.errors import DeployError

from .engines import CANDIDATES, VERSIONS, Feed, assert_same, build, picture, session, write_graph
from .gpu_double import STREAM, BuffersDouble, DriverDouble, GpuDouble
from .tensorrt_double import make_tensorrt


class Running:
    """An engine of a double in a session."""

    def __init__(self, trt: Any, model: Path, settings: BuildSettings | None = None, cuda_graph: bool = False) -> None:
        self.trt, self.gpu = trt, trt.gpu
        self.session = session(load_engine(trt, build(trt, model, settings).engine), self.gpu, cuda_graph)

    def run(self, feed: Feed) -> Feed:
        self.trt.calls.clear()
        self.gpu.calls.clear()
        return self.session.run(feed)


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    """A small graph of the interface of an exported student."""
    return write_graph(tmp_path_factory.mktemp("graph") / "student.onnx")


@pytest.fixture(scope="module")
def dynamic_graph(tmp_path_factory) -> Path:
    return write_graph(tmp_path_factory.mktemp("graph") / "dynamic.onnx", dynamic=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_shapes_and_addresses_are_set_once_and_each_run_is_copy_compute_copy(version, graph):
    running = Running(make_tensorrt(version), graph)
    feed = picture()
    assert_same(running.run(feed), graph, feed)
    assert running.trt.calls == [
        ("set_input_shape", INPUT, (1, 3, 64, 96)),
        ("set_tensor_address", INPUT),
        ("infer_shapes",),
        ("set_tensor_address", "boxes"),
        ("set_tensor_address", "scores"),
        ("set_tensor_address", "labels"),
        ("execute_async_v3",),
    ]
    run = ["mark", "copy in", "mark", "execute", "mark", "copy out", "copy out", "copy out", "mark", "synchronize"]
    assert running.gpu.calls[4:] == run
    assert all(call.startswith("allocate") for call in running.gpu.calls[:4])
    assert running.session.milliseconds == {"h2d": 2.0, "compute": 3.0, "d2h": 4.0}

    other = picture(seed=1)
    first = running.run(feed)
    assert_same(running.run(other), graph, other)
    assert running.trt.calls == [("execute_async_v3",)]
    assert running.gpu.calls == run
    assert_same(first, graph, feed)  # results are not overwritten by the next run


@pytest.mark.parametrize("version", VERSIONS)
def test_new_shapes_are_told_and_memory_grows_only_when_it_must(version, dynamic_graph):
    path = dynamic_graph
    running = Running(
        make_tensorrt(version), path, BuildSettings(profiles=(ProfileShapes(max={INPUT: (4, 3, 128, 128)}),))
    )
    for shape, allocations in (
        ((1, 3, 64, 96), 4),
        ((1, 3, 32, 32), 0),
        ((4, 3, 128, 128), 4),
        ((2, 3, 64, 96), 0),
    ):
        feed = picture(shape)
        found = running.run(feed)
        assert_same(found, path, feed)
        assert found["boxes"].shape == (shape[0], CANDIDATES, 4)
        assert running.trt.calls.of("set_input_shape") == [(INPUT, shape)]
        assert sum(call.startswith("allocate") for call in running.gpu.calls) == allocations
    with pytest.raises(
        DeployError, match=r"image has shape 5x3x64x96, the engine takes min 1x3x32x32, opt .*maxShapes"
    ):
        running.run(picture((5, 3, 64, 96)))
    assert_same(running.run(feed), path, feed)
    running.session.close()
    assert not running.gpu.memory


TWO_PROFILES = BuildSettings(
    profiles=(
        ProfileShapes(max={INPUT: (1, 3, 96, 96)}),
        ProfileShapes(min={INPUT: (2, 3, 32, 32)}, opt={INPUT: (8, 3, 64, 96)}),
    )
)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("data_dependent", [(), ("boxes",)])
def test_the_profile_is_entered_that_holds_the_shapes(version, data_dependent, dynamic_graph):
    running = Running(make_tensorrt(version, data_dependent=data_dependent), dynamic_graph, TWO_PROFILES)
    for batch, entered in ((1, []), (8, [(1,)]), (2, []), (1, [(0,)]), (1, [])):
        feed = picture((batch, 3, 64, 96))
        assert_same(running.run(feed), dynamic_graph, feed)
        assert running.trt.calls.of("set_optimization_profile_async") == entered
        names = running.trt.calls.names()
        if entered:  # all that the context had is told again
            assert names.index("set_optimization_profile_async") < names.index("set_input_shape")
            assert names.count("set_output_allocator") == len(data_dependent)
    with pytest.raises(
        DeployError, match=r"image has shape 9x3x64x96, the engine takes min 1x3x32x32, .* or min 2x3x32x32, .*"
    ):
        running.run(picture((9, 3, 64, 96)))
    running.session.close()
    assert not running.gpu.memory


def test_a_cuda_graph_is_recorded_in_each_profile(dynamic_graph):
    running = Running(make_tensorrt(), dynamic_graph, TWO_PROFILES, cuda_graph=True)
    for batch in (1, 8, 1):
        feed = picture((batch, 3, 64, 96))
        assert_same(running.run(feed), dynamic_graph, feed)
        assert running.gpu.calls.count("begin capture") == 1


def test_a_profile_that_cannot_be_entered_is_a_message_and_tried_again(dynamic_graph, monkeypatch):
    running = Running(make_tensorrt(), dynamic_graph, TWO_PROFILES)
    feed = picture((8, 3, 64, 96))
    with monkeypatch.context() as patch:
        patch.setattr(running.session._loaded.context, "set_optimization_profile_async", lambda number, stream: False)
        with pytest.raises(DeployError, match="TensorRT refuses to enter profile 1"):
            running.run(feed)
    assert_same(running.run(feed), dynamic_graph, feed)


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_the_time_of_the_enqueueing_call_is_kept_apart(cuda_graph, graph, monkeypatch):
    running = Running(make_tensorrt(), graph, cuda_graph=cuda_graph)
    assert running.session.enqueue_seconds is None
    now = [100.0]
    monkeypatch.setattr(engine_session.time, "perf_counter", lambda: now[0])
    enqueue = running.gpu.enqueue

    def slow(name: str, work: Any) -> None:
        now[0] += {"execute": 3.0, "launch": 2.0}.get(name, 50.0)
        enqueue(name, work)

    monkeypatch.setattr(running.gpu, "enqueue", slow)
    running.run(picture())
    assert running.session.enqueue_seconds == (2.0 if cuda_graph else 3.0)


@pytest.mark.parametrize(("verbosity", "kinds"), [("detailed", ["CaskConvolution", "TopK"]), ("none", ["", ""])])
@pytest.mark.parametrize("version", VERSIONS)
def test_layers_are_timed_by_the_profiler_without_the_first_run(version, verbosity, kinds, graph):
    running = Running(make_tensorrt(version), graph, BuildSettings(profiling_verbosity=verbosity))
    first, second = running.session.time_layers(picture(), runs=4)
    assert running.trt.calls.names().count("execute_async_v3") == 5
    assert (first.name, first.milliseconds) == ("conv1 + relu", 0.5)
    assert (second.name, second.milliseconds) == ("/TopK", 1.5)
    assert [first.kind, second.kind] == kinds
    assert running.session.time_layers(picture(), runs=1)[1].milliseconds == 1.5
    graphs = Running(make_tensorrt(version), graph, cuda_graph=True)
    with pytest.raises(DeployError, match="layers cannot be timed in a CUDA graph: leave --cuda-graph out"):
        graphs.session.time_layers(picture(), runs=1)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_output_whose_shape_depends_on_the_data_gets_an_allocator(version, graph):
    running = Running(make_tensorrt(version, data_dependent=("boxes", "labels")), graph)
    for seed in range(2):
        feed = picture(seed=seed)
        assert_same(running.run(feed), graph, feed)
        prepared = [
            ("set_output_allocator", "boxes"),
            ("set_tensor_address", "scores"),
            ("set_output_allocator", "labels"),
        ]
        assert [call for call in running.trt.calls if call[0] != "execute_async_v3"][3:] == (
            prepared if not seed else []
        )
    running.session.close()
    assert not running.gpu.memory


def test_memory_that_an_allocator_cannot_get_is_a_message(graph, monkeypatch):
    running = Running(make_tensorrt(data_dependent=("boxes",)), graph)
    size = CANDIDATES * 4 * 4
    original = running.gpu.allocate

    def allocate(asked: int) -> int:
        if asked == size:
            raise MemoryError("out of memory")
        return original(asked)

    monkeypatch.setattr(running.gpu, "allocate", allocate)
    with pytest.raises(DeployError, match="TensorRT refuses to run: no memory for boxes"):
        running.run(picture())


@pytest.mark.parametrize("version", VERSIONS)
def test_a_cuda_graph_is_recorded_after_one_plain_run_and_then_launched(version, graph):
    running = Running(make_tensorrt(version), graph, cuda_graph=True)
    feed = picture()
    assert_same(running.run(feed), graph, feed)
    copies = ["mark", "copy out", "copy out", "copy out", "mark", "synchronize"]
    assert running.gpu.calls[4:] == [
        *("copy in", "execute", "synchronize"),
        *("begin capture", "execute", "end capture", "instantiate"),
        *("mark", "copy in", "mark", "launch", *copies),
    ]
    assert len(running.trt.calls.of("execute_async_v3")) == 2
    other = picture(seed=1)
    assert_same(running.run(other), graph, other)
    assert running.gpu.calls == ["mark", "copy in", "mark", "launch", *copies]
    assert running.trt.calls == []
    running.session.close()
    assert not running.gpu.graphs


def test_new_shapes_record_a_new_graph(dynamic_graph):
    path = dynamic_graph
    running = Running(make_tensorrt(), path, cuda_graph=True)
    for shape in ((1, 3, 64, 64), (1, 3, 96, 64), (1, 3, 64, 64)):
        feed = picture(shape)
        assert_same(running.run(feed), path, feed)
        assert running.gpu.calls.count("begin capture") == 1
        assert len(running.gpu.graphs) == 1


def test_a_graph_with_a_data_dependent_output_is_refused(graph):
    running = Running(make_tensorrt(data_dependent=("scores",)), graph, cuda_graph=True)
    with pytest.raises(DeployError, match="the shape of scores depends on the data: leave --cuda-graph out"):
        running.run(picture())


@pytest.mark.parametrize(
    "call", ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags", "cuGraphLaunch"]
)
def test_a_driver_that_refuses_a_graph_is_a_message(call):
    gpu = GpuDouble()
    with pytest.raises(DeployError, match=r"error 901\): leave --cuda-graph out"):
        CudaGraph(STREAM, lambda: None, lambda name: DriverDouble(gpu, failing={call: 901})).launch()


def test_a_refused_step_says_what_tensorrt_logged(graph):
    running = Running(make_tensorrt(), graph)
    context = running.session._loaded.context
    log = running.session._loaded.log

    def refuse(stream: int) -> bool:
        log.log(log.Severity.ERROR, "illegal memory access")
        return False

    context.execute_async_v3 = refuse
    with pytest.raises(DeployError, match="TensorRT refuses to run: illegal memory access"):
        running.run(picture())


def test_shapes_that_were_told_in_part_are_told_again(dynamic_graph, monkeypatch):
    running = Running(make_tensorrt(), dynamic_graph)
    before = picture((1, 3, 64, 64))
    running.run(before)
    with monkeypatch.context() as patch:
        patch.setattr(running.session._loaded.context, "set_tensor_address", lambda name, address: False)
        with pytest.raises(DeployError, match="refuses the address of image"):
            running.run(picture((1, 3, 96, 64)))
    assert_same(running.run(before), dynamic_graph, before)
    assert running.trt.calls.of("set_input_shape") == [(INPUT, (1, 3, 64, 64))]


def test_tensorrt_is_gone_before_the_memory_and_the_stream_are(graph, monkeypatch):
    running = Running(make_tensorrt(), graph)
    running.run(picture())
    context = weakref.ref(running.session._loaded.context)
    alive: list[bool] = []
    monkeypatch.setattr(BuffersDouble, "free", lambda self, block: alive.append(context() is not None))
    running.session.close()
    assert alive == [False] * 4
    assert running.gpu.calls[-1] == "close"


def test_all_is_freed_whatever_fails_and_the_first_failure_is_reported(graph, monkeypatch):
    running = Running(make_tensorrt(), graph)
    running.run(picture())
    freed: list[int] = []

    def free(self: BuffersDouble, block: Block) -> None:
        freed.append(block.address)
        raise DeployError(f"CUDA failed: call {len(freed)}")

    monkeypatch.setattr(BuffersDouble, "free", free)
    with pytest.raises(DeployError, match="call 1"):
        running.session.close()
    assert len(freed) == 4
    assert running.gpu.calls[-1] == "close"


def test_the_failure_of_a_run_is_not_hidden_by_that_of_closing(graph, monkeypatch):
    running = Running(make_tensorrt(), graph)
    running.run(picture())

    def fail(text: str) -> Any:
        def failing(*arguments: Any) -> None:
            raise DeployError(text)

        return failing

    monkeypatch.setattr(BuffersDouble, "synchronize", fail("illegal memory access in a run"))
    monkeypatch.setattr(BuffersDouble, "free", fail("illegal memory access in cudaFree"))
    with pytest.raises(DeployError, match="in a run"):
        running.run(picture())
    running.session.close()
    assert running.gpu.calls[-1] == "close"
