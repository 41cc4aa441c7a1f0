"""COCO box metrics of detections, by pycocotools' protocol."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from cskd_data.boxes import box_of, number
from cskd_data.dataset import Dataset
from cskd_data.errors import DataError, refuse
from cskd_data.ids import with_aliases
from cskd_data.json_file import load_json
from cskd_data.results import CocoResult

Detections = Sequence[Mapping[str, Any]]
"""COCO's results format: image_id and category_id as in the user's file, bbox (x, y, width, height), score."""


def evaluate(
    dataset: Dataset,
    detections: Detections | Path | str,
    *,
    split: str = "",
    seconds: float = 0.0,
    protocol: Any = None,
) -> CocoResult:
    """The twelve COCO numbers and the AP of each class.

    Ground truth is what `dataset` holds: no degenerate box counts, crowds as pycocotools takes them. Detections of
    categories that are none of the data set's classes (`Dataset.unused`) and of images that were left out of it
    (`Dataset.left_out`, which the result counts) are left out of account.

    Args:
        detections: in COCO's results format with the user's own ids, or a JSON file of them; there may be none.
        split, seconds: for the result: what the data set is called, and how long the detection took.
        protocol: a class with the interface of `COCOeval`; None takes `coco_protocol()`.

    Raises:
        DataError: the data set is pseudo-labelled, or has no box that counts; the file is no JSON list; a detection
            names an image or category that the data set lacks, or its box or score are no numbers.
    """
    begin = time.perf_counter()
    dataset.refuse_as_truth()
    if not dataset.countable:
        raise DataError(f"mAP cannot be computed: {dataset.nothing_counts()}")
    if isinstance(detections, (str, Path)):
        detections = load_detections(Path(detections))
    found = numbered(dataset, detections)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its steps
        protocol = protocol or coco_protocol()
        run = protocol(coco_index(dataset, dataset.annotations), coco_index(dataset, found), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    # precision: (IoU, recall, category, area range, detections per image); -1 where the category has no box.
    precision = run.eval["precision"][:, :, :, 0, -1].transpose(2, 0, 1)
    return CocoResult.from_stats(
        run.stats,
        {
            name: float(of_class.mean()) if of_class.max() > -1 else None
            for name, of_class in zip(dataset.classes, precision, strict=True)
        },
        split=split,
        images=len(dataset.images),
        detections=len(detections),
        seconds=seconds + time.perf_counter() - begin,
        skipped_images=len(dataset.left_out),
        protocol=_distribution(protocol),
    )


def load_detections(path: Path) -> list[dict[str, Any]]:
    """The detections of a JSON file in COCO's results format.

    Raises:
        DataError: it is missing, not JSON, or no list.
    """
    content = load_json(path, "predictions file")
    if isinstance(content, dict) and isinstance(content.get("annotations"), list) and "images" not in content:
        content = content["annotations"]
    if not isinstance(content, list):
        raise DataError(
            f"predictions file {path} is not in COCO's results format: expected a list of objects with image_id, "
            f"category_id, bbox and score, found a {type(content).__name__}"
            + (" (is it the annotation file?)" if isinstance(content, dict) and "images" in content else "")
        )
    return content


def coco_protocol() -> Any:
    """pycocotools' `COCOeval`, or where it is installed faster-coco-eval's: the same numbers, several times faster."""
    try:
        from faster_coco_eval import COCOeval_faster
    except ImportError:
        from pycocotools.cocoeval import COCOeval

        return COCOeval
    return COCOeval_faster


def _distribution(protocol: Any) -> str:
    """The name and version of what a class with the protocol's interface is installed by, or its module."""
    module = str(protocol.__module__).partition(".")[0]
    name = module.replace("_", "-")
    with contextlib.suppress(metadata.PackageNotFoundError):
        return f"{name} {metadata.version(name)}"
    return module


def numbered(dataset: Dataset, detections: Detections) -> list[dict[str, Any]]:
    """Detections with the ids of the normal form, in the same order, and what pycocotools' `loadRes` would add."""
    images = with_aliases({key: image_id for image_id, key in dataset.image_keys.items()})
    categories = with_aliases({key: category_id for category_id, key in dataset.category_keys.items()})
    ignored = with_aliases(dict.fromkeys(dataset.unused.values(), 0))
    left_out = with_aliases(dict.fromkeys(dataset.left_out, 0))
    found: list[dict[str, Any]] = []
    faults = []
    for position, one in enumerate(detections):
        box = box_of(one) if isinstance(one, Mapping) else None
        score = number(one.get("score")) if isinstance(one, Mapping) else None
        if box is None or score is None:
            faults.append(f"detection {position} is {str(one)[:120]} (expected image_id, category_id, bbox and score)")
            continue
        try:
            image_id, category_id = images.get(one.get("image_id")), categories.get(one.get("category_id"))
            skipped = one.get("category_id") in ignored
            of_skipped_image = image_id is None and one.get("image_id") in left_out
        except TypeError:  # a list or an object in place of an id
            image_id = category_id = None
            skipped = of_skipped_image = False
        if of_skipped_image:
            continue
        if image_id is None:
            faults.append(f"detection {position} names image id {one.get('image_id')!r}, which is not listed")
        elif category_id is not None:
            found.append(
                {
                    "id": len(found) + 1,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": list(box),
                    "score": score,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
        elif not skipped:
            faults.append(f"detection {position} names category id {one.get('category_id')!r}, which is not listed")
    refuse(
        f"the predictions for {dataset.source}", faults, "Give predictions with the image and category ids of that file"
    )
    return found


def coco_index(dataset: Dataset, annotations: Sequence[Mapping[str, Any]]) -> Any:
    """pycocotools' index of these annotations; copies, for the protocol writes into them."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "images": dataset.images,
        "annotations": [{key: value for key, value in one.items() if key != "segmentation"} for one in annotations],
        "categories": dataset.data["categories"],
    }
    coco.createIndex()
    return coco
