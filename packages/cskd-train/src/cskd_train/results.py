"""What a run measured, as a typed object that prints itself."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cskd_data.names import counted
from cskd_data.results import COCO_METRICS


def skipped_images(images: Mapping[str, int], skipped: Mapping[str, int]) -> str:
    """`2 images of train, 1 image of val cannot be used; mAP over 5 of 6 images`, by split."""
    lost = ", ".join(f"{counted(number, 'image')} of {split}" for split, number in skipped.items() if number)
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
    command: str  # as typed, or what a call from Python would be
    started: str  # of the session that finished the run, ISO 8601 with offset
    versions: Mapping[str, str] = field(default_factory=dict)
    processes: int = 1
    skipped_steps: int = 0  # whose float16 gradients overflowed
    images: Mapping[str, int] = field(default_factory=dict)  # by split, each once; of train those that are trained on
    skipped_images: Mapping[str, int] = field(default_factory=dict)  # by split, beside `images`: they cannot be used
    start: Mapping[str, Any] = field(default_factory=dict)  # what was taken from load_from, and what not
    teacher: Mapping[str, Any] = field(default_factory=dict)  # what it was before the first step: engine.preflight
    baseline: Mapping[str, Any] = field(default_factory=dict)  # the student alone: work_dir, seed, bbox_mAP of its best
    exportable: bool = True  # whether cskd-deploy can write a model of this kind
    improving: bool | None = None  # whether mAP still rose at the end; None where it cannot be told

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


FEWEST_EVALUATIONS = 4
RISES, LEVEL = 0.002, 0.01  # of mAP in [0, 1], over the evaluations that are looked at


def still_improving(values: Sequence[float]) -> bool | None:
    """Whether mAP was rising at the end of a run, above its own noise.

    A line is fitted (least squares) to the last quarter of the evaluations, to four at least. It rises where its slope
    is more than two standard errors above zero and it gains 0.2 points of mAP over these evaluations; it is level where
    a slope of two standard errors more would gain less than a point.

    Args:
        values: mAP in [0, 1] of each evaluation, in their order.

    Returns:
        None where it cannot be told: fewer than four evaluations, or too much noise.

    Example:
        >>> still_improving([0.1, 0.14, 0.17, 0.21]), still_improving([0.2, 0.201, 0.2, 0.2])
        (True, False)
        >>> still_improving([0.2, 0.26, 0.22, 0.24]) is None
        True
    """
    if len(values) < FEWEST_EVALUATIONS:
        return None
    last = values[-max(FEWEST_EVALUATIONS, math.ceil(len(values) / 4)) :]
    places, steps = range(len(last)), len(last) - 1
    slope, first = statistics.linear_regression(places, last)
    residual = sum((value - first - slope * place) ** 2 for place, value in zip(places, last, strict=True))
    spread = sum((place - steps / 2) ** 2 for place in places)
    error = math.sqrt(residual / (len(last) - 2) / spread)
    if slope > 2 * error and slope * steps >= RISES:
        return True
    return False if (slope + 2 * error) * steps < LEVEL else None


def next_steps(result: RunResult) -> list[str]:
    """What to make of a finished run: sentences on how it compares, and on whether more epochs would help.

    mAP is compared on the whole validation split only, best with best. What is not known for it is not mentioned.
    """
    sentences = _comparison(result) if result.distilled and result.best else []
    if result.improving:
        sentences.append(f"mAP was still rising at the end; more epochs: {prolonged(result)}")
    elif result.improving is False:
        sentences.append("mAP was no longer rising: more epochs of this schedule would bring little")
    return sentences


def _comparison(result: RunResult) -> list[str]:
    student, alone = result.best["bbox_mAP"], result.baseline.get("bbox_mAP")
    teacher = result.teacher.get("val_bbox_mAP")
    compared, sentences = [], []
    if alone is not None:
        seed = result.baseline["seed"]
        folder = result.baseline["work_dir"] + (f", seed {seed}" if seed != result.seed else "")
        compared.append(f"{_points(student - alone)} the student alone ({alone:.4f}, {folder})")
    if teacher is not None:
        compared.append(f"{_points(student - teacher)} its teacher ({teacher:.4f})")
    if compared:
        sentences.append(f"mAP {student:.4f} on val: {', '.join(compared)}")
    if alone is None:
        sentences.append(f"what the distillation brings is seen beside the student alone: {without_teacher(result)}")
    elif student < alone:
        sentences.append(
            "the distillation has not helped here: try a better teacher, or lower what has the largest share of the "
            "loss (share_... in log.jsonl); other seeds say how much of the difference is chance"
        )
    return sentences


def _points(difference: float) -> str:
    """`2.1 points above`, of a difference of mAP in [0, 1]."""
    return f"{abs(100 * difference):.1f} points {'above' if difference >= 0 else 'below'}"


def prolonged(result: RunResult) -> str:
    """The command that goes on with a finished run for half as many epochs again."""
    epochs = result.epochs + max(result.epochs // 2, 1)
    return shlex.join([*_words(result, ("--epochs",), ("runner.max_epochs",)), "--resume", "--epochs", str(epochs)])


def without_teacher(result: RunResult) -> str:
    """The command that trains the student of a distilled run alone, in a folder beside it.

    Images without labels are the distillation's, as its teacher labels them: the student alone does without.
    """
    parts = ("distill", "data.unlabeled")
    words = _words(result, ("--teacher", "--teacher-checkpoint", "--work-dir"), parts)
    for part in parts[: 1 + ("unlabeled" in result.images)]:
        words += ["--set", f"{part}=None"]
    return shlex.join([*words, "--work-dir", f"{Path(result.work_dir)}_alone"])


def _words(result: RunResult, options: Sequence[str], settings: Sequence[str]) -> list[str]:
    """The command of a run as typed, or one like it, without some options and without `--set` of some settings, or of
    what is in them."""
    default = ["cskd-train", "run", result.config, "--work-dir", result.work_dir]
    words = iter(shlex.split(result.command) or default)
    kept: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        if name in (*options, "--set"):
            value = value if equals else next(words, "")
            key = value.partition("=")[0].strip()
            if name == "--set" and not any(f"{key}.".startswith(f"{one}.") for one in settings):
                kept += ["--set", value]
        elif word not in ("--resume", "--overwrite"):
            kept.append(word)
    return kept
