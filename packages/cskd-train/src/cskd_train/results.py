"""What a run measured, as a typed object that prints itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cskd_data.results import COCO_METRICS


def skipped_images(images: Mapping[str, int], skipped: Mapping[str, int]) -> str:
    """`2 of 12 images of train, 1 of 6 of val could not be used: mAP over 5 of 6 images`, by split."""
    lost = ", ".join(
        f"{number} of {number + images[split]} images of {split}" for split, number in skipped.items() if number
    )
    over = f"; mAP over {images['val']} of {images['val'] + skipped['val']} images" if skipped.get("val") else ""
    return f"{lost} cannot be used{over}"


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
    images: Mapping[str, int] = field(default_factory=dict)  # by split
    skipped_images: Mapping[str, int] = field(default_factory=dict)  # by split, beside `images`: they cannot be used
    start: Mapping[str, Any] = field(default_factory=dict)  # what was taken from load_from, and what not

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [f"{self.config}: {self.epochs} epochs, seed {self.seed}, {'distilled' if self.distilled else 'plain'}"]
        for name, metrics, epoch in (("last", self.last, self.epochs), ("best", self.best, self.best_epoch)):
            if metrics:
                numbers = "  ".join(f"{key.removeprefix('bbox_')} {metrics[key]:.4f}" for key in COCO_METRICS[:6])
                rows.append(f"  {name} (epoch {epoch}):  {numbers}")
        if any(self.skipped_images.values()):
            rows.append(f"  skipped: {skipped_images(self.images, self.skipped_images)}")
        minutes, seconds = divmod(round(self.seconds), 60)
        rows.append(
            f"  {minutes} min {seconds:02d} s, {self.images_per_second:.1f} images/s, "
            f"{self.data_share:.0%} of it waiting for data, on {self.device}"
            + (f" x {self.processes}" if self.processes > 1 else "")
            + (f", {self.skipped_steps} steps skipped (float16 overflow)" if self.skipped_steps else "")
        )
        return "\n".join(rows)
