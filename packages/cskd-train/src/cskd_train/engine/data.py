"""The splits of a config: checked before anything is built, then built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmcv import Config
from torch import nn

from cskd_train.data.check import check_annotations
from cskd_train.errors import TrainError
from cskd_train.mm import datasets

WORKERS = 2
"""Processes that load images, where a config does not say."""


def has_split(cfg: Config, split: str) -> bool:
    """Whether the config names data for `train`, `val` or `test`."""
    return bool(cfg.get("data", {}).get(split))


def check_split(cfg: Config, split: str) -> list[str]:
    """Check every annotation file of a split; gives the warnings.

    Raises:
        TrainError: the config has no such split, or a file of it is missing or malformed.
    """
    warnings: list[str] = []
    for source in _sources(_split(cfg, split)):
        root = source.get("data_root") or ""
        ann_file, image_root = (_under(root, source.get(key) or "") for key in ("ann_file", "img_prefix"))
        warnings.extend(check_annotations(ann_file, image_root, datasets.classes_of(source)).warnings)
    return warnings


def build_split(cfg: Config, split: str) -> Any:
    """The mmdet dataset of a split: with annotations and augmentation for `train`, as tested otherwise.

    Raises:
        TrainError: the config has no such split, or it cannot be built.
    """
    settings = _split(cfg, split)
    try:
        dataset = datasets.build(settings, test_mode=split != "train")
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


def _sources(settings: Any) -> Iterator[Mapping[str, Any]]:
    """The settings of each annotation file, inside mmdet's dataset wrappers too."""
    if isinstance(settings, (list, tuple)):
        for member in settings:
            yield from _sources(member)
    elif "dataset" in settings or "datasets" in settings:
        yield from _sources(settings.get("dataset", settings.get("datasets")))
    elif isinstance(settings.get("ann_file"), (list, tuple)):
        prefixes = settings.get("img_prefix")
        for place, ann_file in enumerate(settings["ann_file"]):
            prefix = prefixes[place] if isinstance(prefixes, (list, tuple)) else prefixes
            yield {**settings, "ann_file": ann_file, "img_prefix": prefix}
    else:
        yield settings


def _under(root: str, path: str) -> str:
    """`path`, below `root` unless it is absolute: mmdet's own rule."""
    return str(Path(root) / path) if root else path
