"""How long a measurement goes on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cskd_deploy.measure.bench import Latencies

# MLPerf Inference Rules, "Scenarios": at least 600 s; the single-stream scenario reports the 90th percentile of
# latency, the offline scenario the throughput of at least 24576 samples. At least 1024 queries in the single-stream
# scenario: Reddi et al., "MLPerf Inference Benchmark", 2020, table IV, and loadgen's `SingleStream.min_query_count`.
MLPERF_SECONDS = 600.0
MLPERF_QUERIES = 1024
MLPERF_SAMPLES = 24576
SINGLE_STREAM, OFFLINE = "single-stream", "offline"


@dataclass(frozen=True)
class RunLength:
    """The least that is measured."""

    seconds: float
    batches: int
    scenario: str | None = None  # of MLPerf, whose length it is

    @classmethod
    def of(cls, seconds: float, batches: int, batch: int, streams: int, mlperf: bool) -> RunLength:
        """What is asked for, or the length of MLPerf's runs: single-stream of one image at a time, offline of more."""
        if not mlperf:
            return cls(seconds, batches)
        if batch == streams == 1:
            return cls(MLPERF_SECONDS, MLPERF_QUERIES, SINGLE_STREAM)
        return cls(MLPERF_SECONDS, math.ceil(MLPERF_SAMPLES / batch), OFFLINE)

    def reached(self, found: Latencies) -> bool:
        """Whether so much has been measured."""
        return found.seconds >= self.seconds and found.count >= self.batches
