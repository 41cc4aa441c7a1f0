"""What an evaluation or a run found, as typed objects that print themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

# The 12 numbers of the COCO protocol, in the order of `COCOeval.stats`:
# name, title, IoU, area, detections per image
_COCO_ROWS = (
    ("bbox_mAP", "Precision", "AP", "0.50:0.95", "all", 100),
    ("bbox_mAP_50", "Precision", "AP", "0.50", "all", 100),
    ("bbox_mAP_75", "Precision", "AP", "0.75", "all", 100),
    ("bbox_mAP_s", "Precision", "AP", "0.50:0.95", "small", 100),
    ("bbox_mAP_m", "Precision", "AP", "0.50:0.95", "medium", 100),
    ("bbox_mAP_l", "Precision", "AP", "0.50:0.95", "large", 100),
    ("bbox_AR_1", "Recall", "AR", "0.50:0.95", "all", 1),
    ("bbox_AR_10", "Recall", "AR", "0.50:0.95", "all", 10),
    ("bbox_AR_100", "Recall", "AR", "0.50:0.95", "all", 100),
    ("bbox_AR_s", "Recall", "AR", "0.50:0.95", "small", 100),
    ("bbox_AR_m", "Recall", "AR", "0.50:0.95", "medium", 100),
    ("bbox_AR_l", "Recall", "AR", "0.50:0.95", "large", 100),
)
COCO_METRICS = tuple(row[0] for row in _COCO_ROWS)


@dataclass(frozen=True)
class CocoResult:
    """COCO box metrics of one detector on one split.

    Numbers are in [0, 1]; -1 is pycocotools' "nothing of that size in the annotations". `str()` gives pycocotools' own
    twelve lines.
    """

    metrics: Mapping[str, float]  # the names of COCO_METRICS
    per_class: Mapping[str, float | None]  # AP at IoU 0.50:0.95; None where the split has no box of that class
    split: str
    images: int
    detections: int
    seconds: float  # inference and evaluation together

    @classmethod
    def from_stats(
        cls,
        stats: Sequence[float],
        per_class: Mapping[str, float | None],
        *,
        split: str,
        images: int,
        detections: int,
        seconds: float,
    ) -> CocoResult:
        """The result of `COCOeval.stats` (12 numbers)."""
        metrics = dict(zip(COCO_METRICS, (float(value) for value in stats), strict=True))
        return cls(metrics, dict(per_class), split, images, detections, seconds)

    @property
    def mean_average_precision(self) -> float:
        """AP averaged over IoU 0.50:0.95 and classes, in [0, 1]."""
        return self.metrics["bbox_mAP"]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = (
            f" {f'Average {title}':<18} ({short}) @[ IoU={iou:<9} | area={area:>6s} | maxDets={most:>3d} ] = "
            f"{self.metrics[name]:0.3f}"
            for name, title, short, iou, area, most in _COCO_ROWS
        )
        return "\n".join(lines)

    def per_class_table(self) -> str:
        """One line a class: name and AP, `-` where the split has no box of that class."""
        width = max((len(name) for name in self.per_class), default=0)
        return "\n".join(
            f" {name:<{width}}  {'    -' if ap is None else f'{ap:.3f}'}" for name, ap in self.per_class.items()
        )


@dataclass(frozen=True)
class RunResult:
    """What a training run measured; `result.json` in its work dir holds `to_dict()`."""

    config: str  # name of the config file
    work_dir: str
    seed: int
    distilled: bool
    epochs: int
    iterations: int
    last: Mapping[str, float]  # metrics of the last evaluation; empty without a validation split
    best: Mapping[str, float]
    best_epoch: int | None
    seconds: float  # training and evaluation, all sessions of a resumed run together
    images_per_second: float  # training only
    data_share: float  # share of the training time that was spent waiting for data, in [0, 1]
    device: str
    command: str
    started: str  # of the session that finished the run, ISO 8601 with offset
    versions: Mapping[str, str] = field(default_factory=dict)
    processes: int = 1
    skipped_steps: int = 0  # whose float16 gradients overflowed

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [f"{self.config}: {self.epochs} epochs, seed {self.seed}, {'distilled' if self.distilled else 'plain'}"]
        for name, metrics, epoch in (("last", self.last, self.epochs), ("best", self.best, self.best_epoch)):
            if metrics:
                numbers = "  ".join(f"{key.removeprefix('bbox_')} {metrics[key]:.4f}" for key in COCO_METRICS[:6])
                rows.append(f"  {name} (epoch {epoch}):  {numbers}")
        minutes, seconds = divmod(round(self.seconds), 60)
        rows.append(
            f"  {minutes} min {seconds:02d} s, {self.images_per_second:.1f} images/s, "
            f"{self.data_share:.0%} of it waiting for data, on {self.device}"
            + (f" x {self.processes}" if self.processes > 1 else "")
            + (f", {self.skipped_steps} steps skipped (float16 overflow)" if self.skipped_steps else "")
        )
        return "\n".join(rows)
