"""Latency of detectors, side by side in one run.

Each image goes through pre-processing, inference and post-processing, each timed apart. Several detectors take turns,
so that a change of clock or load strikes all alike. The first image of a turn is not counted: the caches hold the other
detector's weights then, and its threads may still be spinning.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from cskd_deploy.detector import Detector
from cskd_deploy.errors import DeployError

STAGES = ("preprocess", "inference", "postprocess", "total")
TURN_SECONDS = 0.5


@dataclass
class Latencies:
    """What was measured of one detector, in milliseconds an image."""

    backend: str
    path: str
    size_bytes: int
    samples: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})
    detections: int = 0

    @property
    def count(self) -> int:
        return len(self.samples["total"])

    def summary(self, stage: str) -> dict[str, float]:
        """mean, p50, p90 and p99 of a stage in milliseconds."""
        values = np.array(self.samples[stage])
        p50, p90, p99 = np.percentile(values, (50, 90, 99))
        return {"mean": float(values.mean()), "p50": float(p50), "p90": float(p90), "p99": float(p99)}

    @property
    def images_per_second(self) -> float:
        """Of the whole, one image at a time."""
        return 1e3 / self.summary("total")["mean"]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; times in milliseconds."""
        return {
            "backend": self.backend,
            "path": self.path,
            "size_bytes": self.size_bytes,
            "images": self.count,
            "milliseconds": {stage: self.summary(stage) for stage in STAGES},
            "images_per_second": self.images_per_second,
            "inferences_per_second": 1e3 / self.summary("inference")["mean"],
            "detections_per_image": self.detections / self.count,
        }


def measure(
    detectors: Sequence[Detector],
    images: Sequence[np.ndarray],
    *,
    duration: float = 3.0,
    iterations: int = 10,
    warmup: float = 0.2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Latencies]:
    """Time detectors in turns.

    Args:
        detectors: The first is the one in question; all must have the same pre- and post-processing.
        images: decoded BGR images, taken one after the other; each detector sees the same ones.
        duration: each detector runs for at least so many seconds,
        iterations: and for at least so many images.
        warmup: each detector first runs for so many seconds, at least once, without being timed.
        progress: called with (seconds measured, seconds to measure).

    Raises:
        DeployError: the detectors do different work around their inference.
    """
    check_comparable(detectors)
    for detector in detectors:
        begin = time.perf_counter()
        while True:
            detector.detect(images[0])
            if time.perf_counter() - begin >= warmup:
                break
    found = [Latencies(d.backend.name, str(d.backend.path), d.backend.size_bytes) for d in detectors]
    measured = [0.0] * len(detectors)
    total = max(math.ceil(duration * len(detectors)), 1)
    while not all(
        seconds >= duration and one.count >= iterations for seconds, one in zip(measured, found, strict=True)
    ):
        for place, detector in enumerate(detectors):
            detector.detect(images[found[place].count % len(images)])
            begin = time.perf_counter()
            while time.perf_counter() - begin < TURN_SECONDS:
                _time_one(detector, images[found[place].count % len(images)], found[place])
            measured[place] += time.perf_counter() - begin
            progress(int(min(sum(measured), total - 1)), total)
    progress(total, total)
    return found


def check_comparable(detectors: Sequence[Detector]) -> None:
    """Refuse to compare detectors that do different work.

    Raises:
        DeployError: names the settings that differ.
    """
    first = detectors[0].manifest.to_dict()
    for detector in detectors[1:]:
        other = detector.manifest.to_dict()
        differing = [
            f"{part}.{key}: {first[part][key]} and {other[part][key]}"
            for part in ("preprocessing", "postprocessing")
            for key in first[part]
            if first[part][key] != other[part][key]
        ]
        if differing:
            raise DeployError(
                f"{detectors[0].backend.path} and {detector.backend.path} do different work and cannot be compared: "
                + "; ".join(differing)
            )


def random_images(size: tuple[int, int], count: int = 4, seed: int = 0) -> list[np.ndarray]:
    """Seeded BGR uint8 images of `size` (height, width): smooth blobs, nearer to a photograph than noise."""
    generator = np.random.default_rng(seed)
    height, width = size
    coarse = [generator.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8) for _ in range(count)]
    return [cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC) for small in coarse]


def _time_one(detector: Detector, image: np.ndarray, found: Latencies) -> None:
    begin = time.perf_counter()
    prepared = detector.prepare(image)
    prepared_at = time.perf_counter()
    outputs = detector.infer(prepared)
    inferred_at = time.perf_counter()
    detections = detector.select(outputs, prepared)
    end = time.perf_counter()
    times = (prepared_at - begin, inferred_at - prepared_at, end - inferred_at, end - begin)
    for stage, seconds in zip(STAGES, times, strict=True):
        found.samples[stage].append(seconds * 1e3)
    found.detections += len(detections)
