"""The splits of a config: checked before anything is built, then built."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mmcv import Config
from torch import nn

from cskd_data.check import check
from cskd_data.merge import merge
from cskd_data.together import check_together
from cskd_train.errors import TrainError
from cskd_train.mm import datasets

WORKERS = 2
"""Processes that load images, where a config does not say."""


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
        DataError: a file of it is missing or cannot be used.
    """
    warnings: list[str] = []
    sources = list(datasets.sources(_split(cfg, split)))
    for source in sources:
        dataset = source.read(classes or sources[0].classes)
        report = check(dataset, use_memory=True)
        report.raise_for_errors()
        if scored and not dataset.annotated:
            raise TrainError(f"data.{split}: {dataset.nothing_counts()}")
        warnings += [f"{dataset.source}: {warning}" for warning in report.warnings]
        if report.remembered:
            warnings.append(f"{dataset.source}: its images were checked before and not opened again: none has changed")
    return warnings


def class_names(cfg: Config, split: str) -> tuple[str, ...]:
    """The classes of a split, in the order of its labels.

    Raises:
        TrainError: the config has no such split; as `datasets.classes_of`.
    """
    return datasets.classes_of(_split(cfg, split))


def shared_pictures(cfg: Config, splits: Iterable[str]) -> list[str]:
    """Warnings of pictures that are in two of these splits."""
    found = {
        split: merge([source.read(classes) for source in sources])
        for split in splits
        if (sources := list(datasets.sources(_split(cfg, split)))) and (classes := sources[0].classes)
    }
    return [str(note) for note in check_together(found)]


def build_split(cfg: Config, split: str, classes: Sequence[str] = ()) -> Any:
    """The mmdet dataset of a split: with annotations and augmentation for `train`, as tested otherwise.

    Args:
        classes: of the model: the order of the labels; the config's own by default.

    Raises:
        TrainError: the config has no such split, it cannot be built, or it has other classes.
        DataError: a file of it is missing or cannot be used.
    """
    settings = _split(cfg, split)
    try:
        dataset = datasets.build(settings, test_mode=split != "train", classes=classes)
    except (KeyError, TypeError, AssertionError) as error:
        raise TrainError(f"data.{split} of the config cannot be built: {error}") from error
    if len(dataset) == 0:
        raise TrainError(f"data.{split} of the config holds no image that can be used: {settings.get('ann_file')}")
    return dataset


def check_classes(model: nn.Module, classes: tuple[str, ...]) -> None:
    """Refuse a head whose number of classes is not the data's.

    Raises:
        TrainError: names the head, both numbers and the setting.
    """
    for name, module in model.named_modules():
        count = getattr(module, "num_classes", None)
        if name.endswith("bbox_head") and isinstance(count, int) and count != len(classes):
            raise TrainError(
                f"{name} has {count} classes, the data has {len(classes)} ({', '.join(classes[:8])}"
                f"{', ...' if len(classes) > 8 else ''}): --set model.{name}.num_classes={len(classes)}, "
                "or set `classes` in the config's data"
            )


def _split(cfg: Config, split: str) -> Any:
    if not has_split(cfg, split):
        known = ", ".join(name for name in ("train", "val", "test") if has_split(cfg, name)) or "none"
        raise TrainError(f"the config has no data.{split} (it has: {known})")
    return cfg.data[split]
