"""Data sets in cskd-data's normal form as mmdet's datasets, with three of its silences mended.

Stock mmdet (1) hands degenerate boxes to pycocotools, where each counts as a missed object; (2) numbers labels in the
order of the annotation file, not of the config's classes, and drops a class that the file does not have; (3) fails on
an unreadable image with an `AttributeError` that names no file. Configs stay stock: `build` puts the classes below in
the place of `CocoDataset` and `LoadImageFromFile`.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.datasets import DATASETS, PIPELINES, CocoDataset, build_dataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.datasets.pipelines import LoadImageFromFile

import cskd_data
from cskd_data.errors import ImageFault
from cskd_data.images import load_image
from cskd_data.merge import merge
from cskd_data.names import plain_name
from cskd_train.errors import TrainError

_WRAPPERS = ("ConcatDataset", "RepeatDataset", "ClassBalancedDataset", "MultiImageMixDataset")


@dataclass(frozen=True)
class Source:
    """One annotation file of a dataset config, or one folder of another format."""

    ann_file: str
    images: str | None  # folder; None looks for it beside the file
    classes: tuple[str, ...]

    def read(self, classes: Sequence[str] = ()) -> cskd_data.Dataset:
        """The data set of the file, with the source's classes, in the order of `classes` if they are given.

        Raises:
            TrainError: `classes` are other ones; both lists are in the message.
            DataError: as `cskd_data.read`; the file lacks one of the classes.
        """
        own = [plain_name(name) for name in self.classes]
        wanted = [plain_name(name) for name in classes] or own
        if sorted(own) != sorted(wanted):
            raise TrainError(
                f"the config's classes for {self.ann_file} are {', '.join(own)}, expected those of the model and of "
                f"the training data: {', '.join(wanted)}. Give data.train, data.val and data.test the same `classes`"
            )
        try:
            status = os.stat(self.ann_file)
            stamp = status.st_mtime_ns, status.st_size
        except OSError:
            stamp = None
        images = self.images and os.path.abspath(self.images)  # mmdet joins relative ones to data_root, once more
        return _read(self.ann_file, images, tuple(wanted), stamp)


@functools.lru_cache(maxsize=4)  # a large file takes a minute: the check and what is built after it share one reading
def _read(ann_file: str, images: str | None, classes: tuple[str, ...], stamp: Any) -> cskd_data.Dataset:
    return cskd_data.read(ann_file, images).select(classes)


def sources(cfg: Any) -> Iterator[Source]:
    """The annotation files of a dataset config, inside mmdet's wrappers and lists too.

    Raises:
        TrainError: a dataset type that is not supported; as `classes_of`.
    """
    if isinstance(cfg, (list, tuple)):
        for member in cfg:
            yield from sources(member)
    elif cfg.get("type") in _WRAPPERS:
        yield from sources(cfg.get("dataset") or cfg.get("datasets") or ())
    elif cfg.get("type") not in ("CocoDataset", CocoDataset):
        raise TrainError(
            f"dataset type {cfg.get('type')!r} is not supported: give type='CocoDataset', or "
            f"{', '.join(_WRAPPERS)} around it; its ann_file may be a COCO file, a folder of VOC or YOLO, or one split "
            "(a list in VOC's ImageSets/Main, the folder of YOLO that holds it)"
        )
    else:
        files, prefixes = cfg.get("ann_file") or "", cfg.get("img_prefix", "")
        several = isinstance(files, (list, tuple))
        for index, ann_file in enumerate(files if several else [files]):
            prefix = prefixes[index] if isinstance(prefixes, (list, tuple)) else prefixes
            root = cfg.get("data_root") or ""
            path = os.path.join(root, ann_file)
            # As in mmdet an empty img_prefix is data_root, but other formats tell where their images are.
            images = os.path.join(root, prefix) if prefix or (prefix == "" and _is_coco(path)) else None
            yield Source(path, images or None, classes_of(cfg))


def _is_coco(path: str) -> bool:
    return not os.path.isdir(path) and Path(path).suffix.lower() not in (".yaml", ".yml", ".xml", ".txt")


def build(cfg: Any, test_mode: bool, classes: Sequence[str] = ()) -> Any:
    """The mmdet dataset of a config's `data.train`, `data.val` or `data.test`, without degenerate boxes.

    Several annotation files have the same classes, in the order of the first.

    Arguments:
        cfg: a dataset config as mmdet takes it: `CocoDataset`, alone or inside mmdet's wrappers. It is not changed.
        test_mode: False drops images without boxes (as the config's `filter_empty_gt` says) and gives annotations; True
            keeps every image and gives none, and makes one dataset of several files, each image once. Replaces a
            `test_mode` in `cfg`.
        classes: the order of the labels; the config's own by default.

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
    found = list(sources(cfg))
    if not found:
        raise TrainError("the config's data names no annotation file")
    classes = tuple(classes) or found[0].classes
    if not test_mode:
        return build_dataset(_with_own_types(cfg, classes))
    first = _first_leaf(cfg)
    normal = merge([source.read(classes) for source in found])
    keys = ("proposal_file", "filter_empty_gt", "file_client_args")
    kept = {key: first[key] for key in keys if key in first}
    return CountedCocoDataset(found[0].ann_file, first["pipeline"], normal=normal, test_mode=True, **kept)


def classes_of(cfg: Any) -> tuple[str, ...]:
    """The class names of a dataset config, in the order of its labels; () where nothing says them.

    As in mmdet, text is the name of a file with one class a line, relative to the working directory; a plain word, with
    no folder and no suffix, that names no file is the only class. A dataset that names none has those of its type
    (`CocoDataset`: COCO's 80); several datasets have the first one's. Wrappers are looked into.

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
        return (names,) if _is_one_class(names) else _classes_in_file(names)
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise TrainError(f"the config's data has classes = {names!r}: expected a list of names or a file of them")
    return tuple(names)


def _is_one_class(text: str) -> bool:
    path = Path(text).expanduser()
    return bool(text.strip()) and not (path.suffix or "/" in text or "\\" in text or path.exists())


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


def _with_own_types(cfg: Any, classes: tuple[str, ...]) -> Any:
    """The same dataset config with `CountedCocoDataset` for `CocoDataset`, inside wrappers too, and these classes."""
    if isinstance(cfg, Sequence):
        return [_with_own_types(member, classes) for member in cfg]
    own = dict(cfg)
    if own["type"] not in _WRAPPERS:
        folders = []
        for source in sources(own):
            source.read(classes)  # refuses other classes
            folders.append(source.images and os.path.abspath(source.images))
        own["img_prefix"] = folders if isinstance(own.get("ann_file"), (list, tuple)) else folders[0]
        return {**own, "type": CountedCocoDataset, "classes": classes, "test_mode": False}
    for key in ("dataset", "datasets"):
        if key in own:
            own[key] = _with_own_types(own[key], classes)
    return own


def _first_leaf(cfg: Any) -> Mapping[str, Any]:
    """The settings of the first dataset that is no wrapper."""
    while isinstance(cfg, (list, tuple)) or cfg.get("type") in _WRAPPERS:
        cfg = cfg[0] if isinstance(cfg, (list, tuple)) else cfg.get("dataset") or cfg.get("datasets")
    return cfg


@DATASETS.register_module()
class CountedCocoDataset(CocoDataset):
    """`CocoDataset` of a data set in normal form: label `i` is class `i`, and degenerate boxes are gone.

    Same arguments as mmdet's; `normal`, the data set where it was read before. `LoadImageFromFile` in `pipeline` is
    replaced by `LoadNamedImage`.
    """

    def __init__(
        self,
        ann_file: str,
        pipeline: Sequence[Mapping[str, Any]],
        normal: cskd_data.Dataset | None = None,
        **kwargs: Any,
    ) -> None:
        steps = [
            {**step, "type": "LoadNamedImage"} if step["type"] == "LoadImageFromFile" else step for step in pipeline
        ]
        self.normal = normal
        if normal is not None:
            kwargs["classes"] = normal.classes
        super().__init__(ann_file, steps, **kwargs)

    def load_annotations(self, ann_file: str) -> list[dict[str, Any]]:
        folder: str | None = self.img_prefix or None  # type: ignore[has-type]
        normal = self.normal or Source(ann_file, folder, self.CLASSES).read()  # type: ignore[has-type]
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
            raise ImageError(f"{path} {fault}: `cskd-train data check --decode` finds every such file") from error
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
