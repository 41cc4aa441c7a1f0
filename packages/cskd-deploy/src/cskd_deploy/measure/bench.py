"""Latency and throughput of detectors, side by side in one run.

Each batch goes through pre-processing, inference and post-processing, each timed apart. Several detectors, each with
several batch sizes, take turns, so that a change of clock or load strikes all alike. The first batch of a turn is not
counted: the caches hold the other detector's weights then, and its threads may still be spinning. On a GPU a turn is
longer, and its first half second is not counted: an idle GPU lowers its clock, as in the turns of detectors that run on
the processor, and takes longer than a batch or two to raise it again.

For latency batches follow each other in one synchronous stream: each is waited for before the next begins. Images per
second are the batch over its mean latency then. For throughput several streams do so at the same time
(`measure.streams`): images per second are those of all over the time by the clock, and the latency of a batch is that
under this load.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from cskd_deploy.backends.base import label
from cskd_deploy.detect.detector import Detector
from cskd_deploy.errors import DeployError
from cskd_deploy.measure.cold_start import ColdStart
from cskd_deploy.measure.run_length import SINGLE_STREAM, RunLength
from cskd_deploy.measure.streams import Streams

STAGES = ("preprocess", "inference", "postprocess", "total")
ENQUEUE = "enqueue"  # until the device has been given its work
DEVICE_STAGES = ("h2d", "compute", "d2h", ENQUEUE)  # of the inference, where the backend can tell them apart
PERCENTILES = (50, 90, 95, 99)
TURN_SECONDS, WARM_UP_SECONDS = 0.5, 0.2
GPU_TURN_SECONDS, GPU_WARM_UP_SECONDS, GPU_UNCOUNTED_SECONDS = 1.0, 2.0, 0.5
STREAMS_TURN_SECONDS = 2.0  # at its end some streams are idle already
# Of the manifest: what a file asks of the images and of NMS, for figures side by side to mean the same work.
# A graph that takes pixels does the same work as one that takes normalised values: part of it elsewhere.
WORK = ("preprocessing", "postprocessing", "graph")
NOT_WORK = ("input", "batch")


@dataclass
class Latencies:
    """What was measured of one detector with one batch size and number of streams, in milliseconds a batch."""

    backend: str
    path: str
    size_bytes: int
    samples: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})
    detections: int = 0
    batch: int = 1
    streams: int = 1
    seconds: float = 0.0  # measured, by the clock
    scenario: str | None = None  # of MLPerf, as long as whose runs it was measured
    device: str = "cpu"
    precision: str = "fp32"
    sha256: str | None = None  # of the file
    cold: ColdStart | None = None

    @property
    def count(self) -> int:
        """Batches timed."""
        return len(self.samples["total"])

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that were timed."""
        return (*STAGES, *(stage for stage in DEVICE_STAGES if self.samples.get(stage)))

    @property
    def label(self) -> str:
        """The file's name, the backend, the device, the batch size and the number of streams."""
        named = label(self.path.rpartition("/")[2], self.backend, self.device)
        batch = f" batch {self.batch}" if self.batch > 1 else ""
        return named + batch + (f" in {self.streams} streams" if self.streams > 1 else "")

    def summary(self, stage: str) -> dict[str, float]:
        """mean, p50, p90, p95 and p99 of a stage in milliseconds."""
        values = np.array(self.samples[stage])
        quantiles = np.percentile(values, PERCENTILES)
        named = {f"p{place}": float(value) for place, value in zip(PERCENTILES, quantiles, strict=True)}
        return {"mean": float(values.mean()), **named}

    @property
    def images_per_second(self) -> float:
        """Of the whole: in one stream the batch over its mean latency, in several all images over the time."""
        if self.streams > 1:
            return self.count * self.batch / self.seconds
        return 1e3 * self.batch / self.summary("total")["mean"]

    @property
    def enqueue_ms(self) -> float | None:
        """Median of the time until the device has been given its work; None where the backend cannot tell."""
        return self.summary(ENQUEUE)["p50"] if self.samples.get(ENQUEUE) else None

    @property
    def mlperf(self) -> dict[str, Any] | None:
        """What MLPerf reports of its scenario: the 90th percentile, not its estimate for few queries, or the rate."""
        if self.scenario is None:
            return None
        single = self.scenario == SINGLE_STREAM
        value = self.summary("total")["p90"] if single else self.images_per_second
        return {"scenario": self.scenario, "p90_ms" if single else "images_per_second": value}

    @property
    def overhead(self) -> float:
        """The part of the whole that is pre- and post-processing, by medians."""
        medians = {stage: self.summary(stage)["p50"] for stage in STAGES}
        return (medians["preprocess"] + medians["postprocess"]) / sum(medians[stage] for stage in STAGES[:3])

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; times in milliseconds a batch."""
        return {
            "backend": self.backend,
            "device": self.device,
            "path": self.path,
            "file_sha256": self.sha256,
            "precision": self.precision,
            "size_bytes": self.size_bytes,
            "batch": self.batch,
            "images": self.count * self.batch,
            "streams": self.streams,  # of the rates below: in each, batches one after the other
            "seconds": self.seconds,
            "milliseconds": {stage: self.summary(stage) for stage in self.stages},
            "images_per_second": self.images_per_second,
            "inferences_per_second": self.streams * 1e3 / self.summary("inference")["mean"],
            "enqueue_ms": self.enqueue_ms,
            "mlperf_length": self.mlperf,
            "overhead": self.overhead,
            "detections_per_image": self.detections / (self.count * self.batch),
            "cold_start": None if self.cold is None else self.cold.to_dict(),
        }


def measure(
    detectors: Sequence[Detector],
    images: Sequence[np.ndarray],
    *,
    batches: Sequence[int] = (),
    duration: float = 3.0,
    iterations: int = 10,
    warmup: float | None = None,
    mlperf: bool = False,
    streams: Sequence[Streams] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Latencies]:
    """Time detectors in turns.

    Args:
        detectors: whether they do the same work, `differences` tells.
        images: decoded BGR images, taken one after the other; each detector sees the same ones. For batches of several
            they must have one size.
        batches: sizes of a batch; each detector is timed with each of them. None of them: with those that its graph
            takes of the sizes that graphs are fixed to; with 1 where none is.
        duration: each detector runs for at least so many seconds with each batch size,
        iterations: and for at least so many batches.
        warmup: each first runs for so many seconds, at least once, without being timed; by default `WARM_UP_SECONDS`,
            on a GPU `GPU_WARM_UP_SECONDS`. A GPU sees every image then, for what it prepares anew for each size.
        mlperf: at least as long as MLPerf's runs, in place of `duration` and `iterations` (`measure.run_length`).
        streams: models in several streams, which are timed too.
        progress: called with (seconds measured, seconds to measure).

    Returns:
        Those of the first batch size in the order of the detectors, then those of the second; then those in several
        streams alike.

    Raises:
        DeployError: a detector cannot take batches of this size.
    """
    sizes = batches or _own_batches(detectors)
    alone: list[tuple[Detector, Streams | None]] = [(detector, None) for detector in detectors]
    together: list[tuple[Detector, Streams | None]] = [(group.first, group) for group in streams]
    subjects = [
        _Subject(detector, group, Latencies(**_facts(detector), batch=batch, streams=len(group) if group else 1))
        for models in (alone, together)
        for batch in sizes
        for detector, group in models
        if batches or detector.backend.batch_size in (None, batch)
    ]
    for subject in subjects:
        subject.detector.batch(subject.found.batch)
    lengths = [RunLength.of(duration, iterations, one.found.batch, one.found.streams, mlperf) for one in subjects]
    for subject, length in zip(subjects, lengths, strict=True):
        subject.found.scenario = length.scenario
        subject.warm_up(images, warmup)
    total = max(math.ceil(sum(length.seconds for length in lengths)), 1)
    while not all(length.reached(one.found) for length, one in zip(lengths, subjects, strict=True)):
        for subject in subjects:
            subject.take_turn(images)
            progress(int(min(sum(one.found.seconds for one in subjects), total - 1)), total)
    progress(total, total)
    return [subject.found for subject in subjects]


def _own_batches(detectors: Sequence[Detector]) -> list[int]:
    """The batch sizes that graphs are fixed to; 1 where none is."""
    fixed = [detector.backend.batch_size for detector in detectors]
    return list(dict.fromkeys(size for size in fixed if size is not None)) or [1]


@dataclass
class _Subject:
    """A detector, or a model in several streams, and what is found of it."""

    detector: Detector
    streams: Streams | None
    found: Latencies

    def warm_up(self, images: Sequence[np.ndarray], seconds: float | None) -> None:
        """Run for so many seconds, by default as the device needs it, without timing it."""
        batch, on_gpu = self.found.batch, self.found.device != "cpu"
        if seconds is None:
            seconds = GPU_WARM_UP_SECONDS if on_gpu else WARM_UP_SECONDS
        least = len(images) if on_gpu else 1
        if self.streams is None:
            _run(self.detector, images, batch, seconds, least)
        else:
            self.streams.run(lambda detector, turn: _time_one(detector, _pick(images, turn, batch)), seconds, least)

    def take_turn(self, images: Sequence[np.ndarray]) -> None:
        """Run for the length of a turn, and add what it took."""
        batch, on_gpu = self.found.batch, self.found.device != "cpu"
        if self.streams is not None:
            samples, seconds = self.streams.run(
                lambda detector, turn: _time_one(detector, _pick(images, self.found.count + turn, batch)),
                STREAMS_TURN_SECONDS,
                uncounted=GPU_UNCOUNTED_SECONDS if on_gpu else 0.0,
            )
            for times, detections in samples:
                self._add(times, detections)
            self.found.seconds += seconds
            return
        _run(self.detector, images, batch, GPU_UNCOUNTED_SECONDS if on_gpu else 0.0)
        begin = time.perf_counter()
        while time.perf_counter() - begin < (GPU_TURN_SECONDS if on_gpu else TURN_SECONDS):
            self._add(*_time_one(self.detector, _pick(images, self.found.count, batch)))
        self.found.seconds += time.perf_counter() - begin

    def _add(self, times: dict[str, float], detections: int) -> None:
        for stage, milliseconds in times.items():
            self.found.samples.setdefault(stage, []).append(milliseconds)
        self.found.detections += detections


def differences(detectors: Sequence[Detector]) -> list[str]:
    """The settings in which a detector does other work than the first one, by name, with both values."""
    found = []
    first = detectors[0].manifest.to_dict()
    for detector in detectors[1:]:
        other = detector.manifest.to_dict()
        differing = [
            f"{part}.{key}: {first[part].get(key)} and {other[part].get(key)}"
            for part in WORK
            for key in sorted(first[part].keys() | other[part].keys())
            if key not in NOT_WORK and _differ(key, first[part].get(key), other[part].get(key))
        ]
        if len(first["classes"]) != len(other["classes"]):
            differing.append(f"classes: {len(first['classes'])} and {len(other['classes'])}")
        if differing:
            found.append(f"{detectors[0].backend.path} and {detector.backend.path}: {'; '.join(differing)}")
    return found


def _differ(key: str, one: object, other: object) -> bool:
    # A file of before schema 4 does not say how many proposals it keeps.
    return one != other and not (key == "proposals" and None in (one, other))


def check_comparable(detectors: Sequence[Detector]) -> None:
    """Refuse to compare detectors that do different work.

    Raises:
        DeployError: names the settings that differ.
    """
    found = differences(detectors)
    if found:
        raise DeployError(
            f"these do different work and cannot be compared (--force does it all the same): {'. '.join(found)}"
        )


def random_images(size: tuple[int, int], count: int = 4, seed: int = 0) -> list[np.ndarray]:
    """Seeded BGR uint8 images of `size` (height, width): smooth blobs, nearer to a photograph than noise."""
    generator = np.random.default_rng(seed)
    height, width = size
    coarse = [generator.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8) for _ in range(count)]
    return [cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC) for small in coarse]


def _facts(detector: Detector) -> dict[str, Any]:
    backend = detector.backend
    return {
        "backend": backend.name,
        "path": str(backend.path),
        "size_bytes": backend.size_bytes,
        "device": backend.device,
        "precision": detector.manifest.precision,
    }


def _pick(images: Sequence[np.ndarray], turn: int, batch: int) -> list[np.ndarray]:
    return [images[(turn * batch + place) % len(images)] for place in range(batch)]


def _run(detector: Detector, images: Sequence[np.ndarray], batch: int, seconds: float, least: int = 1) -> None:
    """Run batches for so many seconds, at least so many, without timing them."""
    begin = time.perf_counter()
    done = 0
    while done < least or time.perf_counter() - begin < seconds:
        _time_one(detector, _pick(images, done, batch))
        done += 1


def _time_one(detector: Detector, images: Sequence[np.ndarray]) -> tuple[dict[str, float], int]:
    """Milliseconds of each stage for one batch, and the number of detections."""
    begin = time.perf_counter()
    prepared = [detector.prepare(image) for image in images]
    feed = detector.feed(*prepared)
    prepared_at = time.perf_counter()
    outputs = detector.backend.infer(feed)
    inferred_at = time.perf_counter()
    detections = sum(len(detector.select(outputs, one, place)) for place, one in enumerate(prepared))
    end = time.perf_counter()
    seconds = (prepared_at - begin, inferred_at - prepared_at, end - inferred_at, end - begin)
    times = {stage: 1e3 * value for stage, value in zip(STAGES, seconds, strict=True)}
    times.update(detector.backend.device_milliseconds)
    if detector.backend.enqueue_seconds is not None:
        times[ENQUEUE] = 1e3 * detector.backend.enqueue_seconds
    return times, detections
