"""A model in several streams at the same time: what a device can do when one batch need not wait for another.

Each stream is a copy of the model with a thread of its own, in which it is loaded, run and closed: a session of ONNX
Runtime with its part of the cores, or an engine with its context and CUDA stream. Within a stream each batch is waited
for before the next one begins, pre- and post-processing included.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import TypeVar

from cskd_deploy.backends.base import Backend
from cskd_deploy.detect.detector import Detector

Sample = TypeVar("Sample")
Value = TypeVar("Value")


class Streams:
    """A context manager; loaded on entering.

    Args:
        backends: one for each stream, not loaded yet.
    """

    def __init__(self, backends: Sequence[Backend]) -> None:
        self._backends = backends
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix=f"stream-{place}") for place in range(len(backends))]
        self._detectors: list[Detector] = []

    def __len__(self) -> int:
        return len(self._backends)

    @property
    def first(self) -> Detector:
        """The first stream's; for what all have in common."""
        return self._detectors[0]

    def __enter__(self) -> Streams:
        try:
            for backend, thread in zip(self._backends, self._threads, strict=True):
                thread.submit(backend.load).result()
                self._detectors.append(Detector(backend))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        closing = [
            thread.submit(detector.close) for detector, thread in zip(self._detectors, self._threads, strict=False)
        ]
        for thread in self._threads:
            thread.shutdown()
        for one in closing:
            one.result()

    def run(
        self, once: Callable[[Detector, int], Sample], seconds: float, least: int = 0, uncounted: float = 0.0
    ) -> tuple[list[Sample], float]:
        """Run all streams together.

        Args:
            once: runs a batch; given its stream's detector, and a number that no other call gets.
            seconds: no stream begins a batch later,
            least: but each runs so many.
            uncounted: each first runs for so many seconds, at least once, without being counted.

        Returns:
            What `once` gave, and the seconds by the clock from the start of the first batch to the end of the last.
        """
        turns = itertools.count()
        together = threading.Barrier(len(self))

        def stream(detector: Detector) -> tuple[list[Sample], float, float]:
            try:
                begin = time.perf_counter()
                once(detector, next(turns))
                while time.perf_counter() - begin < uncounted:
                    once(detector, next(turns))
            except BaseException:
                together.abort()
                raise
            together.wait()
            begin = time.perf_counter()
            samples: list[Sample] = []
            while len(samples) < least or time.perf_counter() - begin < seconds:
                samples.append(once(detector, next(turns)))
            return samples, begin, time.perf_counter()

        running = [
            thread.submit(stream, detector) for detector, thread in zip(self._detectors, self._threads, strict=True)
        ]
        results = _results(running)
        samples = [sample for found, _, _ in results for sample in found]
        return samples, max(end for _, _, end in results) - min(begin for _, begin, _ in results)


def _results(running: Sequence[Future[Value]]) -> list[Value]:
    """The results of all; of several failures the one that broke the others off."""
    wait(running)
    failures = [error for error in (one.exception() for one in running) if error is not None]
    if failures:
        raise next((error for error in failures if not isinstance(error, threading.BrokenBarrierError)), failures[0])
    return [one.result() for one in running]
