"""What a benchmark found: as plain data, and as the table that a person reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cskd_deploy.measure.bench import ENQUEUE, Latencies

ENOUGH_FOR_P99 = 100
ENOUGH_TO_BE_STABLE = 20
LARGEST_SPREAD = 1.2  # of p90 over the median, in one stream
REFERENCE = "pytorch"
WIDTH = 110
RATE, RATE_ONE_STREAM = "images/s", "images/s, one stream"


@dataclass(frozen=True)
class BenchReport:
    """The figures of one run, and what they were taken on."""

    results: Sequence[Latencies]
    environment: Mapping[str, Any]
    images: str
    input_size: tuple[int, int]  # (height, width)
    notes: Sequence[str]

    @property
    def baseline(self) -> Latencies | None:
        """What the others are held against: the first PyTorch result, else the first model; None of a single model."""
        if len({(one.path, one.backend) for one in self.results}) < 2:
            return None
        return next((one for one in self.results if one.backend == REFERENCE), self.results[0])

    def speedup(self, result: Latencies) -> dict[str, float] | None:
        """How many times faster a result's medians are than the baseline's with the same batch size and streams.

        None between devices: that would be a ratio of the devices, whatever the files are.
        """
        other = self._baseline_of(result)
        if other is None or other.device != result.device:
            return None
        return {stage: other.summary(stage)["p50"] / result.summary(stage)["p50"] for stage in ("inference", "total")}

    def _baseline_of(self, result: Latencies) -> Latencies | None:
        baseline = self.baseline
        if baseline is None:
            return None
        named = (baseline.path, baseline.backend, result.batch, result.streams)
        others = (one for one in self.results if one is not result)
        return next((one for one in others if (one.path, one.backend, one.batch, one.streams) == named), None)

    @property
    def all_notes(self) -> list[str]:
        """Those given, and why there is no ratio where devices differ."""
        without = []
        for one in self.results:
            other = self._baseline_of(one)
            if other is not None and other.device != one.device:
                without.append(f"no ratio of {one.label} to {other.label}: they ran on two devices (--device)")
        return [*self.notes, *without]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; `speedup` at the top is that of the first result that has one.

        Rates are those of `streams` synchronous streams, one batch at a time.
        """
        return {
            "environment": dict(self.environment),
            "images": self.images,
            "input_size": list(self.input_size),
            "baseline": None if self.baseline is None else self.baseline.label,
            "results": [{**one.to_dict(), "speedup": self.speedup(one)} for one in self.results],
            "speedup": next(filter(None, map(self.speedup, self.results)), None),
            "notes": self.all_notes,
        }

    def print(self) -> None:
        """The table, then a line for each result."""
        for line in self._head():
            click.echo(line)
        console = Console(width=WIDTH, highlight=False)
        console.print(self._table())
        for one in self.results:
            click.echo(_cost(one))
        for one in self.results:
            speedup = self.speedup(one)
            if speedup is not None and self.baseline is not None:
                click.echo(
                    f"{one.label}: {speedup['inference']:.2f} times as fast as {self.baseline.label} in inference, "
                    f"{speedup['total']:.2f} times in the whole (medians)"
                )
        for one in self.results:
            if one.mlperf is not None:
                click.echo(f"{one.label}: {_as_long_as_mlperf(one)}")
        for note in self.all_notes:
            click.echo(f"note: {note}")

    def _head(self) -> list[str]:
        facts = self.environment
        versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        clocks = ", ".join(_clock(name, value) for name, value in facts["clocks"].items())
        machine = [facts["processor"], f"{facts['threads']} threads", *([clocks] if clocks else []), *facts["gpus"]]
        named = {"board": "{}", "power_mode": "power mode {}", "gpu_driver": "NVIDIA driver {}", "cuda": "CUDA {}"}
        machine += [text.format(facts[name]) for name, text in named.items() if facts.get(name)]
        height, width = self.input_size
        return [
            f"{', '.join(machine)}; {versions}",
            f"input {height} x {width} (height x width), {self.images}; milliseconds a batch",
        ]

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        rate_title = RATE if any(one.streams > 1 for one in self.results) else RATE_ONE_STREAM
        for title in ("model", "stage", "mean", "p50", "p90", "p95", "p99", rate_title):
            left = title in ("model", "stage")
            table.add_column(title, justify="left" if left else "right", no_wrap=True, overflow="ellipsis")
        for one in self.results:
            work = f"batch {one.batch}" + (f", {one.streams} streams" if one.streams > 1 else "")
            labels = [one.path.rpartition("/")[2], f"{one.backend} {one.device}", one.precision, work]
            for place, stage in enumerate(one.stages):
                numbers = one.summary(stage)
                rate = _rate(one, stage, numbers["mean"])
                # As text: a file may have any name, and rich reads brackets as colours.
                label = Text(labels[place] if place < len(labels) else "")
                table.add_row(label, stage, *(f"{value:.2f}" for value in numbers.values()), rate)
        return table


def _clock(name: str, value: float | str) -> str:
    """What `environment.clocks` found, in words."""
    words = {"mhz": "{:.0f} MHz", "max_mhz": "at most {:.0f} MHz"}
    return words.get(name, f"{name} {{}}").format(value)


def _rate(one: Latencies, stage: str, mean: float) -> str:
    """Images a second of a stage in one stream, of the whole in several."""
    if stage == "total":
        return f"{one.images_per_second:.1f}"
    return f"{1e3 * one.batch / mean:.1f}" if stage == "inference" and one.streams == 1 else ""


def _as_long_as_mlperf(one: Latencies) -> str:
    assert one.mlperf is not None
    value = f"p90 {one.mlperf['p90_ms']:.2f} ms" if "p90_ms" in one.mlperf else f"{one.images_per_second:.1f} images/s"
    return (
        f"{value} over {one.seconds:.0f} s and {one.count * one.batch} images, as long as MLPerf's {one.scenario} "
        "scenario asks for (not a result of MLPerf: its harness, models and data are others)"
    )


def notes_on_samples(results: Sequence[Latencies]) -> list[str]:
    """What the samples are too few for, and what their spread or their parts say of how they were taken."""
    notes = []
    fewest = min(one.count for one in results)
    if fewest < ENOUGH_FOR_P99:
        notes.append(f"p99 rests on {fewest} batches only: raise --duration or --iterations")
    for one in results:
        notes += _notes_on_spread(one)
        notes += _notes_on_device(one)
    return notes


def _notes_on_spread(one: Latencies) -> list[str]:
    whole = one.summary("total")
    if one.streams > 1 or one.count < ENOUGH_TO_BE_STABLE or whole["p90"] <= LARGEST_SPREAD * whole["p50"]:
        return []
    clock = "lock its clock (nvidia-smi --lock-gpu-clocks)" if one.device == "cuda" else "hold the clock (cpupower)"
    return [
        f"{one.label} is unstable, p90 is {whole['p90'] / whole['p50']:.2f} times p50: close other programs, {clock}, "
        "or raise --iterations; images of several sizes spread by themselves"
    ]


def _notes_on_device(one: Latencies) -> list[str]:
    medians = {stage: one.summary(stage)["p50"] for stage in one.stages}
    compute = medians.get("compute", float("inf"))
    notes = []
    if medians.get(ENQUEUE, 0.0) > compute:
        notes.append(
            f"{one.label}: the processor takes {medians[ENQUEUE]:.2f} ms to enqueue what the GPU computes in "
            f"{compute:.2f} ms, so the rate may be the processor's: try --cuda-graph"
        )
    for stage in ("h2d", "d2h"):
        if medians.get(stage, 0.0) > compute:
            notes.append(
                f"{one.label}: copies ({stage}, {medians[stage]:.2f} ms) take longer than {compute:.2f} ms of compute, "
                "so the rate may be that of the bus; raw pixels (export --input uint8) are a quarter in size"
            )
    return notes


def _cost(one: Latencies) -> str:
    images = one.count * one.batch
    parts = [
        f"{one.size_bytes / 1e6:.1f} MB",
        f"{images} images timed",
        f"{one.detections / images:.1f} detections an image",
        f"pre- and post-processing {100 * one.overhead:.1f} % of the whole",
    ]
    if one.cold is not None:
        seconds = (one.cold.load_ms + one.cold.first_ms) / 1e3
        parts += [f"first detections after {seconds:.2f} s", f"host memory at most {one.cold.peak_bytes / 1e6:.0f} MB"]
        if one.cold.gpu_bytes is not None:
            parts.append(f"GPU memory {one.cold.gpu_bytes / 1e6:.0f} MB")
    return f"{one.label}: {', '.join(parts)}"
