"""Data sets in cskd-data's normal form as mmdet's datasets, with three of its silences mended.

Stock mmdet (1) hands degenerate boxes to pycocotools, where each counts as a missed object; (2) numbers labels in the
order of the annotation file, not of the config's classes, and drops a class that the file does not have; (3) fails on
an unreadable image with an `AttributeError` that names no file. Configs stay stock: `build` puts the classes below in
the place of `CocoDataset` and `LoadImageFromFile`.
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.datasets import DATASETS, PIPELINES, CocoDataset, MultiImageMixDataset, build_dataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.datasets.pipelines import LoadImageFromFile

import cskd_data
from cskd_data.errors import ImageFault
from cskd_data.images import load_image
from cskd_data.merge import merge
from cskd_train.errors import TrainError
from cskd_train.mm.data_sources import WRAPPERS, Source, sources
from cskd_train.mm.normalization import Normalization, normalized


def build(cfg: Any, test_mode: bool, classes: Sequence[str] = (), skip_broken: bool = False) -> Any:
    """The mmdet dataset of a config's `data.train`, `data.val` or `data.test`, without degenerate boxes.

    Several annotation files have the same classes, in the order of the first.

    Arguments:
        cfg: a dataset config as mmdet takes it: `CocoDataset`, alone or inside mmdet's wrappers. It is not changed.
        test_mode: False drops images without boxes (as the config's `filter_empty_gt` says) and gives annotations; True
            keeps every image and gives none, and makes one dataset of several files, each image once. Replaces a
            `test_mode` in `cfg`.
        classes: the order of the labels; the config's own by default.
        skip_broken: leave out images that cannot be used: `counts` says how many.

    Returns:
        a `torch.utils.data.Dataset` with `CLASSES`; for evaluation also `normal` (the data set in normal form), `coco`
        (its annotations), `cat_ids` (the category id of each label) and `img_ids` (the image id of each index): ids of
        the normal form.

    Which boxes count is defined by `cskd_data.boxes.degenerate`. Beside these, mmdet leaves boxes narrower or lower
    than one pixel out of training; they stay in the evaluation.

    Raises:
        TrainError: another dataset type, a file of classes that cannot be read, or files with different classes. An
            image that cannot be loaded raises `ImageError`, a TrainError, when it is asked for, also through a data
            loader's worker.
        DataError: an annotation file that cannot be used, or that lacks a class.
    """
    found = list(sources(cfg, skip_broken))
    if not found:
        raise TrainError("the config's data names no annotation file")
    classes = tuple(classes) or found[0].classes
    if not test_mode:
        return build_dataset(_with_own_types(cfg, classes, skip_broken))
    first = first_leaf(cfg)
    normal = merge([source.read(classes) for source in found])
    keys = ("proposal_file", "filter_empty_gt", "file_client_args")
    kept = {key: first[key] for key in keys if key in first}
    return CountedCocoDataset(found[0].ann_file, first["pipeline"], normal=normal, test_mode=True, **kept)


def build_unlabelled(cfg: Any, pictures: cskd_data.Dataset) -> Any:
    """The mmdet dataset of pictures without annotations, brought in as a config's split for evaluation is.

    Args:
        cfg: the config's `data.val` or `data.test`.
        pictures: they have the classes of the model.
    """
    return CountedCocoDataset(str(pictures.source), first_leaf(cfg)["pipeline"], normal=pictures, test_mode=True)


def counts(dataset: Any) -> tuple[int, int]:
    """How many images of its annotation files a dataset uses, and how many cannot be used and were left out.

    Each image counts once, however often a wrapper repeats it. What a training leaves out by its kind (images without a
    box, or below 32 pixels) is in neither number.
    """
    if hasattr(dataset, "normal"):
        return len(dataset), len(dataset.normal.left_out)
    members = dataset.datasets if hasattr(dataset, "datasets") else [dataset.dataset]
    used, skipped = zip(*map(counts, members), strict=True)
    return sum(used), sum(skipped)


def leave_out(dataset: Any, steps: Sequence[str]) -> None:
    """Leave steps of these types, such as Mosaic, out of every `MultiImageMixDataset` in a dataset from now on."""
    if isinstance(dataset, MultiImageMixDataset):
        dataset.update_skip_type_keys(tuple(steps))
    for inner in getattr(dataset, "datasets", [getattr(dataset, "dataset", None)]):
        if inner is not None:
            leave_out(inner, steps)


def _with_own_types(cfg: Any, classes: tuple[str, ...], skip_broken: bool) -> Any:
    """The same dataset config with `CountedCocoDataset` for `CocoDataset`, inside wrappers too, and these classes."""
    if isinstance(cfg, Sequence):
        return [_with_own_types(member, classes, skip_broken) for member in cfg]
    own = dict(cfg)
    if own["type"] not in WRAPPERS:
        folders = []
        for source in sources(own, skip_broken):
            source.read(classes)  # refuses other classes
            folders.append(source.images and os.path.abspath(source.images))
        own["img_prefix"] = folders if isinstance(own.get("ann_file"), (list, tuple)) else folders[0]
        return {
            **own, "type": CountedCocoDataset, "classes": classes, "test_mode": False, "skip_broken": skip_broken
        }  # fmt: skip
    for key in ("dataset", "datasets"):
        if key in own:
            own[key] = _with_own_types(own[key], classes, skip_broken)
    return own


def first_leaf(cfg: Any) -> Mapping[str, Any]:
    """The settings of the first dataset of a config that is no wrapper."""
    while isinstance(cfg, (list, tuple)) or cfg.get("type") in WRAPPERS:
        cfg = cfg[0] if isinstance(cfg, (list, tuple)) else cfg.get("dataset") or cfg.get("datasets")
    return cfg


def with_images_of(own: Any, cfg: Any, split: str) -> Any:
    """A config whose images of a split come in (scaled, normalised, padded) as another config, a detector's, says.

    Whoever has a detector look at images of another config takes them from here. A detector's config without a pipeline
    for evaluation, as mmdet 3 writes it, says how they are normalised all the same: the rest is as `cfg` has it.

    Args:
        own: the config of the detector; where it says nothing of images they come in as `cfg` has it.
        cfg: says which images. It is not changed.
        split: val or test.

    Raises:
        TrainError: a normalisation of `own` without three numbers for mean and for std.
    """
    data, found = own.get("data") or {}, Normalization.of_config(own)
    source = data.get(split) or data.get("val") or data.get("test")
    pipeline = first_leaf(source).get("pipeline") if source else None
    if found is None:
        return cfg
    changed = copy.deepcopy(cfg)
    leaf: Any = first_leaf(changed.data[split])
    leaf["pipeline"] = copy.deepcopy(pipeline or leaf["pipeline"])
    if not pipeline or (own.get("model") or {}).get("data_preprocessor"):
        leaf["pipeline"] = normalized(leaf["pipeline"], found)
    return changed


@DATASETS.register_module()
class CountedCocoDataset(CocoDataset):
    """`CocoDataset` of a data set in normal form: label `i` is class `i`, and degenerate boxes are gone.

    Same arguments as mmdet's; `normal`, the data set where it was read before; `skip_broken`. `LoadImageFromFile` in
    `pipeline` is replaced by `LoadNamedImage`.
    """

    def __init__(
        self,
        ann_file: str,
        pipeline: Sequence[Mapping[str, Any]],
        normal: cskd_data.Dataset | None = None,
        skip_broken: bool = False,
        **kwargs: Any,
    ) -> None:
        steps = [
            {**step, "type": "LoadNamedImage"} if step["type"] == "LoadImageFromFile" else step for step in pipeline
        ]
        self.normal = normal
        self._skip_broken = skip_broken
        if normal is not None:
            kwargs["classes"] = normal.classes
        super().__init__(ann_file, steps, **kwargs)

    def load_annotations(self, ann_file: str) -> list[dict[str, Any]]:
        folder: str | None = self.img_prefix or None  # type: ignore[has-type]
        normal = self.normal or Source(ann_file, folder, self.CLASSES, self._skip_broken).read()  # type: ignore[has-type]
        self.normal, self.CLASSES = normal, normal.classes
        for image in normal.images[:1]:
            normal.path(image)  # refuses a data set without an image folder
        self.img_prefix = str(normal.image_root)
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints "creating index..."
            self.coco = COCO()
            self.coco.dataset = {**normal.data}
            self.coco.createIndex()
        # mmdet's snake-case names for the two indexes that createIndex has just made.
        self.coco.img_ann_map, self.coco.cat_img_map = self.coco.imgToAnns, self.coco.catToImgs
        self.cat_ids = [category["id"] for category in normal.data["categories"]]
        self.cat2label = {category: label for label, category in enumerate(self.cat_ids)}
        self.img_ids = [image["id"] for image in normal.images]
        return [{**image, "filename": image["file_name"]} for image in normal.images]


@PIPELINES.register_module()
class LoadNamedImage(LoadImageFromFile):
    """`LoadImageFromFile` by cskd-data's rule of decoding, naming an image that cannot be loaded.

    Same arguments as mmdet's.
    """

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        prefix, name = results["img_prefix"], results["img_info"]["filename"]
        path = os.path.join(prefix, name) if prefix else name
        usual = self.color_type == "color" and getattr(self, "channel_order", "bgr") == "bgr"  # mmdet 2.22 has no order
        try:
            if usual:
                image = load_image(Path(path))
            else:
                image = super().__call__(results)["img"]
        except Exception as error:  # mmdet's: a missing file, or a decoder that gives None and then has no `.shape`
            fault = str(error) if isinstance(error, ImageFault) else "cannot be decoded as an image"
            ways = "`cskd-train data check --decode` finds every such file, `--skip-broken` goes on without them"
            raise ImageError(f"{path} {fault}: {ways}") from error
        results.update(filename=path, ori_filename=name, img=image.astype(np.float32) if self.to_float32 else image)
        results.update(img_shape=image.shape, ori_shape=image.shape, img_fields=["img"])
        return results


class ImageError(TrainError):
    """An image cannot be loaded.

    A data loader raises a worker's exception anew with the worker's whole traceback as the message; only its last line,
    the message itself, is for the user.
    """

    def __init__(self, message: str) -> None:
        if message.startswith("Caught ImageError in "):
            message = message.rstrip().rsplit("\n", 1)[-1].removeprefix(f"{__name__}.ImageError: ")
        super().__init__(message)
