"""What detectors find on the images of a split, kept beside the report, and what that is worth."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cskd_data
from cskd_data.error_kinds import ErrorKinds, error_kinds
from cskd_data.errors import CskdError as DataError
from cskd_data.files import write_json
from cskd_data.operating_point import OperatingPoint, ScoreCurve, score_curve
from cskd_data.results import CocoResult
from cskd_train.engine.build import build_split, check_classes, check_split
from cskd_train.engine.evaluate import Detections, build_trained, detect, eval_workers
from cskd_train.engine.failures import explained_failures
from cskd_train.errors import REFUSALS, TrainError
from cskd_train.files.checkpoints import Checkpoint, load_checkpoint
from cskd_train.files.config import config_from_data
from cskd_train.files.overrides import move_root
from cskd_train.mm.datasets import with_images_of
from cskd_train.mm.teacher import detector_of, with_own_config
from cskd_train.report.runs import Detector

DEFAULT_THRESHOLD = 0.3
"""Where no detection is right, so that none can be chosen."""


@dataclass(frozen=True)
class Found:
    """What a detector found on the images of a data set, with the ids of the user's file."""

    detector: Detector
    data: cskd_data.Dataset
    detections: Detections

    @cached_property
    def result(self) -> CocoResult:
        return cskd_data.evaluate(self.data, self.detections)

    @cached_property
    def curve(self) -> ScoreCurve:
        return score_curve(self.data, self.detections)

    @property
    def point(self) -> OperatingPoint | None:
        """That of the highest F1; None where no detection is right."""
        return self.curve.best if self.curve.recall.any() else None

    @property
    def threshold(self) -> float:
        return self.point.threshold if self.point else DEFAULT_THRESHOLD

    @cached_property
    def errors(self) -> ErrorKinds:
        return error_kinds(self.data, self.detections)


@dataclass(frozen=True)
class Looked:
    """A split, or some of its images, and what the detectors found there.

    Attributes:
        data: of the images that were looked at; None where the split cannot be read.
        of: how many images the split has.
        missing: a sentence on each detector, or on the data, that could not be had.
    """

    data: cskd_data.Dataset | None
    of: int
    found: Sequence[Found]
    missing: Sequence[str]


Progress = Callable[[str, int, int], None]  # name of the detector, images done, images in all


@dataclass(frozen=True)
class Asked:
    """How detections are to be had.

    Attributes:
        split: val or test.
        images: the most that are looked at, evenly spaced over the split; 0 looks at none.
        overrides: dotted key -> value, changes to the config that says which data.
        moved: where the data were when the run was made, and where they are now.
        cache: folder in which detections are kept.
    """

    split: str
    images: int
    overrides: Mapping[str, Any]
    device: torch.device
    cache: Path
    progress: Progress


def look(detectors: Sequence[Detector], main: Detector, moved: tuple[str, str], asked: Asked) -> Looked:
    """Have detectors detect on the images of the main one's split.

    Images are brought in as each detector's own config says, so that a run's own mAP is found again.

    Args:
        moved: folder in which the data were when the run was made, and where that is now.
    """
    if main.checkpoint is None:
        return Looked(None, 0, [], [f"{main.name}: there is no best.pth, so nothing is known of its detections"])
    if not asked.images:
        return Looked(None, 0, [], ["no image was looked at (--images 0)"])
    try:
        checkpoint = load_checkpoint(main.checkpoint)
        found_at = {} if main.run is None else main.run.data_root(checkpoint.config)
        cfg = config_from_data(move_root(dict(checkpoint.config), *moved), {**found_at, **asked.overrides})
        check_split(cfg, asked.split, checkpoint.classes)
        data = build_split(cfg, asked.split, checkpoint.classes).normal
    except REFUSALS as error:
        return Looked(None, 0, [], [f"the images of data.{asked.split} cannot be had: {error}"])
    chosen = evenly_spaced(asked.images, len(data.images))
    shown = data.subset(data.images[place]["id"] for place in chosen)
    found, missing = [], []
    if not shown.countable:
        return Looked(shown, len(data.images), [], [f"nothing can be counted: {shown.nothing_counts()}"])
    for detector in detectors:
        try:
            found.append(Found(detector, shown, _detections(detector, cfg, chosen, asked)))
        except REFUSALS as error:
            missing.append(f"{detector.name}: its detections cannot be had: {error}")
    return Looked(shown, len(data.images), found, missing)


def evenly_spaced(number: int, of: int) -> list[int]:
    """The places of at most so many images of a split, the first and the last among them."""
    return [int(place) for place in np.linspace(0, of - 1, min(number, of)).round()]


@explained_failures(training=False)
def _detections(detector: Detector, cfg: Any, chosen: Sequence[int], asked: Asked) -> Detections:
    """The detections of one detector on some images of a split, from the cache where they are there.

    Raises:
        TrainError: there is no checkpoint, it does not fit, or it has other classes.
    """
    if detector.checkpoint is None:
        raise TrainError("its checkpoint is not there" if detector.run is None else "there is no best.pth")
    checkpoint = load_checkpoint(detector.checkpoint, require_config=detector.config is None)
    checkpoint, own = with_own_config(checkpoint, detector.config)
    cfg, dataset = images_for(own, cfg, asked.split, checkpoint.classes, chosen)
    file = asked.cache / f"{_mark(checkpoint, own, cfg, dataset, asked.split)}.json"
    if (kept := _kept(file)) is not None:
        return kept
    model = build_trained(config_from_data({"model": detector_of(own)}), checkpoint, asked.device)
    check_classes(model, dataset.CLASSES)
    if not getattr(model, "test_cfg", None):
        raise TrainError("its config has no model.test_cfg, which says how boxes are made of its outputs")

    def progress(done: int, of: int) -> None:
        asked.progress(detector.name, done, of)

    detections = detect(model, dataset, eval_workers(cfg, asked.split), progress)
    write_json(file, {"detector": str(detector.checkpoint), "detections": detections}, indent=None)
    return detections


def images_for(own: Any, cfg: Any, split: str, classes: Sequence[str], places: Sequence[int]) -> tuple[Any, Any]:
    """Some images of a config's split, brought in as the config of a detector says.

    Whoever has several detectors detect on the same images takes them from here, for each detector anew.

    Args:
        own: the config of the detector (see `with_images_of`).
        cfg: says which images.
        split: val or test.
        classes: of the detector, in the order of its labels.
        places: of the images in the split.

    Returns:
        The config that the images came by, and the mmdet dataset of them.

    Raises:
        TrainError, DataError: as `build_split`.
    """
    cfg = with_images_of(own, cfg, split)
    dataset = build_split(cfg, split, classes)
    dataset.data_infos = [dataset.data_infos[place] for place in places]
    dataset.img_ids = [dataset.img_ids[place] for place in places]
    return cfg, dataset


def _mark(checkpoint: Checkpoint, own: Any, cfg: Any, dataset: Any, split: str) -> str:
    """Equal where the same detections come out."""
    files = [[image["file_name"], *_state(dataset.normal, image)] for image in dataset.data_infos]
    parts = [checkpoint.sha256, own.model, cfg.data[split], dataset.CLASSES, dataset.img_ids, files]
    return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()[:20]


def _state(data: cskd_data.Dataset, image: Mapping[str, Any]) -> tuple[int, int]:
    try:
        state = data.path(image).stat()
    except (OSError, DataError):
        return 0, 0
    return state.st_mtime_ns, state.st_size


def _kept(file: Path) -> Detections | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["detections"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, list) else None
