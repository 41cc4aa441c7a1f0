"""What an evaluation found, as a typed object that prints itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cskd_data.errors import DataError

if TYPE_CHECKING:
    from cskd_data.error_kinds import ErrorKinds

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


def covered(images: int, skipped: int) -> str:
    """`mAP over 5 of 6 images: 1 could not be used, and counted neither way`; empty where none was."""
    if not skipped:
        return ""
    return f"mAP over {images} of {images + skipped} images: {skipped} could not be used, and counted neither way"


@dataclass(frozen=True)
class CocoResult:
    """COCO box metrics of one detector on one data set.

    Numbers are in [0, 1]; -1 is pycocotools' "nothing of that size in the annotations". `str()` gives pycocotools' own
    twelve lines.
    """

    metrics: Mapping[str, float]  # the names of COCO_METRICS; empty where there was nothing to score against
    per_class: Mapping[str, float | None]  # AP at IoU 0.50:0.95; None where there is no box of that class
    split: str  # `val` or `test` of a config; empty where nothing names it
    images: int
    detections: int
    seconds: float  # inference and evaluation together
    skipped_images: int = 0  # of the data set, beside `images`: they could not be used, and count neither way
    protocol: str = ""  # what counted: `faster-coco-eval 1.8.0`; empty where nothing was scored
    errors: ErrorKinds | None = None  # what each kind of error costs, where that was asked for

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
        skipped_images: int = 0,
        protocol: str = "",
    ) -> CocoResult:
        """The result of `COCOeval.stats` (12 numbers)."""
        metrics = dict(zip(COCO_METRICS, (float(value) for value in stats), strict=True))
        return cls(metrics, dict(per_class), split, images, detections, seconds, skipped_images, protocol)

    @property
    def mean_average_precision(self) -> float:
        """AP averaged over IoU 0.50:0.95 and classes, in [0, 1]."""
        return self.metrics["bbox_mAP"]

    @property
    def coverage(self) -> str:
        """What the numbers are over, where images were skipped; else empty."""
        return covered(self.images, self.skipped_images)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; `errors` only where there are any."""
        data = asdict(self)
        if self.errors is None:
            del data["errors"]
        return data

    def __str__(self) -> str:
        if not self.metrics:
            return "no mAP: there are no annotations"
        lines = (
            f" {f'Average {title}':<18} ({short}) @[ IoU={iou:<9} | area={area:>6s} | maxDets={most:>3d} ] = "
            f"{self.metrics[name]:0.3f}"
            for name, title, short, iou, area, most in _COCO_ROWS
        )
        return "\n".join(lines)

    def per_class_table(self) -> str:
        """One line a class: name and AP, `-` where there is no box of that class."""
        width = max((len(name) for name in self.per_class), default=0)
        return "\n".join(
            f" {name:<{width}}  {'    -' if ap is None else f'{ap:.3f}'}" for name, ap in self.per_class.items()
        )

    def plot(self, path: Path | str) -> None:
        """Draw the AP of each class as bars, the mean as a line, into an image file of any kind matplotlib writes.

        Raises:
            DataError: nothing was scored, matplotlib is not installed, or the file cannot be written.
        """
        if not self.metrics:
            raise DataError(f"nothing to draw: {self}")
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise DataError("drawing needs matplotlib: python -m pip install matplotlib") from error
        names = list(self.per_class)
        values = [ap or 0.0 for ap in self.per_class.values()]
        figure = Figure(figsize=(6, 1.2 + 0.25 * len(names)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.barh(range(len(names)), values)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_xlabel("AP at IoU 0.50:0.95")
        if self.mean_average_precision >= 0:
            axes.axvline(self.mean_average_precision, color="black", label=f"mAP {self.mean_average_precision:.3f}")
            axes.legend()
        try:
            figure.savefig(path, dpi=120)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be written: {error}") from error
