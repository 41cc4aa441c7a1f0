"""Latency of detectors, side by side in one run.

Each batch goes through pre-processing, inference and post-processing, each timed apart. Several detectors, each with
several batch sizes, take turns, so that a change of clock or load strikes all alike. The first batch of a turn is not
counted: the caches hold the other detector's weights then, and its threads may still be spinning. On a GPU a turn is
longer, and its first half second is not counted: an idle GPU lowers its clock, as in the turns of detectors that run on
the processor, and takes longer than a batch or two to raise it again.

Batches follow each other in one synchronous stream: each is waited for before the next begins. So images per second are
the batch over its mean latency, not what a device can do with several streams.
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

STAGES = ("preprocess", "inference", "postprocess", "total")
DEVICE_STAGES = ("h2d", "compute", "d2h")  # parts of the inference, where the backend can tell them apart
PERCENTILES = (50, 90, 95, 99)
STREAMS = 1
TURN_SECONDS, WARM_UP_SECONDS = 0.5, 0.2
GPU_TURN_SECONDS, GPU_WARM_UP_SECONDS, GPU_UNCOUNTED_SECONDS = 1.0, 2.0, 0.5
# Of the manifest: what a file asks of the images and of NMS, for figures side by side to mean the same work.
# A graph that takes pixels does the same work as one that takes normalised values: part of it elsewhere.
WORK = ("preprocessing", "postprocessing", "graph")
NOT_WORK = ("input", "batch")


@dataclass
class Latencies:
    """What was measured of one detector with one batch size, in milliseconds a batch."""

    backend: str
    path: str
    size_bytes: int
    samples: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})
    detections: int = 0
    batch: int = 1
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
        """The file's name, the backend, the device and the batch size."""
        named = label(self.path.rpartition("/")[2], self.backend, self.device)
        return named + (f" batch {self.batch}" if self.batch > 1 else "")

    def summary(self, stage: str) -> dict[str, float]:
        """mean, p50, p90, p95 and p99 of a stage in milliseconds."""
        values = np.array(self.samples[stage])
        quantiles = np.percentile(values, PERCENTILES)
        named = {f"p{place}": float(value) for place, value in zip(PERCENTILES, quantiles, strict=True)}
        return {"mean": float(values.mean()), **named}

    @property
    def images_per_second(self) -> float:
        """Of the whole, in one synchronous stream: the batch over its mean latency."""
        return 1e3 * self.batch / self.summary("total")["mean"]

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
            "streams": STREAMS,  # of the rates below: batches one after the other
            "milliseconds": {stage: self.summary(stage) for stage in self.stages},
            "images_per_second": self.images_per_second,
            "inferences_per_second": 1e3 / self.summary("inference")["mean"],
            "overhead": self.overhead,
            "detections_per_image": self.detections / (self.count * self.batch),
            "cold_start": None if self.cold is None else self.cold.to_dict(),
        }


def measure(
    detectors: Sequence[Detector],
    images: Sequence[np.ndarray],
    *,
    batches: Sequence[int] = (1,),
    duration: float = 3.0,
    iterations: int = 10,
    warmup: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Latencies]:
    """Time detectors in turns.

    Args:
        detectors: whether they do the same work, `differences` tells.
        images: decoded BGR images, taken one after the other; each detector sees the same ones. For batches of several
            they must have one size.
        batches: sizes of a batch; each detector is timed with each of them.
        duration: each detector runs for at least so many seconds with each batch size,
        iterations: and for at least so many batches.
        warmup: each first runs for so many seconds, at least once, without being timed; by default `WARM_UP_SECONDS`,
            on a GPU `GPU_WARM_UP_SECONDS`. A GPU sees every image then, for what it prepares anew for each size.
        progress: called with (seconds measured, seconds to measure).

    Returns:
        Those of the first batch size in the order of the detectors, then those of the second.

    Raises:
        DeployError: a detector cannot take batches of this size.
    """
    subjects = [(detector, Latencies(**_facts(detector), batch=batch)) for batch in batches for detector in detectors]
    for detector, found in subjects:
        check_batch(detector, found.batch)
    for detector, found in subjects:
        on_gpu = found.device != "cpu"
        seconds = (GPU_WARM_UP_SECONDS if on_gpu else WARM_UP_SECONDS) if warmup is None else warmup
        _run(detector, images, found.batch, seconds, len(images) if on_gpu else 1)
    measured = [0.0] * len(subjects)
    total = max(math.ceil(duration * len(subjects)), 1)
    while not all(
        seconds >= duration and found.count >= iterations
        for seconds, (_, found) in zip(measured, subjects, strict=True)
    ):
        for place, (detector, found) in enumerate(subjects):
            on_gpu = found.device != "cpu"
            _run(detector, images, found.batch, GPU_UNCOUNTED_SECONDS if on_gpu else 0.0)
            begin = time.perf_counter()
            while time.perf_counter() - begin < (GPU_TURN_SECONDS if on_gpu else TURN_SECONDS):
                times, detections = _time_one(detector, _pick(images, found.count, found.batch))
                for stage, milliseconds in times.items():
                    found.samples.setdefault(stage, []).append(milliseconds)
                found.detections += detections
            measured[place] += time.perf_counter() - begin
            progress(int(min(sum(measured), total - 1)), total)
    progress(total, total)
    return [found for _, found in subjects]


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


def check_batch(detector: Detector, batch: int) -> None:
    """Refuse a batch that a graph of a fixed batch size cannot take.

    Raises:
        DeployError: names both sizes.
    """
    fixed = detector.backend.batch_size
    if fixed not in (None, batch):
        raise DeployError(
            f"{detector.backend.path} takes batches of {fixed} only, asked for {batch}: "
            "export it with --batch any, or leave --batch out"
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
    return {**times, **detector.backend.device_milliseconds}, detections
