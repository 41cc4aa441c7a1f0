"""COCO box metrics of a detector, with mmdet's test pipeline and pycocotools."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv import Config
from torch import nn

import cskd_data
from cskd_data.error_kinds import error_kinds
from cskd_data.files import write_json
from cskd_data.results import CocoResult
from cskd_train.engine.build import WORKERS, agree_on_broken, build_split, check_classes, check_split
from cskd_train.engine.distributed import World
from cskd_train.engine.failures import explained_failures
from cskd_train.engine.loader import end_workers, evaluation_loader, to_device
from cskd_train.engine.outputs import check_output, files_of_split
from cskd_train.errors import TrainError
from cskd_train.files.checkpoints import Checkpoint, load_checkpoint, load_weights
from cskd_train.files.config import config_from_data, load_config
from cskd_train.mm.detector import refuse_without_boxes
from cskd_train.mm.plain import build_without_pretrained


class EvaluationStopped(Exception):
    """An evaluation was asked to stop, in any of its processes; each of them raises this."""


Progress = Callable[[int, int], None]  # images done, images in all
Detections = list[dict[str, Any]]  # COCO's results format, with the ids of the user's file


def evaluate(
    model: nn.Module,
    cfg: Config,
    split: str = "val",
    progress: Progress | None = None,
    dataset: Any = None,
    world: World | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> CocoResult:
    """Run a detector over a split and measure it by the COCO protocol.

    Args:
        model: an mmdet detector; it runs where its weights are, in eval mode, and is put back into its mode after.
        split: `val` or `test`, a key of `cfg.data`.
        progress: called after each image.
        dataset: the split as `build_split` gives it, where it was built before.
        world: the processes that share the images; each gets the result.
        stopped: asked after each image.

    Raises:
        EvaluationStopped: `stopped` said yes in one of the processes.
        TrainError: the config has no such split, or an image of it cannot be read.
        DataError: an annotation file cannot be used.
    """
    begin = time.perf_counter()
    world = world or World()
    dataset = build_split(cfg, split) if dataset is None else dataset
    detections = detect(model, dataset, eval_workers(cfg, split), progress, world, stopped)
    return _scored(dataset, detections, split, begin, world)


def eval_workers(cfg: Config, split: str) -> int:
    """Processes that load images for an evaluation: as many as for training, where the config does not say."""
    own = cfg.data.get(f"{split}_dataloader") or {}
    return int(own.get("workers_per_gpu", cfg.data.get("workers_per_gpu", WORKERS)))


@explained_failures(training=False)
def evaluate_checkpoint(
    checkpoint: Checkpoint | str | Path,
    overrides: Mapping[str, Any] | None = None,
    split: str = "val",
    *,
    config: str | Path | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
    out: Path | None = None,
    world: World | None = None,
    errors: bool = False,
) -> CocoResult:
    """Evaluate a checkpoint by the config stored in it, or by another one.

    Without annotations the images are detected on, and the result has no metrics.

    Args:
        overrides: dotted key -> value, as `--set` gives them.
        config: a config file; with it a plain mmdet checkpoint serves too.
        warn: called with each warning about the annotations, and with what of the checkpoint was left out.
        out: a file for the detections, in COCO's results format.
        world: the processes that share the images; each gets the result, the main one writes `out`.
        errors: also find what each kind of error costs (`cskd_data.error_kinds`).

    Raises:
        TrainError: as `load_checkpoint`, `load_config` and `evaluate`; the checkpoint does not fit the config; the
            folder of `out` is not there.
        DataError: `out` cannot be written, or is a file that is read.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = load_checkpoint(checkpoint, require_config=config is None)
    cfg = load_config(config, overrides) if config else config_from_data(checkpoint.config, overrides)
    classes = checkpoint.classes or ()
    world = world or World()
    agree_on_broken(cfg, [split], world)
    if out is not None:
        read = (checkpoint.path, Path(config) if config else None)
        world.together(lambda: _check_out(out, cfg, split, classes, read) if world.is_main else None)
    for warning in (*checkpoint.notes, *check_split(cfg, split, classes, scored=False)):
        if warn is not None:
            warn(warning)
    begin = time.perf_counter()
    dataset = build_split(cfg, split, classes)
    model = build_trained(cfg, checkpoint, device)
    check_classes(model, dataset.CLASSES)
    detections = detect(model, dataset, eval_workers(cfg, split), progress, world)
    if out is not None and world.is_main:
        write_json(out, detections, indent=None)
    return _scored(dataset, detections, split, begin, world, errors)


def _check_out(out: Path, cfg: Config, split: str, classes: Sequence[str], read: Iterable[Path | None]) -> None:
    if not out.parent.is_dir():
        raise TrainError(f"output {out}: the folder {out.parent} does not exist")
    check_output(out, [*read, *files_of_split(cfg, split, classes)])


def _scored(
    dataset: Any, detections: Detections, split: str, begin: float, world: World, errors: bool = False
) -> CocoResult:
    """The main process scores, and every process gets the result."""
    result, seconds = None, time.perf_counter() - begin
    if world.is_main and dataset.normal.annotated:
        result = cskd_data.evaluate(dataset.normal, detections, split=split, seconds=seconds)
        if errors:
            result = replace(result, errors=error_kinds(dataset.normal, detections))
    elif world.is_main:
        skipped = len(dataset.normal.left_out)
        result = CocoResult({}, {}, split, len(dataset), len(detections), seconds, skipped)
    shared = world.from_main(result)
    assert shared is not None
    return shared


def build_trained(cfg: Config, checkpoint: Checkpoint, device: str | torch.device) -> nn.Module:
    """The detector of a config with a checkpoint's weights, in eval mode on `device`.

    Raises:
        TrainError: the model cannot be built, or finds no boxes of classes; the checkpoint does not fit it.
    """
    model = build_without_pretrained(cfg.model)
    refuse_without_boxes(model)
    load_weights(model, checkpoint)
    if checkpoint.classes:
        model.CLASSES = checkpoint.classes  # type: ignore[assignment]
    return model.to(device).eval()


def detect(
    model: nn.Module,
    dataset: Any,
    workers: int = 0,
    progress: Progress | None = None,
    world: World | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Detections:
    """Detections of every image of an mmdet test dataset, in COCO's results format and in the order of the images.

    Each image is detected once, by process `index % world.size`, alone in its batch: the detections are the same to the
    last bit at any number of processes.

    Returns:
        All detections in the main process, none in the others, with the image and category ids of the user's file.

    Raises:
        EvaluationStopped: `stopped` said yes in one of the processes.
        TrainError: the model finds no boxes of classes.
    """
    found = detect_each(model, dataset, workers, progress, world, stopped)
    return [one for index in sorted(found) for one in found[index]]


def detect_each(
    model: nn.Module,
    dataset: Any,
    workers: int = 0,
    progress: Progress | None = None,
    world: World | None = None,
    stopped: Callable[[], bool] = lambda: False,
    done: Container[int] = (),
    keep: Callable[[int, Detections], None] = lambda index, detections: None,
) -> dict[int, Detections]:
    """As `detect`, by the index of the image.

    Args:
        done: indices of images to leave out.
        keep: called in the process that has detected on an image, with its index and detections.
    """
    world = world or World()
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    left = [index for index in range(len(dataset)) if index not in done]
    own = left[world.rank :: world.size]
    found: dict[int, Detections] = {}
    stopping = False
    batches = iter(evaluation_loader(dataset, own, workers, world))
    try:
        with torch.no_grad():
            for index, batch in zip(own, batches, strict=True):
                result = model(return_loss=False, rescale=True, **to_device(batch, device))[0]
                found[index] = _coco_results(dataset.normal, dataset.img_ids[index], _boxes_by_class(result))
                keep(index, found[index])
                if progress is not None:
                    before = len(dataset) - len(left)
                    progress(before + min(len(found) * world.size, len(left)), len(dataset))
                if stopping := stopped():
                    break
    finally:
        end_workers(batches)
        model.train(was_training)
    if any(world.gather(stopping)):
        raise EvaluationStopped
    return {index: detections for part in world.to_main(found) for index, detections in part.items()}


def _boxes_by_class(result: Any) -> list[np.ndarray]:
    """The boxes in mmdet's result of one image, which has masks beside them where a detector finds those too.

    Raises:
        TrainError: it is the result of something else than a detector.
    """
    boxes = result[0] if isinstance(result, tuple) else result
    if not isinstance(boxes, list):
        raise TrainError(
            f"the model gives a {type(result).__name__} for each image in the place of boxes of classes: take a "
            "detector that gives these, such as FasterRCNN or MaskRCNN"
        )
    return boxes


def _coco_results(normal: cskd_data.Dataset, image_id: int, boxes_by_class: list[np.ndarray]) -> Detections:
    """mmdet's result of one image, an (N, 5) array of x1 y1 x2 y2 score for each class, in COCO's form."""
    image_key = normal.image_keys[image_id]
    return [
        {
            "image_id": image_key,
            "category_id": category_key,
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "score": float(confidence),
        }
        for category_key, boxes in zip(normal.category_keys.values(), boxes_by_class, strict=True)
        for x1, y1, x2, y2, confidence in boxes
    ]
