"""COCO datasets as mmdet reads them, with three of its silences mended.

Stock mmdet (1) hands degenerate boxes to pycocotools, where each counts as a missed object; (2) numbers labels in the
order of the annotation file, not of the config's classes, and drops a class that the file does not have; (3) fails on
an unreadable image with an `AttributeError` that names no file. Configs stay stock: `build` puts the classes below in
the place of `CocoDataset` and `LoadImageFromFile`.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet.datasets import DATASETS, PIPELINES, CocoDataset, build_dataset
from mmdet.datasets.pipelines import LoadImageFromFile

from cskd_train.data.boxes import category_ids, is_degenerate
from cskd_train.errors import TrainError

COCO_CLASSES: tuple[str, ...] = CocoDataset.CLASSES
"""The classes of a dataset config that names none."""

_WRAPPERS = ("ConcatDataset", "RepeatDataset", "ClassBalancedDataset", "MultiImageMixDataset")


def build(cfg: Mapping[str, Any], test_mode: bool) -> Any:
    """The mmdet dataset of a config's `data.train`, `data.val` or `data.test`, without degenerate boxes.

    Arguments:
        cfg: a dataset config as mmdet takes it: `CocoDataset`, alone or inside mmdet's wrappers. It is not changed.
        test_mode: False drops images without boxes (as the config's `filter_empty_gt` says) and gives annotations; True
            keeps every image and gives none. Replaces a `test_mode` in `cfg`.

    Returns:
        a `torch.utils.data.Dataset` with `CLASSES`; for evaluation also `coco` (the annotations that count), `cat_ids`
        (the category id of each label, in the order of `CLASSES`) and `img_ids` (the image id of each index).

    Which boxes count is defined by `cskd_train.data.boxes.is_degenerate`. Beside these, mmdet leaves boxes narrower or
    lower than one pixel out of training; they stay in the evaluation.

    Raises:
        TrainError: another dataset type, a file of classes that cannot be read, or a class that the annotation file
            does not have. An image that cannot be
            loaded raises `ImageError`, a TrainError, when it is asked for, also through a data loader's worker.
    """
    return build_dataset(_with_own_types(cfg, test_mode))


def classes_of(cfg: Any) -> tuple[str, ...]:
    """The class names of a dataset config, in the order of its labels; () where nothing says them.

    As in mmdet, text is the name of a file with one class a line, relative to the working directory; a dataset that
    names none has those of its type (`CocoDataset`: COCO's 80); several datasets have the first one's. Wrappers are
    looked into.

    Raises:
        TrainError: a file of classes that cannot be read, or `classes` that are no names.
    """
    if isinstance(cfg, (list, tuple)):
        return next((found for member in cfg if (found := classes_of(member))), ())
    if not isinstance(cfg, Mapping):
        return ()
    if cfg.get("type") in _WRAPPERS:
        return classes_of(cfg.get("dataset") or cfg.get("datasets"))
    names = cfg.get("classes")
    if names is None:
        kind = cfg.get("type")
        return tuple(getattr(DATASETS.get(kind) if isinstance(kind, str) else kind, "CLASSES", None) or ())
    if isinstance(names, str):
        return _classes_in_file(names)
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise TrainError(f"the config's data has classes = {names!r}: expected a list of names or a file of them")
    return tuple(names)


def _classes_in_file(name: str) -> tuple[str, ...]:
    try:
        lines = Path(name).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        fault = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise TrainError(
            f"the config's data has classes = {name!r}, which names a file of classes: {fault} (looked in "
            f"{Path.cwd()}). Give one with a class a line, or a list: a single class is [{name!r}]"
        ) from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise TrainError(f"the file of classes {name} is empty: expected one class a line")
    return names


def _with_own_types(cfg: Any, test_mode: bool) -> Any:
    """The same dataset config with `CountedCocoDataset` for `CocoDataset`, inside wrappers too."""
    if isinstance(cfg, Sequence):
        return [_with_own_types(member, test_mode) for member in cfg]
    own = dict(cfg)
    if own["type"] in ("CocoDataset", CocoDataset):
        return {**own, "type": CountedCocoDataset, "classes": classes_of(own), "test_mode": test_mode}
    if own["type"] not in _WRAPPERS:
        raise TrainError(
            f"dataset type {own['type']!r} is not supported: CSKD trains and evaluates on COCO annotations "
            f"(type='CocoDataset', or {', '.join(_WRAPPERS)} around it). `cskd-train data from-voc` converts VOC's"
        )
    for key in ("dataset", "datasets"):
        if key in own:
            own[key] = _with_own_types(own[key], test_mode)
    return own


@DATASETS.register_module()
class CountedCocoDataset(CocoDataset):
    """`CocoDataset` whose labels follow the config's classes and whose degenerate boxes are gone before anyone counts.

    Same arguments as mmdet's. `LoadImageFromFile` in `pipeline` is replaced by `LoadNamedImage`.
    """

    def __init__(self, ann_file: str, pipeline: Sequence[Mapping[str, Any]], **kwargs: Any) -> None:
        steps = [
            {**step, "type": "LoadNamedImage"} if step["type"] == "LoadImageFromFile" else step for step in pipeline
        ]
        super().__init__(ann_file, steps, **kwargs)

    def load_annotations(self, ann_file: str) -> list[dict[str, Any]]:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints "loading annotations into memory..."
            infos: list[dict[str, Any]] = super().load_annotations(ann_file)
            self._order_categories(ann_file)
            self._keep_out_degenerate()
        return infos

    def _order_categories(self, ann_file: str) -> None:
        """Put the file's categories in the order of the classes.

        mmdet derives labels from that order, here and again in `evaluate`.
        """
        categories = self.coco.dataset["categories"]
        self.cat_ids = category_ids(categories, self.CLASSES, ann_file)
        self.cat2label = {category: label for label, category in enumerate(self.cat_ids)}
        unused = len(self.cat_ids)
        categories.sort(key=lambda category: self.cat2label.get(category["id"], unused))

    def _keep_out_degenerate(self) -> None:
        """Take degenerate boxes out of the COCO object that training, mmdet's filter and pycocotools all read."""
        images = self.coco.imgs
        annotations = self.coco.dataset["annotations"]
        self.coco.dataset["annotations"] = [
            annotation
            for annotation in annotations
            if not is_degenerate(
                annotation, images[annotation["image_id"]]["width"], images[annotation["image_id"]]["height"]
            )
        ]
        self.coco.createIndex()
        # mmdet's snake-case names for the two indexes that createIndex has just made anew.
        self.coco.img_ann_map, self.coco.cat_img_map = self.coco.imgToAnns, self.coco.catToImgs


@PIPELINES.register_module()
class LoadNamedImage(LoadImageFromFile):
    """`LoadImageFromFile` that names the image which cannot be loaded. Same arguments as mmdet's."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        try:
            loaded: dict[str, Any] = super().__call__(results)
        except Exception as error:  # missing file, empty file, or a decoder that gives None and then has no `.shape`
            prefix, name = results["img_prefix"], results["img_info"]["filename"]
            path = os.path.join(prefix, name) if prefix else name
            fault = "does not exist" if isinstance(error, FileNotFoundError) else "cannot be decoded as an image"
            raise ImageError(f"{path} {fault}: `cskd-train data check --decode` finds every such file") from error
        return loaded


class ImageError(TrainError):
    """An image cannot be loaded.

    A data loader raises a worker's exception anew with the worker's whole traceback as the message; only its last line,
    the message itself, is for the user.
    """

    def __init__(self, message: str) -> None:
        if message.startswith("Caught ImageError in "):
            message = message.rstrip().rsplit("\n", 1)[-1].removeprefix(f"{__name__}.ImageError: ")
        super().__init__(message)
