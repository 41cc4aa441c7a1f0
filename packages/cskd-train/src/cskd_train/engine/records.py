"""What a run says and remembers as it goes: records for each interval of steps and each evaluation, results, times."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from cskd_data.files import write_atomically
from cskd_data.results import CocoResult
from cskd_train.engine.loader import Position

Record = dict[str, Any]


class Sink(Protocol):
    """Takes the records of a run. Epochs and steps (`iter`) count from 1."""

    def train(self, record: Record) -> None:
        """Averages of some steps: epoch, iter (of the whole run), lr, time and data_time (seconds), loss terms.

        Of a distilled run also each term's share of the loss (`share_TERM`, see `engine.terms`).
        """

    def validation(self, record: Record) -> None:
        """An evaluation: epoch, iter, COCO metrics."""

    def close(self) -> None:
        """The run is over, by whatever way."""


class Recorder:
    """Gives the sinks a record of averages every `interval` steps and at the end of an epoch.

    No average spans two epochs, and a checkpoint holds the sums under way, so that a resumed run writes the records of
    an uninterrupted one.

    Attributes:
        derived: gives more numbers of a record out of its averages.
    """

    def __init__(self, interval: int, sinks: Iterable[Sink]) -> None:
        self.derived: Callable[[Mapping[str, float]], Mapping[str, float]] = lambda averages: {}
        self.interval = interval
        self.sinks = tuple(sinks)
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}  # steps that had the value: a skipped one has no gradient norm

    def step(self, position: Position, values: Mapping[str, float], lr: float, end_of_epoch: bool) -> None:
        """The step that led to `position` is done."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1
        if position.inner % self.interval and not end_of_epoch:
            return
        averages = {name: total / self.counts[name] for name, total in self.sums.items()}
        averages |= self.derived(averages)
        self.sums, self.counts = {}, {}
        for sink in self.sinks:
            sink.train({"mode": "train", "epoch": position.epoch + 1, "iter": position.step, "lr": lr, **averages})

    def validation(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        """Give the sinks the metrics of an evaluation."""
        for sink in self.sinks:
            sink.validation({"mode": "val", "epoch": epoch, "iter": step, **metrics})

    def close(self) -> None:
        """The run is over, by whatever way."""
        for sink in self.sinks:
            sink.close()


class JsonLines:
    """Appends each record to a file as one line of JSON, written at once.

    A line that cannot be written (disk full) is kept and written with the next one.

    Args:
        warn: takes why lines wait, once for each time that it begins, and in the end how many are lost.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self._file = path.open("ab", buffering=0)
        self._warn = warn
        self._pending = b""
        self._end = self._file.seek(0, os.SEEK_END)

    def train(self, record: Record) -> None:
        self._write((json.dumps(record) + "\n").encode())

    def validation(self, record: Record) -> None:
        self.train(record)

    def before_training(self, record: Record) -> None:
        """What was found out before the first step."""
        self.train({**record, "epoch": 0, "iter": 0})

    def close(self) -> None:
        if self._pending:
            self._write(b"")
        if self._pending:
            lost = self._pending.count(b"\n")
            self._warn(f"warning: {self._file.name} cannot be written; its last {lost} lines are lost")
        self._file.close()

    def _write(self, lines: bytes) -> None:
        waiting = bool(self._pending)
        self._pending += lines
        try:
            self._file.truncate(self._end)  # of a line that was cut short
            written = self._file.write(self._pending)
            if written != len(self._pending):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if not waiting:
                why = f"warning: {self._file.name} cannot be written ({error.strerror})"
                self._warn(f"{why}; its lines are kept until it can")
            return
        self._end, self._pending = self._end + written, b""


class TensorBoard:
    """Draws each number of each record over the steps, under `train/` and `val/`.

    Args:
        folder: of the event files.
        after: steps that are done; older events beyond it, of a run that is resumed from there, are hidden.
        warn: takes what keeps the drawing from being written; the run goes on without it.
    """

    def __init__(self, folder: Path, after: int, warn: Callable[[str], None]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._writer: Any = SummaryWriter(str(folder), purge_step=after + 1 if after else None)
        self._warn = warn
        self._hook, threading.excepthook = threading.excepthook, self._pass_over

    def _pass_over(self, thread: threading.ExceptHookArgs) -> None:
        """The writer's thread ends with an error that the next call here raises too: no traceback of it."""
        if not (issubclass(thread.exc_type, OSError) and type(thread.thread).__module__.startswith("tensorboard")):
            self._hook(thread)

    def train(self, record: Record) -> None:
        self._draw(record)

    def validation(self, record: Record) -> None:
        self._draw(record)

    def close(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
        threading.excepthook = self._hook

    def _draw(self, record: Record) -> None:
        if self._writer is None:
            return
        try:
            for name, value in record.items():
                if name not in ("mode", "epoch", "iter"):
                    self._writer.add_scalar(f"{record['mode']}/{name}", value, record["iter"])
            if record["mode"] == "val":
                self._writer.flush()
        except OSError as error:
            self._warn(f"warning: TensorBoard's files cannot be written ({error}); the run goes on without them")
            self._writer = None


def read_log(path: Path) -> list[Record]:
    """The records of a `log.jsonl`; a last line that a crash cut short is left out."""
    records: list[Record] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def forget_after(path: Path, step: int, evaluated: bool = True) -> None:
    """Drop the records of a log that lie after a step: a run resumed from there writes them anew.

    Args:
        evaluated: whether an evaluation at that very step counts as done.
    """
    if not path.exists():
        return
    kept = [
        json.dumps(record) + "\n"
        for record in read_log(path)
        if record["iter"] < step or (record["iter"] == step and (evaluated or record["mode"] == "train"))
    ]
    write_atomically(path, lambda file: file.write("".join(kept).encode()))


_PACKAGES = ("cskd-core", "cskd-data", "cskd-train", "torch", "mmdet", "mmcv-full", "numpy", "pycocotools")


@dataclass
class RunState:
    """Results and times so far; a sink of records, which it takes the times from.

    Args:
        batch_size: images a step, of all processes together.
    """

    batch_size: int
    best: dict[str, float] = field(default_factory=dict)  # COCO metrics of what best.pth holds
    best_epoch: int | None = None
    last: dict[str, float] = field(default_factory=dict)
    evaluated_epoch: int | None = None  # the epoch that `last` is of
    skipped: int = 0  # steps whose float16 gradients overflowed
    iterations: int = 0  # steps
    images: int = 0
    training_seconds: float = 0.0
    data_seconds: float = 0.0  # of these, spent waiting for data
    earlier_seconds: float = 0.0  # wall time of earlier sessions, up to the step that this one goes on from
    began: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Wall time of all sessions together."""
        return self.earlier_seconds + time.perf_counter() - self.began

    @property
    def images_per_second(self) -> float:
        """Of the training alone."""
        return self.images / self.training_seconds if self.training_seconds else 0.0

    @property
    def data_share(self) -> float:
        """Share of the training time that was spent waiting for data."""
        return self.data_seconds / self.training_seconds if self.training_seconds else 0.0

    def evaluated(self, result: CocoResult, epoch: int) -> bool:
        """Take in an evaluation; says whether it is better than what `best.pth` holds."""
        self.last, self.evaluated_epoch = dict(result.metrics), epoch
        return not self.best or result.mean_average_precision > self.best["bbox_mAP"]

    def best_saved(self) -> None:
        """The last evaluation is that of `best.pth`."""
        self.best, self.best_epoch = self.last, self.evaluated_epoch

    def train(self, record: Record) -> None:
        fresh = record["iter"] - self.iterations
        self.iterations = record["iter"]
        self.images += fresh * self.batch_size
        self.training_seconds += fresh * record["time"]
        self.data_seconds += fresh * record["data_time"]

    def validation(self, record: Record) -> None:
        pass

    def close(self) -> None:
        pass

    def to_data(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        data = asdict(self)
        del data["began"]
        return {**data, "earlier_seconds": self.seconds}

    @classmethod
    def from_data(cls, data: dict[str, Any], batch_size: int) -> RunState:
        """The state that an earlier session left; this one takes `batch_size` images a step."""
        images = data["iterations"] * data["batch_size"]  # where the file, of 0.1.0, does not count them
        return cls(**{"images": images, **data, "batch_size": batch_size})


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
