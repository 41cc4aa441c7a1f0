"""What a project chooses for its user, each with its reason: sizes, schedule, batch, learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cskd_data.dataset import Dataset
from cskd_train.project.machine import Machine

DETECTORS = {"retinanet": "RetinaNet", "fcos": "FCOS", "gfl": "GFL", "faster_rcnn": "Faster R-CNN"}

ANCHORS = {"retinanet": (8, (4, 2)), "gfl": (8, (8, 4, 2)), "faster_rcnn": (4, (8, 4, 2))}
"""Detector -> finest stride, and the scales that its smallest anchor may have, in strides; FCOS has no anchors."""

SMALL_BOX = 24
"""Pixels that all but the smallest tenth of the boxes should have: three positions of the finest level of most."""

VIEWS = {False: 18000, True: 6000}
"""Images that a training should see in all, from scratch and fine-tuned. On cards (docs/results/cards.md) teacher and
student from scratch were still rising after 5,900 and 4,400."""

RATES = {False: 0.0005, True: 0.0002}
"""AdamW's learning rate for 4 images a step, from scratch and fine-tuned."""

TRAINING_BYTES = 3 * 2**30
"""Of a GPU, for one image of 1333 x 800: a student's step and a teacher's forward, as an estimate on the safe side."""


@dataclass(frozen=True)
class Choice:
    """One thing that was chosen."""

    name: str
    value: str
    why: str


def image_scale(train: Dataset, size: int | None, machine: Machine) -> tuple[tuple[int, int], str]:
    """The longer and the shorter side that images are scaled into, and why."""
    long = np.array([max(one["width"], one["height"]) for one in train.images])
    short = np.array([min(one["width"], one["height"]) for one in train.images])
    native, ratio = int(np.median(long)), float(np.median(short / long))
    if size is not None:
        longer, why = size, "as asked for"
    else:
        least, most = (640, 1333) if machine.gpu else (320, 512)
        tenth = float(np.percentile(_sides(train) / _longer_sides(train), 10))
        wanted = math.ceil(SMALL_BOX / tenth / 32) * 32
        longer = min(max(wanted, min(least, native)), most)
        reasons = {wanted: f"nine of ten boxes have {SMALL_BOX} pixels or more", native: "as large as the images are"}
        where = "a GPU" if machine.gpu else "a processor"
        limit = f"no more on {where}" if longer == most else f"no less on {where}: boxes are large"
        why = f"{reasons.get(longer, limit)}; half of the images are up to {native} long"
    return (longer, max(32, round(longer * ratio / 8) * 8)), why


def _longer_sides(dataset: Dataset) -> np.ndarray:
    """Of the image of each box."""
    sides = {one["id"]: max(one["width"], one["height"]) for one in dataset.images}
    return np.array([sides[one["image_id"]] for one in dataset.annotations if not one["iscrowd"]], float)


def _sides(dataset: Dataset) -> np.ndarray:
    """The side of the square of each box's area, in pixels of the file."""
    boxes = [one["bbox"] for one in dataset.annotations if not one["iscrowd"]]
    return np.array([math.sqrt(width * height) for _, _, width, height in boxes])


def box_sides(dataset: Dataset, scale: tuple[int, int]) -> np.ndarray:
    """As `_sides`, once images are scaled as mmdet does with `keep_ratio`."""
    factors = {
        one["id"]: min(scale[0] / max(one["width"], one["height"]), scale[1] / min(one["width"], one["height"]))
        for one in dataset.images
    }
    at = np.array([factors[one["image_id"]] for one in dataset.annotations if not one["iscrowd"]])
    return _sides(dataset) * at


@dataclass(frozen=True)
class Anchors:
    """The smallest anchor, and the boxes below it."""

    scale: int | None  # in strides; None: the detector has none
    pixels: int
    below: int
    boxes: int

    @property
    def why(self) -> str:
        what = "anchor" if self.scale else "stride"
        return f"{self.below} of {self.boxes} boxes ({self.below / self.boxes:.1%}) are below the smallest {what}"


def smallest_anchor(detector: str, sides: np.ndarray) -> Anchors:
    """The largest of the detector's scales that all but the smallest twentieth of the boxes reach."""
    if detector not in ANCHORS:
        return Anchors(None, 8, int((sides < 8).sum()), len(sides))
    stride, scales = ANCHORS[detector]
    twentieth = np.percentile(sides, 5)
    scale = next((one for one in scales if one * stride <= twentieth), scales[-1])
    return Anchors(scale, scale * stride, int((sides < scale * stride).sum()), len(sides))


def epochs(images: int, tuned: bool, longer: bool = False) -> tuple[int, str]:
    """How many times to go through the training images, and why.

    Args:
        tuned: whether the training starts from weights.
        longer: half as many again, for a deep detector from scratch.
    """
    most = 60 if tuned else 100
    number = min(max(round(VIEWS[tuned] * (1.5 if longer else 1) / images), 12), most)
    start = "from weights" if tuned else "from scratch"
    return number, f"{number * images} images in all, {start}, at least 12 and at most {most} epochs"


def decay_steps(number: int) -> list[int]:
    """The epochs after which the learning rate falls to a tenth."""
    first = round(number * 0.75)
    return [first, max(first + 1, round(number * 0.92))]


def batch(images: int, scale: Sequence[int], machine: Machine, deep: bool) -> tuple[int, str]:
    """Images a step, and why.

    Args:
        deep: the teacher is a ResNet-101.
    """
    number, why = 4, "on a processor"
    if machine.gpu:
        each = TRAINING_BYTES * scale[0] * scale[1] / (1333 * 800) * (1.3 if deep else 1)
        fitting = max(1, int(0.8 * machine.gpu_memory / each))
        number = min(16, 2 ** int(math.log2(fitting)))
        why = f"about {each / 2**30:.1f} GiB an image of {machine.gpu_memory / 2**30:.0f}"
    few = max(1, images // 4)
    return (few, f"for {images} images") if few < number else (number, why)


def workers(machine: Machine) -> tuple[int, str]:
    """Processes that load images, and why."""
    most = 8 if machine.gpu else 1
    number = min(most, machine.cores - 1)
    return number, f"{machine.cores} core{'s' if machine.cores > 1 else ''}, one of them for the training"


def precision(machine: Machine) -> tuple[str | None, str]:
    """What the config calls `amp`, and why."""
    if machine.bfloat16:
        return "bf16", f"the processor multiplies bfloat16 ({machine.bfloat16}), which is faster"
    return None, "`--amp` of a run is bfloat16" if machine.gpu else "the processor does not multiply bfloat16"


def learning_rate(images: int, tuned: bool) -> tuple[float, str]:
    """AdamW's rate, which grows with the root of the images a step (Malladi et al. 2022), and why."""
    rate = float(f"{RATES[tuned] * math.sqrt(images / 4):.2g}")
    return rate, f"AdamW, {RATES[tuned]:g} for 4 images a step, with the root of their number"
