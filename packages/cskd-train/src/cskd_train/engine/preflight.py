"""Before a distilled run: is its teacher any good, seen through the run's own validation images?"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import cskd_data
from cskd_train.engine.distributed import World
from cskd_train.engine.evaluate import Detections, build_trained, detect
from cskd_train.errors import REFUSALS
from cskd_train.files.checkpoints import load_checkpoint
from cskd_train.files.config import config_from_data
from cskd_train.mm.detector import DistilledDetector
from cskd_train.tables.measured import UnreadableError
from cskd_train.tables.work_dirs import RESULT, FinishedRun, load_run, validation_of

IMAGES, SECONDS = 64, 30.0
"""The most validation images that a teacher is evaluated on before the first step, and about how long that may take."""

FLOOR = 0.05
"""A mAP below which a teacher counts as untrained, or as one for other images."""


@dataclass(frozen=True)
class TeacherCheck:
    """What was found out about a teacher; mAP in [0, 1].

    Attributes:
        mean_average_precision: on the images that were looked at.
        images, of: how many these were, of how many in the validation split.
        seconds: what that took.
        val: on the whole split, measured here or stored in its checkpoint; None where neither is the case.
        source: `measured` or `checkpoint`, where `val` comes from.
        student_alone: of the finished run of the student alone, where there is one.
        student_mean_average_precision: that student's, on the images that `compared` says.
        compared: the teacher's mAP on the same images.
        compared_images: how many these are.
    """

    checkpoint: str
    mean_average_precision: float
    images: int
    of: int
    seconds: float
    val: float | None = None
    source: str | None = None
    student_alone: Path | None = None
    student_mean_average_precision: float | None = None
    compared: float | None = None
    compared_images: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `result.json`."""
        return {
            "checkpoint": self.checkpoint,
            "bbox_mAP": self.mean_average_precision,
            "images": self.images,
            "of": self.of,
            "seconds": self.seconds,
            "val_bbox_mAP": self.val,
            "source": self.source,
        }

    @property
    def warnings(self) -> list[str]:
        """What speaks against this teacher, each with what to do."""
        found = []
        figures = [(self.mean_average_precision, self.images), *([] if self.val is None else [(self.val, self.of)])]
        lowest, images = min(figures)
        if lowest < FLOOR:
            found.append(
                f"the teacher {self.checkpoint} has mAP {lowest:.4f} on {self._images(images)}: below {FLOOR} it "
                "detects next to nothing here, and a student under it learns less than alone. Train it longer, or "
                "check that it was trained for images and classes like these (distill.teacher)"
            )
        student, teacher = self.student_mean_average_precision, self.compared
        if student is not None and teacher is not None and teacher < student:
            found.append(
                f"the teacher {self.checkpoint} has mAP {teacher:.4f} on {self._images(self.compared_images)}, the "
                f"student alone {student:.4f} ({self.student_alone}): a teacher that is worse than the lone student "
                "teaches little, or harms. Train the teacher longer, or take a better one"
            )
        return found

    def __str__(self) -> str:
        looked_at = self._images(self.images)
        line = f"the teacher has mAP {self.mean_average_precision:.4f} on {looked_at}, {self.seconds:.1f} s"
        if self.student_mean_average_precision is None:
            return line
        same = self.compared_images == self.images
        compared = "" if same else f"; {self.compared:.4f} on {self._images(self.compared_images)}"
        return f"{line}{compared}; the student alone {self.student_mean_average_precision:.4f} ({self.student_alone})"

    def _images(self, number: int | None) -> str:
        return f"all {self.of} images of data.val" if number == self.of else f"{number} of {self.of} images of data.val"


def check_teacher(
    trained: DistilledDetector,
    validation: Any,
    world: World,
    student_alone: FinishedRun | None,
    config: Mapping[str, Any],
    *,
    images: int = IMAGES,
    seconds: float = SECONDS,
) -> TeacherCheck | str:
    """Evaluate the teacher of a run on some of its validation images, and compare it with the student alone.

    Compared is on the same images: on the whole split where the mAP of both is known for it, else on those that the
    teacher was looked at, by the student's `best.pth`. Every process of the run takes part and gets the result.

    Args:
        validation: the dataset of the split, as `build_split` gives it.
        student_alone: as `find_student_alone` gives it.
        config: of the run, as plain data.
        images, seconds: the most that is done; an image that was begun is finished.

    Returns:
        why it could not be evaluated, where it could not.

    Raises:
        TrainError: an image cannot be read.
    """
    teacher = trained.taught_by()
    if not trained.same_classes:
        return "the teacher is not evaluated before training: its classes are not known to be the student's"
    if not teacher.can_detect:
        return "the teacher cannot be evaluated before training: its config has no model.test_cfg"
    began = time.perf_counter()
    # In a random order, so that those that there is time for are a sample of the whole split.
    order = np.random.default_rng(0).permutation(len(validation))[:images]
    detections, looked_at = _detect_for(teacher, validation, order, world, seconds)
    precision = _scored(validation, looked_at, detections, world)
    if precision is None:
        return f"the teacher is not evaluated before training: {len(looked_at)} validation images have no box to find"
    took, whole = time.perf_counter() - began, len(validation)
    stored = _stored(trained, config)
    val, source = (precision, "measured") if len(looked_at) == whole else (stored, "checkpoint")
    found: dict[str, Any] = {} if val is None else {"val": val, "source": source}
    if student_alone is not None and val is not None:
        found |= _compared(student_alone, student_alone.best / 100, val, whole)
    elif student_alone is not None and (model := _loaded(student_alone, world)) is not None:
        detections, _ = _detect_for(model, validation, looked_at, world)
        of_student = _scored(validation, looked_at, detections, world)
        found |= _compared(student_alone, of_student, precision, len(looked_at))
    checkpoint = trained.distiller.plan.teacher.checkpoint
    return TeacherCheck(checkpoint, precision, len(looked_at), whole, took, **found)


def find_student_alone(
    work_dir: Path, config: Mapping[str, Any], seed: int, images: int, world: World
) -> FinishedRun | None:
    """The finished run of the same student without a teacher, in a folder beside this one's.

    Its config is this one's but for `distill` and for what does not change the student (see `tables.work_dirs`), and
    as many images make its step. Of several, the one of the same seed; of these the latest.

    Args:
        seed: of this run.
        images: of its validation split, which an earlier state of the files may have had fewer or more of.
        world: the main process looks, and all of them get what it finds.
    """
    return world.from_main(_find(work_dir, config, seed, images, world.size) if world.is_main else None)


def _find(work_dir: Path, config: Mapping[str, Any], seed: int, images: int, processes: int) -> FinishedRun | None:
    student = FinishedRun(work_dir, "", "", seed, "", config, 0, 0, processes=processes).student
    beside = work_dir.parent if work_dir.name not in ("", "..") else work_dir.resolve().parent
    found = []
    for file in beside.glob(f"*/{RESULT}"):
        try:
            run = load_run(file.parent)
        except UnreadableError:
            continue
        if file.parent != work_dir and run.distill is None and run.student == student and run.images in (None, images):
            found.append(run)
    return max(found, key=lambda run: (run.seed == seed, run.started), default=None)


def _detect_for(
    model: nn.Module, dataset: Any, order: np.ndarray, world: World, seconds: float = float("inf")
) -> tuple[Detections, np.ndarray]:
    """Detections of the images of `order` that there is time for, and their indices.

    Each process takes one image, then the main one says whether they go on: all of them stop at the same image.
    """
    began, done = time.perf_counter(), 0
    detections: Detections = []
    while done < len(order) and (not done or world.from_main(time.perf_counter() - began < seconds)):
        images = _Images(dataset, order[done : done + world.size])
        detections += detect(model, images, world=world)
        done += len(images)
    return detections, order[:done]


class _Images:
    """Some images of a test dataset, as `detect` takes it."""

    def __init__(self, dataset: Any, indices: np.ndarray) -> None:
        self._dataset = dataset
        self._indices = [int(index) for index in indices]
        self.normal = dataset.normal
        self.img_ids = [dataset.img_ids[index] for index in self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, place: int) -> Any:
        return self._dataset[self._indices[place]]


def _scored(dataset: Any, indices: np.ndarray, detections: Detections, world: World) -> float | None:
    """The mAP over some images of a dataset; None where they have no box that counts."""
    precision = None
    if world.is_main:
        subset = dataset.normal.subset(dataset.img_ids[int(index)] for index in indices)
        if subset.countable:
            precision = cskd_data.evaluate(subset, detections).mean_average_precision
    return world.from_main(precision)


def _stored(trained: DistilledDetector, config: Mapping[str, Any]) -> float | None:
    """The mAP that the teacher's checkpoint says of itself on the whole of this run's validation split."""
    teacher, split = trained.teacher, validation_of(config)
    same = teacher is not None and split and validation_of(teacher.config) == split
    return teacher.metrics.get("bbox_mAP") if teacher is not None and same else None


def _compared(run: FinishedRun, student: float | None, teacher: float, images: int) -> dict[str, Any]:
    return {
        "student_alone": run.folder,
        "student_mean_average_precision": student,
        "compared": teacher,
        "compared_images": images,
    }


def _loaded(run: FinishedRun, world: World) -> nn.Module | None:
    """The student alone, where every process can load it."""
    model = None
    try:
        checkpoint = load_checkpoint(run.folder / "best.pth")
        model = build_trained(config_from_data(checkpoint.config), checkpoint, world.device)
    except REFUSALS:
        pass
    return model if all(world.gather(model is not None)) else None
