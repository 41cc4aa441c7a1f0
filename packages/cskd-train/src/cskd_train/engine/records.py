"""What a run says as it goes: one record for each logged iteration and each evaluation, given to every sink."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from mmcv.runner import Hook

from cskd_train.files.atomic import write_atomically

Record = dict[str, Any]


class Sink(Protocol):
    """Takes the records of a run. Epochs and iterations count from 1."""

    def train(self, record: Record) -> None:
        """A logged iteration: epoch, iter (of the whole run), lr, time and data_time (seconds), loss terms."""

    def validation(self, record: Record) -> None:
        """An evaluation: epoch, iter, COCO metrics."""

    def close(self) -> None:
        """The run is over, by whatever way."""


class Recorder(Hook):
    """Gives the sinks a record of averages every `interval` iterations and at the end of an epoch.

    No average spans two epochs, so that a resumed run writes the records of an uninterrupted one.
    """

    def __init__(self, interval: int, sinks: Iterable[Sink]) -> None:
        self.interval = interval
        self.sinks = tuple(sinks)

    def after_train_iter(self, runner: Any) -> None:
        if not self.every_n_inner_iters(runner, self.interval) and not self.end_of_epoch(runner):
            return
        runner.log_buffer.average()
        averages = {name: float(value) for name, value in runner.log_buffer.output.items()}
        runner.log_buffer.clear()
        record = {"mode": "train", "epoch": runner.epoch + 1, "iter": runner.iter + 1, "lr": runner.current_lr()[0]}
        for sink in self.sinks:
            sink.train({**record, **averages})

    def validation(self, epoch: int, iteration: int, metrics: Mapping[str, float]) -> None:
        """Give the sinks the metrics of an evaluation."""
        for sink in self.sinks:
            sink.validation({"mode": "val", "epoch": epoch, "iter": iteration, **metrics})


class JsonLines:
    """Appends each record to a file as one line of JSON, flushed at once."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def train(self, record: Record) -> None:
        self._write(record)

    def validation(self, record: Record) -> None:
        self._write(record)

    def close(self) -> None:
        self._file.close()

    def _write(self, record: Record) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()


class TensorBoard:
    """Draws each number of each record over the iterations, under `train/` and `val/`.

    Args:
        folder: of the event files.
        after: iterations that are done; older events beyond it, of a run that is resumed from there, are hidden.
    """

    def __init__(self, folder: Path, after: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._writer = SummaryWriter(str(folder), purge_step=after + 1 if after else None)

    def train(self, record: Record) -> None:
        self._draw(record)

    def validation(self, record: Record) -> None:
        self._draw(record)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _draw(self, record: Record) -> None:
        for name, value in record.items():
            if name not in ("mode", "epoch", "iter"):
                self._writer.add_scalar(f"{record['mode']}/{name}", value, record["iter"])


def read_log(path: Path) -> list[Record]:
    """The records of a `log.jsonl`; a last line that a crash cut short is left out."""
    records: list[Record] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def forget_after(path: Path, iteration: int) -> None:
    """Drop the records of a log that lie after an iteration: a run resumed from there writes them anew."""
    if path.exists():
        kept = [json.dumps(record) + "\n" for record in read_log(path) if record["iter"] <= iteration]
        write_atomically(path, lambda file: file.write("".join(kept).encode()))
