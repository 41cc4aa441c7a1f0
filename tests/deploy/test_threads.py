"""One detector in several threads: each gets what it gets alone, whatever the runs of a runtime share."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cskd_deploy
from cskd_deploy.backends import onnxruntime_cuda as cuda
from cskd_deploy.backends.tensorrt.backend import TensorRTBackend
from cskd_deploy.backends.tensorrt.session import load_engine
from cskd_deploy.detect.detector import Detector
from cskd_deploy.errors import DeployError
from cskd_deploy.measure.bench import random_images

from .engines import MANIFEST, assert_same, build, picture, session, write_graph, write_small_model
from .ort_double import CPU
from .tensorrt_double import make_tensorrt
from .test_bench import Counting

THREADS, ROUNDS = 4, 20
# So dim that the scores, sigmoids of the brightest pixels, differ.
IMAGES = [random_images((64, 96), count=1, seed=seed)[0] // (25 + 10 * seed) for seed in range(5)]


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("graph") / "student.onnx")


@pytest.fixture
def onnxruntime_on_cuda(monkeypatch) -> Any:
    """ONNX Runtime's own bindings of memory, with the processor's for a GPU's."""
    real = cuda.BoundRun
    monkeypatch.setattr(
        cuda, "open_session", lambda runtime, path, options: runtime.InferenceSession(path, options, providers=[CPU])
    )
    monkeypatch.setattr(cuda, "nodes_on_cpu", lambda session: "")
    monkeypatch.setattr(cuda, "BoundRun", lambda runtime, opened, device, *names: real(runtime, opened, "cpu", *names))


def in_threads(work: Callable[[int], None]) -> None:
    """Call it with 0, 1, ... at the same time, and raise what one of them raises."""
    together = threading.Barrier(THREADS)

    def begin(number: int) -> None:
        together.wait()
        work(number)

    with ThreadPoolExecutor(THREADS) as threads:
        for done in [threads.submit(begin, number) for number in range(THREADS)]:
            done.result()


def assert_threads_get_what_one_gets(detector: Detector) -> None:
    alone = [detector.detect(image) for image in IMAGES]
    assert len({found.scores.tobytes() for found in alone}) == len(IMAGES)

    def work(number: int) -> None:
        for turn in range(ROUNDS):
            place = (3 * number + turn) % len(IMAGES)
            found = detector.detect(IMAGES[place])
            for name in ("boxes", "scores", "labels"):
                np.testing.assert_array_equal(getattr(found, name), getattr(alone[place], name))

    in_threads(work)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_file_on_the_processor(backend, graph):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"needs `pip install {backend}`")
    with cskd_deploy.load(graph, backend=backend, threads=1, device="cpu") as detector:
        assert detector.backend.shares_memory == (backend == "openvino")
        assert_threads_get_what_one_gets(detector)


def test_a_file_in_onnx_runtime_with_memory_of_a_gpu(onnxruntime_on_cuda, graph):
    with cskd_deploy.load(graph, threads=1, device="cuda") as detector:
        assert_threads_get_what_one_gets(detector)
        assert list(detector.backend.device_milliseconds) == ["h2d", "compute", "d2h"]


def test_an_engine_of_the_double(tmp_path):
    graph, trt = write_graph(tmp_path / "student.onnx"), make_tensorrt()
    backend = TensorRTBackend(tmp_path / "student.engine")
    backend.manifest, backend._outputs = MANIFEST, ["boxes", "scores", "labels"]
    backend._session = session(load_engine(trt, build(trt, graph).engine), trt.gpu, cuda_graph=False)
    feeds = [picture(seed=seed) for seed in range(THREADS)]

    def work(number: int) -> None:
        for _ in range(ROUNDS):
            assert_same(backend.infer(feeds[number]), graph, feeds[number])
            assert backend.enqueue_seconds is not None
            assert set(backend.device_milliseconds) == {"h2d", "compute", "d2h"}

    in_threads(work)
    with ThreadPoolExecutor(1) as another:
        another.submit(backend.close).result()
    assert not trt.gpu.memory


class Meeting(Counting):
    """Waits a moment for another thread to be in it too."""

    def __init__(self, path: str) -> None:
        super().__init__(path, [])
        self.inside = threading.Barrier(2)
        self.met = 0

    def _infer(self, feed: Any) -> dict[str, np.ndarray]:
        try:
            self.inside.wait(timeout=0.2)
            self.met += 1
        except threading.BrokenBarrierError:
            self.inside.reset()
        return super()._infer(feed)


@pytest.mark.parametrize("shares", [True, False])
def test_a_backend_whose_runs_share_nothing_infers_for_several_threads_at_once(shares):
    backend = Meeting("student.onnx")
    backend.shares_memory = shares
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(Detector(backend).detect, IMAGES[:2]))
    assert backend.met == (0 if shares else 2)


def test_a_detector_that_another_thread_closes_says_so():
    class Closed(Counting):
        def _infer(self, feed: Any) -> dict[str, np.ndarray]:
            with ThreadPoolExecutor(1) as another:
                another.submit(detector.close)
                raise AttributeError("'NoneType' object has no attribute 'run'")

        def close(self) -> None:
            pass

    detector = Detector(Closed("student.onnx", []))
    with pytest.raises(DeployError, match=r"^student.onnx has been closed: load it again$"):
        detector.detect(IMAGES[0])


def test_an_engine_is_not_closed_while_it_runs():
    backend = Meeting("student.engine")
    order: list[str] = []
    backend._close = lambda: order.append("close")  # type: ignore[method-assign]
    infer = backend._infer

    def slow(feed: Any) -> dict[str, np.ndarray]:
        started.set()
        found = infer(feed)
        order.append("infer")
        return found

    backend._infer = slow  # type: ignore[method-assign]
    started = threading.Event()
    detector = Detector(backend)
    with ThreadPoolExecutor(1) as another:
        running = another.submit(detector.detect, IMAGES[0])
        started.wait()
        detector.close()
        assert len(running.result()) == 1
    assert order == ["infer", "close"]
