"""What a run carries along beside its weights, from one session to the next."""

from __future__ import annotations

import platform
import time
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

from cskd_data.results import CocoResult
from cskd_train.engine.records import Record

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
