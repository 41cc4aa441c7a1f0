"""What an evaluation found, as typed objects that print themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cskd_data import CocoResult

_TITLES = {
    "bbox_mAP": "AP   IoU 0.50:0.95",
    "bbox_mAP_50": "AP   IoU 0.50",
    "bbox_mAP_75": "AP   IoU 0.75",
    "bbox_mAP_s": "AP   small",
    "bbox_mAP_m": "AP   medium",
    "bbox_mAP_l": "AP   large",
    "bbox_AR_1": "AR   1 detection",
    "bbox_AR_10": "AR   10 detections",
    "bbox_AR_100": "AR   100 detections",
    "bbox_AR_s": "AR   small",
    "bbox_AR_m": "AR   medium",
    "bbox_AR_l": "AR   large",
}
NONE = -1.0  # pycocotools: there is no such box in the annotations


@dataclass(frozen=True)
class EvaluationResult:
    """The metrics of a model or a predictions file, and of the reference it is held against."""

    model: str
    metrics: CocoResult
    reference: str | None = None
    reference_metrics: CocoResult | None = None
    file_sha256: str | None = None  # of the model
    reference_sha256: str | None = None

    @property
    def drop(self) -> float | None:
        """How many points (hundredths) of mAP the model lies below its reference; below zero where it lies above."""
        if self.reference_metrics is None:
            return None
        return 100 * (self.reference_metrics.mean_average_precision - self.metrics.mean_average_precision)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        reference = None if self.reference_metrics is None else self.reference_metrics.to_dict()
        return {
            "model": self.model,
            "file_sha256": self.file_sha256,
            **self.metrics.to_dict(),
            "reference": self.reference,
            "reference_sha256": self.reference_sha256,
            "reference_metrics": reference,
            "drop_points": self.drop,
        }

    def rows(self) -> list[tuple[str, list[float | None]]]:
        """Title and points of each metric and each class: the model's, and the reference's if there is one."""
        tables = [self.metrics] + ([] if self.reference_metrics is None else [self.reference_metrics])
        rows = [(title, [_points(table.metrics[key]) for table in tables]) for key, title in _TITLES.items()]
        rows += [
            (f"AP   {name}", [_points(table.per_class.get(name)) for table in tables])
            for name in self.metrics.per_class
        ]
        return rows

    def __str__(self) -> str:
        if not self.metrics.metrics:
            return str(self.metrics)
        rows = self.rows()
        width = max(len(title) for title, _ in rows)
        header = f"{'':{width}}      model" + ("  reference     drop" if self.reference_metrics else "")
        lines = [header]
        for place, (title, values) in enumerate(rows):
            if place == len(_TITLES):
                lines.append("-" * len(header))
            cells = "".join(f"{'-' if value is None else format(value, '.2f'):>11}" for value in values)
            if len(values) == 2:
                drop = None if values[0] is None or values[1] is None else values[1] - values[0]
                cells += f"{'-' if drop is None else format(drop, '+.2f'):>9}"
            lines.append(f"{title:{width}}{cells}")
        return "\n".join(lines)


def _points(value: float | None) -> float | None:
    return None if value is None or value == NONE else 100 * value
