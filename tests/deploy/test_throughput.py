"""Throughput in several streams, how long is measured, and what the times are noted to say."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from cskd_deploy.detect.detector import Detector
from cskd_deploy.errors import DeployError
from cskd_deploy.measure import bench, run_length
from cskd_deploy.measure import benchmark as room
from cskd_deploy.measure.bench import Latencies, measure, random_images
from cskd_deploy.measure.report import BenchReport, notes_on_samples
from cskd_deploy.measure.streams import Streams

from .test_bench import Counting
from .test_bench_figures import ENVIRONMENT, timed

IMAGES = random_images((32, 32))


class Slow(Counting):
    """Sleeps for each inference, as a device that the processor waits for, and remembers its threads."""

    seconds = 0.02

    def __init__(self, path, calls):
        super().__init__(path, calls)
        self.threads = set()
        self.closed = False

    def load(self):
        self.threads.add(threading.get_ident())

    def _infer(self, feed):
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)
        return super()._infer(feed)

    def _close(self):
        self.threads.add(threading.get_ident())
        self.closed = True


@pytest.fixture
def short_turns(monkeypatch):
    monkeypatch.setattr(bench, "TURN_SECONDS", 0.05)
    monkeypatch.setattr(bench, "STREAMS_TURN_SECONDS", 0.3)


def test_streams_run_at_the_same_time_each_in_a_thread_of_its_own(short_turns, monkeypatch):
    monkeypatch.setattr(Slow, "seconds", 0.1)
    backends = [Slow("slow", []) for _ in range(4)]
    with Streams(backends) as streams:
        one, four = measure(
            [Detector(Slow("slow", []))], IMAGES, duration=0.6, iterations=3, warmup=0.0, streams=[streams]
        )
    assert (one.streams, four.streams, four.label) == (1, 4, "slow counting cpu in 4 streams")
    assert all(len(backend.threads) == 1 and backend.closed for backend in backends)
    assert len({*backends[0].threads, *backends[1].threads, threading.get_ident()}) == 3
    assert four.summary("inference")["p50"] >= 100
    # Each waits 100 ms for a batch: in one stream fewer than 10 a second, in four more than that.
    assert one.images_per_second < 10 < four.images_per_second < 40
    assert four.images_per_second == pytest.approx(four.count / four.seconds)
    assert four.seconds >= 0.6
    assert four.detections == four.count
    facts = four.to_dict()
    assert (facts["streams"], facts["images"]) == (4, four.count)
    assert facts["inferences_per_second"] == pytest.approx(4e3 / four.summary("inference")["mean"])


def test_each_batch_of_a_stream_has_the_size_that_was_asked_for(short_turns):
    calls: list[Any] = []
    with Streams([Counting("x", calls), Counting("x", calls)]) as streams:
        found = measure([], IMAGES, batches=(1, 3), duration=0.0, iterations=4, warmup=0.0, streams=[streams])
    assert [(one.batch, one.streams) for one in found] == [(1, 2), (3, 2)]
    for one in found:
        assert one.detections == one.batch * one.count


def test_what_fails_in_one_stream_ends_all_with_its_error(short_turns):
    class Failing(Slow):
        def _infer(self, feed):
            raise DeployError("out of memory")

    backends = [Slow("a", []), Failing("b", []), Slow("c", [])]
    with Streams(backends) as streams, pytest.raises(DeployError, match="out of memory"):
        streams.run(lambda detector, turn: detector.detect(IMAGES[0]), 5.0)
    assert all(backend.closed for backend in backends)


def test_streams_that_were_loaded_are_closed_when_the_next_cannot_be():
    class Missing(Slow):
        def load(self):
            raise DeployError("no memory is left")

    backends = [Slow("a", []), Missing("b", [])]
    with pytest.raises(DeployError, match="no memory is left"), Streams(backends):
        pass
    assert [backend.closed for backend in backends] == [True, False]


def test_without_sizes_each_graph_gets_the_batch_that_it_is_fixed_to():
    fixed, other, free = (Counting(name, []) for name in ("fixed", "other", "free"))
    fixed.batch_size, other.batch_size = 4, 2
    quick = {"duration": 0.0, "iterations": 1, "warmup": 0.0}
    found = measure([Detector(one) for one in (fixed, other, free)], IMAGES, **quick)
    assert [(one.path, one.batch) for one in found] == [("fixed", 4), ("free", 4), ("other", 2), ("free", 2)]
    assert [one.batch for one in measure([Detector(free)], IMAGES, **quick)] == [1]


def test_a_run_of_mlperfs_length_goes_on_for_its_time_and_its_images(short_turns, monkeypatch, capsys):
    for name, value in (("MLPERF_SECONDS", 0.4), ("MLPERF_QUERIES", 30), ("MLPERF_SAMPLES", 100)):
        monkeypatch.setattr(run_length, name, value)
    detectors = [Detector(Counting("quick", [])), Detector(Slow("slow", []))]
    detectors[1].backend.seconds = 0.001
    with Streams([Counting("quick", []), Counting("quick", [])]) as streams:
        found = measure(detectors, IMAGES, batches=(1, 4), warmup=0.0, mlperf=True, streams=[streams])
    for one in found:
        assert one.seconds >= 0.4
        single = one.batch == one.streams == 1
        assert one.count >= (30 if single else 100 / one.batch)
        facts = one.to_dict()["mlperf_length"]
        if single:
            assert facts == {"scenario": "single-stream", "p90_ms": one.summary("total")["p90"]}
        else:
            assert facts == {"scenario": "offline", "images_per_second": one.images_per_second}
    BenchReport(found, ENVIRONMENT, "", (32, 32), []).print()
    printed = capsys.readouterr().out
    assert f"quick counting cpu: p90 {found[0].summary('total')['p90']:.2f} ms over" in printed
    assert "as long as MLPerf's offline scenario asks for (not a result of MLPerf" in printed


def test_mlperfs_length_is_that_of_its_rules_and_no_other_length_goes_with_it(deploy):
    assert run_length.RunLength.of(1, 2, 1, 1, True) == run_length.RunLength(600.0, 1024, "single-stream")
    assert run_length.RunLength.of(1, 2, 5, 1, True) == run_length.RunLength(600.0, 4916, "offline")
    assert run_length.RunLength.of(1, 2, 5, 3, False) == run_length.RunLength(1, 2, None)
    for option in ("--duration", "--iterations"):
        refused = deploy("bench", "student.onnx", "--mlperf", option, 1)
        assert refused.code == 2
        assert "--mlperf says how long to measure: leave --duration and --iterations out" in refused.err


def test_streams_share_the_cores_and_leave_pytorch_out(monkeypatch, tmp_path):
    opened = []

    def opening(path, name, **options):
        opened.append((path.name, options["threads"]))
        return Counting(path.name, [])

    monkeypatch.setattr(room, "backend_for", opening)
    monkeypatch.setattr(room.environment, "usable_cores", lambda: 8)
    subjects = [room.Subject(tmp_path / "a.onnx", "onnxruntime", {}), room.Subject(tmp_path / "a.pth", "pytorch", {})]
    with room.contextlib.ExitStack() as stack:
        groups, notes = room._streams(subjects, [1, 3, 16], 0, stack)
        assert [len(group) for group in groups] == [3, 16]
        assert opened == [("a.onnx", 2)] * 3 + [("a.onnx", 1)] * 16
        assert notes == [
            "each of 3 streams has a session of 2 threads",
            f"{tmp_path / 'a.pth'} is timed in one stream only: several are for exported files",
            "each of 16 streams has a session of 1 thread",
        ]
        opened.clear()
        room._streams(subjects, [2], 5, stack)
        assert opened == [("a.onnx", 5)] * 2


def test_a_ratio_is_of_results_with_as_many_streams():
    facts: dict[str, Any] = {"path": "b.onnx"}
    results = [
        timed([1.0], [8.0], [1.0]),
        timed([1.0], [3.0], [1.0], **facts),
        timed([1.0], [18.0], [1.0], streams=2, seconds=0.02),
        timed([1.0], [6.0], [1.0], streams=2, seconds=0.01, **facts),
    ]
    report = BenchReport(results, ENVIRONMENT, "", (32, 32), [])
    ratios = [report.speedup(one) for one in results]
    assert [None if one is None else one["total"] for one in ratios] == [None, 2.0, None, 2.5]


def _latencies(total: list[float], **stages: list[float]) -> Latencies:
    nothing = [0.0] * len(total)
    samples = {"preprocess": nothing, "inference": total, "postprocess": nothing, "total": total, **stages}
    return Latencies("tensorrt", "a.engine", 1, samples, device="cuda")


@pytest.mark.parametrize(
    ("found", "notes"),
    [
        (_latencies([10.0] * 200), []),
        (_latencies([10.0] * 160 + [13.0] * 40), ["a.engine tensorrt cuda is unstable, p90 is 1.30 times p50"]),
        (_latencies([10.0] * 160 + [11.9] * 40), []),
        (
            _latencies([10.0] * 200, h2d=[1.0] * 200, compute=[2.0] * 200, d2h=[1.5] * 200, enqueue=[1.9] * 200),
            [],
        ),
        (
            _latencies([10.0] * 200, h2d=[3.0] * 200, compute=[2.0] * 200, d2h=[1.5] * 200, enqueue=[2.5] * 200),
            ["the processor takes 2.50 ms to enqueue what the GPU computes in 2.00 ms", "copies (h2d, 3.00 ms)"],
        ),
        (_latencies([10.0] * 16 + [13.0] * 3), ["p99 rests on 19 batches only"]),
    ],
)
def test_notes_say_what_is_odd_about_the_times_and_what_to_do(found, notes):
    written = notes_on_samples([found])
    assert len(written) == len(notes)
    for line, note in zip(written, notes, strict=True):
        assert note in line
    if notes and "unstable" in notes[0]:
        assert "nvidia-smi --lock-gpu-clocks" in written[0]


def test_in_several_streams_a_spread_is_no_fault():
    found = _latencies([10.0] * 100 + [30.0] * 100)
    assert len(notes_on_samples([found])) == 1
    found.streams = 4
    assert notes_on_samples([found]) == []


def test_the_time_to_enqueue_is_a_stage_where_the_backend_tells_it(short_turns, capsys):
    backend = Counting("a.engine", [])
    backend.enqueue_seconds = 0.00125
    (found,) = measure([Detector(backend)], IMAGES, duration=0.0, iterations=3, warmup=0.0)
    facts = found.to_dict()
    assert facts["enqueue_ms"] == facts["milliseconds"]["enqueue"]["p50"] == 1.25
    BenchReport([found], ENVIRONMENT, "", (32, 32), []).print()
    assert "enqueue" in capsys.readouterr().out
    assert np.isclose(found.summary("total")["mean"], sum(found.summary(stage)["mean"] for stage in bench.STAGES[:3]))
