"""From a config to the parts of a run: splits, student, distiller, optimizer."""

from __future__ import annotations

import os
import random
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from mmcv import Config
from torch import nn

from cskd_data.check import check
from cskd_data.dataset import Dataset, Note
from cskd_data.merge import in_several, merge
from cskd_data.names import counted
from cskd_data.together import check_together
from cskd_train.engine.distributed import World
from cskd_train.engine.loader import TrainLoader, Unlabelled
from cskd_train.engine.runner import HookRunner, build_runner
from cskd_train.engine.step import AveragedStudent, TrainStep
from cskd_train.errors import TrainError
from cskd_train.files.heads import head_kind
from cskd_train.mm import data_sources, datasets
from cskd_train.mm.detector import build_distilled
from cskd_train.mm.families import export_note
from cskd_train.mm.ops import serve
from cskd_train.mm.plain import build_without_pretrained
from cskd_train.mm.start import Start, started_student


@dataclass(frozen=True)
class Parts:
    """What a run is put together from."""

    student: nn.Module
    trained: nn.Module  # the student, or the student under its distiller
    classes: tuple[str, ...]
    distiller: nn.Module | None
    runner: HookRunner
    step: TrainStep
    loader: TrainLoader
    learning_rate: float  # after scaling
    training: Any  # mmdet's dataset
    unlabelled: Any  # mmdet's dataset of data.unlabeled, or None
    validation: Any  # mmdet's test dataset, or None without a validation split
    start: Start | None  # None without a load_from, or where it was not read

    @property
    def images(self) -> dict[str, tuple[int, int]]:
        """Split -> how many images it uses, and how many could not be used and are left out."""
        splits = {"train": self.training, "unlabeled": self.unlabelled, "val": self.validation}
        return {split: datasets.counts(one) for split, one in splits.items() if one is not None}


SPLITS = ("train", "unlabeled", "val")
"""What a run reads. `unlabeled` is the config's `data.unlabeled`: pseudo-labelled images, trained on beside `train`."""


def check_data(cfg: Config, splits: Iterable[str] = SPLITS) -> list[str]:
    """Check the annotations of every split that the config has; gives the warnings, each once.

    Raises:
        TrainError, DataError: as `check_split`; splits with different classes.
    """
    checked = [split for split in splits if split == "train" or has_split(cfg, split)]
    classes = class_names(cfg, checked[0])
    warnings = [warning for split in checked for warning in check_split(cfg, split, classes)]
    warnings += shared_pictures(cfg, [split for split in checked if split != "unlabeled"])
    if {"unlabeled", "val"} <= {*checked}:
        warnings += shared_pictures(cfg, ("unlabeled", "val"))
    return list(dict.fromkeys(warnings))


def download(cfg: Config) -> None:
    """Have every file of weights that the student starts from on this machine.

    Raises:
        TrainError: one of them cannot be had.
    """
    started_student(cfg, ())


def build_parts(
    cfg: Config, seed: int, world: World, work_dir: str, say: Callable[[str], None], resumed: bool = False
) -> Parts:
    """Build everything that a run needs, its random weights from `seed`.

    The student is built first: it starts from the same weights with and without a `distill` block.

    Args:
        say: takes what the user should know about how the parts were fitted together.
        resumed: the student's weights are about to come from a `last.pth`: no others are read.

    Raises:
        TrainError: a part cannot be built, or model and data do not fit.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    cv2.setNumThreads(0)  # the loader's workers are what runs in parallel
    torch.backends.cudnn.benchmark = cfg.get("cudnn_benchmark", False)
    torch.use_deterministic_algorithms(cfg.get("deterministic", False), warn_only=True)
    train_set = build_split(cfg, "train")
    validation = build_split(cfg, "val", train_set.CLASSES) if has_split(cfg, "val") else None
    beside = build_split(cfg, "unlabeled", train_set.CLASSES) if has_split(cfg, "unlabeled") else None
    serve(world.device)
    notes: list[str] = []
    classes = tuple(train_set.CLASSES)
    start = None
    if resumed:
        student = build_without_pretrained(cfg.model)
        if cfg.get("load_from"):
            notes.append(f"--resume goes on from last.pth: load_from = {cfg.load_from} is not read")
    else:
        student, start = started_student(cfg, classes, notes.append)
    check_classes(student, classes)
    student.CLASSES = classes  # type: ignore[assignment]
    if note := export_note(cfg.model):
        notes.append(note)
    student.to(world.device)
    distilled = build_distilled(student, cfg, world.device) if cfg.get("distill") else None
    trained: nn.Module = student if distilled is None else distilled
    accumulate, (batch, workers) = cfg.get("accumulate", 1), loading(cfg)
    unlabelled = None if beside is None else unlabelled_of(cfg, beside, batch)
    loader = TrainLoader(train_set, batch, workers, seed, world, accumulate, unlabelled)
    lr, sentence = scaled_learning_rate(cfg, loader.images_per_step, (loader.batch_size, world.size, accumulate))
    runner = build_runner(cfg, trained, lr, work_dir)
    average = None if cfg.get("ema") is None else AveragedStudent(student, **cfg.ema)
    clip = (cfg.get("optimizer_config") or {}).get("grad_clip")
    step = TrainStep(
        trained,
        runner.optimizer,
        world,
        seed=seed,
        clip={key: value for key, value in (clip or {}).items() if key in ("max_norm", "norm_type")},
        amp=cfg.get("amp"),
        average=average,
    )
    for note in (
        *notes,
        *([] if start is None else [str(start)]),
        *(() if distilled is None else distilled.notes),
        *([] if unlabelled is None else [str(unlabelled)]),
        sentence,
    ):
        say(note)
    distiller = None if distilled is None else distilled.distiller
    return Parts(student, trained, classes, distiller, runner, step, loader, lr, train_set, beside, validation, start)


def scaled_learning_rate(cfg: Config, images: int, counts: tuple[int, int, int]) -> tuple[float, str]:
    """The learning rate for `images` images a step, and a sentence about it.

    It is linear in the images, where the config's `auto_scale_lr` says so and the optimizer is SGD, for which alone the
    rule is known.

    Args:
        counts: images a batch, processes, accumulated batches.

    Source: Goyal et al. 2017, https://arxiv.org/abs/1706.02677.
    """
    lr, scaling = cfg.optimizer.lr, cfg.get("auto_scale_lr") or {}
    base = scaling.get("base_batch_size")
    step = f"{images} images a step ({counts[0]} x {counts[1]} process(es) x {counts[2]} accumulated)"
    if base is None or base == images:
        return lr, f"learning rate {lr:g}, {step}"
    if scaling.get("enable") and cfg.optimizer.type == "SGD":
        scaled = lr * images / base
        return scaled, f"learning rate {lr:g} x {images / base:g} = {scaled:g}: {step}, the config's is for {base}"
    why = "set auto_scale_lr.enable=True to scale it" if cfg.optimizer.type == "SGD" else "set --lr if it has to follow"
    return lr, f"warning: learning rate {lr:g} is the config's for {base} images a step, this run has {step}: {why}"


SHARE, WEIGHT = 0.5, 0.5
"""Of data.unlabeled, where a config does not say."""


def unlabelled_of(cfg: Config, dataset: Any, batch: int) -> Unlabelled:
    """How many images of a batch are pseudo-labelled: the share that the config asks for, rounded; at least one is, and
    at least one is not.

    Raises:
        TrainError: a batch of one image.
    """
    settings = cfg.data.unlabeled
    share = settings.get("share", SHARE)
    if batch < 2:
        raise TrainError(
            "data.unlabeled: a batch of one image has no room for both kinds: set data.samples_per_gpu (--batch-size) "
            "to 2 at least"
        )
    images = min(max(int(share * batch + 0.5), 1), batch - 1)
    return Unlabelled(dataset, images, float(settings.get("weight", WEIGHT)))


WORKERS = 2
"""Processes that load images, where a config does not say."""


def loading(cfg: Config) -> tuple[int, int]:
    """Images of a training batch, and processes that load them."""
    said = {"samples_per_gpu": 2, "workers_per_gpu": WORKERS, **cfg.data, **(cfg.data.get("train_dataloader") or {})}
    return said["samples_per_gpu"], said["workers_per_gpu"]


def has_split(cfg: Config, split: str) -> bool:
    """Whether the config names data for `train`, `val` or `test`."""
    return bool(cfg.get("data", {}).get(split))


def check_split(cfg: Config, split: str, classes: Sequence[str] = (), *, scored: bool = True) -> list[str]:
    """Check every annotation file of a split and its images; gives the warnings.

    Args:
        classes: of the model, which the split has to have too, in any order; the config's own by default.
        scored: refuse a file without annotations, which can be detected on only.

    Raises:
        TrainError: the config has no such split, or one with other classes.
        DataError: a file of it is missing or cannot be used; one to evaluate on is pseudo-labelled.
    """
    warnings: list[str] = []
    sources = split_sources(cfg, split)
    if split == "unlabeled":
        _check_made(cfg, sources)
    files: dict[str, Dataset] = {}
    for source in sources:
        dataset = source.read(classes or sources[0].classes)
        if split in ("val", "test"):
            dataset.refuse_as_truth()
        files[os.path.abspath(source.ann_file)] = dataset
        report = check(dataset, use_memory=True)
        report.raise_for_errors()
        if scored and not dataset.annotated:
            raise TrainError(f"data.{split}: {dataset.nothing_counts()}")
        warnings += [f"{dataset.source}: {warning}" for warning in report.warnings]
        if report.remembered:
            warnings.append(f"{dataset.source}: its images were checked before and not opened again: none has changed")
    if split == "train" and len(files) > 1 and (shared := in_several(list(files.values()))):
        what = (
            "in several annotation files, each time learnt with the boxes of one alone: write their boxes in one file"
        )
        warnings.append(str(Note.of(f"data.train: {counted(len(shared), 'image')} {what}", shared)))
    return warnings


def _check_made(cfg: Config, sources: Sequence[data_sources.Source]) -> None:
    """Say how the file of pseudo-labels is made where it is not there yet.

    Raises:
        TrainError: the command.
    """
    for file in (source.ann_file for source in sources):
        if not os.path.exists(file):
            teacher = ((cfg.get("distill") or {}).get("teacher") or {}).get("checkpoint") or "TEACHER.pth"
            words = ["cskd-train", "pseudo-label", teacher, cfg.data.unlabeled.get("images") or "IMAGES", file]
            raise TrainError(
                f"data.unlabeled: {file} is not there yet. When the teacher is trained, this makes it from what it "
                f"detects:\n  {shlex.join(words)}"
            )


def class_names(cfg: Config, split: str) -> tuple[str, ...]:
    """The classes of a split, in the order of its labels.

    Raises:
        TrainError: the config has no such split; as `data_sources.classes_of`.
    """
    return data_sources.classes_of(_split(cfg, split))


def shared_pictures(cfg: Config, splits: Iterable[str]) -> list[str]:
    """Warnings of pictures that are in two of these splits."""
    found = {
        split: merge([source.read(classes) for source in sources])
        for split in splits
        if (sources := split_sources(cfg, split)) and (classes := sources[0].classes)
    }
    return [str(note) for note in check_together(found)]


def build_split(cfg: Config, split: str, classes: Sequence[str] = ()) -> Any:
    """The mmdet dataset of a split: with annotations and augmentation for training, as tested otherwise.

    Args:
        classes: of the model: the order of the labels; the config's own by default.

    Raises:
        TrainError: the config has no such split, it cannot be built, or it has other classes.
        DataError: a file of it is missing or cannot be used.
    """
    settings = _split(cfg, split)
    try:
        dataset = datasets.build(settings, split not in ("train", "unlabeled"), classes, skips_broken(cfg))
    except (KeyError, TypeError, AssertionError) as error:
        raise TrainError(f"data.{split} of the config cannot be built: {error}") from error
    if len(dataset) == 0:
        raise TrainError(f"data.{split} of the config holds no image that can be used: {settings.get('ann_file')}")
    return dataset


def check_classes(model: nn.Module, classes: tuple[str, ...]) -> None:
    """Refuse heads whose number of classes is not the data's.

    Raises:
        TrainError: names the first, both numbers and the settings.
    """
    wrong = unfit_heads(model, len(classes))
    for name, count in wrong.items():
        others = "".join(f" --set model.{other}.num_classes={len(classes)}" for other in wrong if other != name)
        raise TrainError(
            f"{name} has {count} classes, the data has {len(classes)} ({', '.join(classes[:8])}"
            f"{', ...' if len(classes) > 8 else ''}): --set model.{name}.num_classes={len(classes)}{others}, "
            "or set `classes`, which it follows"
        )


def unfit_heads(model: nn.Module, classes: int) -> dict[str, int]:
    """The box heads whose number of classes is another one, by their path in the model, each with its number."""
    counts = {
        name: getattr(one, "num_classes", None) for name, one in model.named_modules() if head_kind(name) == "bbox_head"
    }
    return {name: count for name, count in counts.items() if isinstance(count, int) and count != classes}


def skips_broken(cfg: Config) -> bool:
    """Whether training and evaluation go on without images that cannot be used.

    Raises:
        TrainError: the setting is neither True nor False.
    """
    value = cfg.data.get("skip_broken", False)
    if not isinstance(value, bool):
        raise TrainError(f"data.skip_broken = {value!r}: expected True or False")
    return value


def split_files(cfg: Config, split: str) -> list[data_sources.Files]:
    """The annotation files of a split, each with its image folder, time and size."""
    return [source.files for source in split_sources(cfg, split)]


def agree_on_broken(cfg: Config, splits: Iterable[str], world: World) -> None:
    """Have the processes of a run leave out the same images: those that cannot be used on any of its machines.

    One process of each machine decodes every image.

    Raises:
        SharedError: one of them has nothing left, or cannot use a file.
    """
    if world.size == 1 or not skips_broken(cfg):
        return
    sources = [source for split in splits if has_split(cfg, split) for source in split_sources(cfg, split)]
    found = world.together(lambda: [one.left_out() for one in sources] if world.local_rank == 0 else None)
    everywhere = [machine for machine in world.gather(found) if machine is not None]
    for source, *faults in zip(sources, *everywhere, strict=True):
        source.leave_out({key: fault for machine in faults for key, fault in machine.items()})


def split_sources(cfg: Config, split: str) -> list[data_sources.Source]:
    """The annotation files of a split, which can be read."""
    return list(data_sources.sources(_split(cfg, split), skips_broken(cfg)))


def _split(cfg: Config, split: str) -> Any:
    if not has_split(cfg, split):
        known = ", ".join(name for name in ("train", "val", "test") if has_split(cfg, name)) or "none"
        raise TrainError(f"the config has no data.{split} (it has: {known})")
    return _unlabeled(cfg) if split == "unlabeled" else cfg.data[split]


def _unlabeled(cfg: Config) -> Any:
    """`data.unlabeled` as a dataset: its images come in as those of `data.train`, also those without a box.

    Raises:
        TrainError: data.train mixes images, which these are not to take part in.
    """
    settings, train = cfg.data.unlabeled, cfg.data.train
    if "MultiImageMixDataset" in str(train):
        raise TrainError("data.unlabeled does not go with a MultiImageMixDataset in data.train: take one of them out")
    first = datasets.first_leaf(train)
    return {
        "type": "CocoDataset",
        "data_root": first.get("data_root"),
        "ann_file": settings.ann_file,
        "img_prefix": settings.get("img_prefix"),
        "classes": settings.get("classes") or data_sources.classes_of(train),
        "pipeline": first["pipeline"],
        "filter_empty_gt": False,
    }
