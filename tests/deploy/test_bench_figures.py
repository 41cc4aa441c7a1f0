"""The figures of a benchmark, from samples that are given: each formula for itself."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import pytest

from cskd_deploy.detect.detector import Detector
from cskd_deploy.measure.bench import Latencies, measure, random_images
from cskd_deploy.measure.cold_start import ColdStart
from cskd_deploy.measure.plot import Evaluation, mean_average_precision
from cskd_deploy.measure.report import BenchReport

from .test_bench import Counting

ENVIRONMENT: Any = {"processor": "x", "threads": 1, "gpus": [], "clocks": {}, "versions": {}}


def timed(preprocess: list[float], inference: list[float], postprocess: list[float], **facts: Any) -> Latencies:
    """With the whole as long as its stages."""
    total = [sum(stages) for stages in zip(preprocess, inference, postprocess, strict=True)]
    samples = {"preprocess": preprocess, "inference": inference, "postprocess": postprocess, "total": total}
    return Latencies(**{"backend": "onnxruntime", "path": "a.onnx", "size_bytes": 1, **facts}, samples=samples)


@pytest.mark.parametrize(
    ("stages", "overhead"),
    [
        (([1.0], [8.0], [1.0]), 0.2),
        (([3.0], [4.0], [1.0]), 0.5),
        (([0.0], [4.0], [1.0]), 0.2),
        (([1.0, 1.0, 7.0], [8.0, 8.0, 80.0], [1.0, 1.0, 9.0]), 0.2),  # by medians
    ],
)
def test_overhead_is_the_part_of_the_whole_that_is_not_inference(stages, overhead, capsys):
    found = timed(*stages)
    assert found.overhead == pytest.approx(overhead)
    assert found.to_dict()["overhead"] == pytest.approx(overhead)
    BenchReport([found], ENVIRONMENT, "", (32, 32), []).print()
    assert f"pre- and post-processing {100 * overhead:.1f} % of the whole" in capsys.readouterr().out


def test_rates_are_of_means_and_count_the_images_of_a_batch():
    found = timed([1.0, 1.0, 1.0], [8.0, 8.0, 20.0], [1.0, 1.0, 1.0], batch=4)
    found.detections = 30
    facts = found.to_dict()
    assert facts["images"] == 12
    assert facts["images_per_second"] == pytest.approx(4 * 1000 / 14)
    assert facts["inferences_per_second"] == pytest.approx(1000 / 12)
    assert facts["detections_per_image"] == pytest.approx(2.5)
    assert facts["milliseconds"]["inference"]["p50"] == 8


def test_the_speedup_is_of_medians_and_of_the_same_batch_size():
    slow, quick = {"backend": "pytorch", "path": "a.pth"}, {}
    results = [
        timed([1.0], [4.0], [0.0], **quick),
        timed([1.0, 1.0, 1.0], [20.0, 20.0, 90.0], [4.0, 4.0, 4.0], **slow),
        timed([1.0], [7.0], [0.0], batch=2, **quick),
        timed([1.0], [14.0], [1.0], batch=2, **slow),
    ]
    report = BenchReport(results, ENVIRONMENT, "", (32, 32), [])
    assert report.speedup(results[0]) == pytest.approx({"inference": 5.0, "total": 5.0})
    assert report.speedup(results[2]) == pytest.approx({"inference": 2.0, "total": 2.0})
    assert report.speedup(results[1]) is report.speedup(results[3]) is None


@pytest.mark.parametrize("devices", [("cuda", "cpu"), ("cpu", "cuda")])
def test_there_is_no_ratio_between_devices_and_a_note_says_so(devices, capsys):
    results = [
        timed([1.0], [20.0], [4.0], device=devices[1], path="folder/c.onnx"),
        timed([1.0], [4.0], [0.0], device=devices[0]),
        timed([1.0], [8.0], [1.0], device=devices[1], path="b.onnx"),
    ]
    report = BenchReport(results, ENVIRONMENT, "", (32, 32), ["another"])
    assert report.speedup(results[0]) is report.speedup(results[1]) is None
    assert report.speedup(results[2]) == pytest.approx({"inference": 2.5, "total": 2.5})
    note = f"no ratio of a.onnx onnxruntime {devices[0]} to c.onnx onnxruntime {devices[1]}: they ran on two devices"
    facts = report.to_dict()
    assert facts["notes"] == ["another", f"{note} (--device)"]
    assert facts["results"][0]["speedup"] is facts["results"][1]["speedup"] is None
    assert facts["speedup"]["total"] == facts["results"][2]["speedup"]["total"] == pytest.approx(2.5)
    report.print()
    printed = capsys.readouterr().out
    assert printed.count("times as fast") == 1
    assert f"b.onnx onnxruntime {devices[1]}: 2.50 times as fast as c.onnx onnxruntime {devices[1]}" in printed
    assert f"note: {note}" in printed


def test_the_clock_is_told_in_words(capsys):
    clocks = {"mhz": 2596.138, "max_mhz": 3600.0, "governor": "schedutil"}
    BenchReport([timed([1.0], [4.0], [0.0])], {**ENVIRONMENT, "clocks": clocks}, "", (32, 32), []).print()
    assert "2596 MHz, at most 3600 MHz, governor schedutil; " in capsys.readouterr().out.splitlines()[0]


def test_labels_and_table_name_the_device_the_stream_and_whose_memory_it_is(capsys):
    cold = ColdStart(300.0, 50.0, 7_000_000, 2_000_000)
    one = timed([1.0], [8.0], [1.0], device="cuda", batch=4, path="folder/a.onnx")
    one.cold = cold
    assert one.label == "a.onnx onnxruntime cuda batch 4"
    assert (one.to_dict()["streams"], one.to_dict()["device"]) == (1, "cuda")
    record = {"board": "A board", "power_mode": "15W", "gpu_driver": "550.1", "cuda": "12.4", "gpus": ["A GPU"]}
    BenchReport([one], {**ENVIRONMENT, **record}, "", (32, 32), []).print()
    printed = capsys.readouterr().out
    assert "A GPU, A board, power mode 15W, NVIDIA driver 550.1, CUDA 12.4;" in printed
    assert "images/s, one stream" in printed
    assert "\nonnxruntime cuda  inference" in printed
    assert "host memory at most 7 MB, GPU memory 2 MB" in printed
    one.cold = ColdStart(300.0, 50.0, 7_000_000)
    BenchReport([one], ENVIRONMENT, "", (32, 32), []).print()
    assert "GPU memory" not in capsys.readouterr().out


def test_the_first_detections_come_after_loading_and_one_image():
    assert ColdStart(300.0, 50.0, 7).to_dict() == {
        "load_ms": 300.0,
        "first_inference_ms": 50.0,
        "time_to_first_ms": 350.0,
        "peak_host_memory_bytes": 7,
        "gpu_memory_bytes": None,
    }


def test_the_map_of_a_file_is_that_of_its_content_and_else_of_its_path():
    evaluations = [Evaluation("a.onnx", "a", 0.1), Evaluation("other.onnx", "b", 0.2), Evaluation("a.onnx", None, 0.3)]
    assert mean_average_precision("a.onnx", "b", evaluations) == 0.2
    assert mean_average_precision("a.onnx", "b", evaluations[2:]) == 0.3
    assert mean_average_precision("a.onnx", "b", evaluations[:1]) is None


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """Seconds, as a benchmark reads them; they pass in `Slow` alone."""
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


class Slow(Counting):
    """Takes 10 ms an image."""

    def __init__(self, clock: list[float], name: str = "slow", device: str = "cpu") -> None:
        super().__init__(name, [])
        self.device = device
        self._clock = clock

    def _infer(self, feed: Any) -> dict[str, np.ndarray]:
        self._clock[0] += 0.01 * len(feed["image"])
        return super()._infer(feed)


@pytest.mark.parametrize(
    ("options", "warm", "timed_batches"),
    [
        ({"warmup": 0.0, "duration": 0.0, "iterations": 1}, 1, 5),  # a turn of 50 ms, at least
        ({"warmup": 0.095, "duration": 0.0, "iterations": 1}, 10, 5),
        ({"warmup": 0.0, "duration": 0.145, "iterations": 1}, 1, 15),
        ({"warmup": 0.0, "duration": 0.0, "iterations": 12}, 1, 15),
        ({"warmup": 0.0, "duration": 0.0, "iterations": 1, "batches": (5,)}, 1, 1),
    ],
)
def test_warm_up_duration_and_iterations_are_kept_to(options, warm, timed_batches, clock, monkeypatch):
    monkeypatch.setattr("cskd_deploy.measure.bench.TURN_SECONDS", 0.045)
    backend = Slow(clock)
    (found,) = measure([Detector(backend)], random_images((32, 32)), **options)
    turns = -(-timed_batches // 5)
    assert found.count == timed_batches
    assert len(backend.calls) == warm + turns + timed_batches  # the first batch of a turn does not count
    milliseconds = 10.0 * found.batch
    assert found.samples["inference"] == pytest.approx([milliseconds] * timed_batches)
    assert found.samples["total"] == pytest.approx(found.samples["inference"])


def test_on_a_gpu_turns_are_longer_and_begin_with_batches_that_do_not_count(clock, monkeypatch):
    names = {"TURN": 0.015, "WARM_UP": 0.015, "GPU_TURN": 0.045, "GPU_WARM_UP": 0.085, "GPU_UNCOUNTED": 0.025}
    for name, seconds in names.items():
        monkeypatch.setattr(f"cskd_deploy.measure.bench.{name}_SECONDS", seconds)
    slow, gpu = Slow(clock), Slow(clock, "gpu", "cuda")
    slow.calls = gpu.calls
    found = measure([Detector(slow), Detector(gpu)], random_images((32, 32)), duration=0.0, iterations=3)
    turns = [(name, len(list(group))) for name, group in itertools.groupby(gpu.calls)]
    # Warm-up of 15 and of 85 ms. Then in turns: one and two batches; three and five.
    assert turns == [("slow", 2), ("gpu", 9), ("slow", 1 + 2), ("gpu", 3 + 5), ("slow", 1 + 2), ("gpu", 3 + 5)]
    assert [one.count for one in found] == [2 * 2, 2 * 5]


@pytest.mark.parametrize(("device", "warm"), [("cpu", 1), ("cuda", 3)])
def test_a_gpu_has_seen_every_image_before_it_is_timed(device, warm, clock, monkeypatch):
    monkeypatch.setattr("cskd_deploy.measure.bench.GPU_UNCOUNTED_SECONDS", 0.0)
    for name in ("TURN_SECONDS", "GPU_TURN_SECONDS"):
        monkeypatch.setattr(f"cskd_deploy.measure.bench.{name}", 0.005)
    backend = Slow(clock, device=device)
    measure([Detector(backend)], random_images((32, 32), count=3), warmup=0.0, duration=0.0, iterations=1)
    assert len(backend.calls) == warm + 1 + 1
