"""A reference that was evaluated before: the JSON of `cskd-deploy eval`, used again on the same images and boxes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cskd_data import CocoResult, Dataset
from cskd_deploy.errors import DeployError

SUFFIX = ".json"


@dataclass(frozen=True)
class FormerResult:
    """What an evaluation found, and of what."""

    path: Path  # of the JSON
    model: str
    file_sha256: str | None
    device: str | None
    metrics: CocoResult
    annotations_sha256: str

    def check(self, dataset: Dataset) -> None:
        """Refuse to be held against an evaluation of other images, classes or boxes.

        Raises:
            DeployError: says what differs.
        """
        again = "or give the model itself as --reference"
        if self.metrics.images != len(dataset.images):
            raise DeployError(
                f"--reference {self.path} is of {self.metrics.images} images, this evaluation of "
                f"{len(dataset.images)}: give the --limit and --skip-broken that it was made with, {again}"
            )
        if set(self.metrics.per_class) != set(dataset.classes):
            raise DeployError(
                f"--reference {self.path} has the classes {', '.join(self.metrics.per_class)}, this evaluation "
                f"{', '.join(dataset.classes)}: their mAP cannot be compared"
            )
        if self.annotations_sha256 != annotations_sha256(dataset):
            raise DeployError(
                f"--reference {self.path} was evaluated on other annotations than {dataset.source}: give the --ann "
                f"that it was made with, {again}"
            )


def read_former(path: Path) -> FormerResult:
    """The model of an evaluation, not its reference.

    Raises:
        DeployError: the file is missing, not a JSON of `cskd-deploy eval`, of an older version, or has no mAP.
    """
    try:
        data = json.loads(path.read_text())
        known = {field.name for field in fields(CocoResult)}
        metrics = CocoResult(**{name: value for name, value in data.items() if name in known})
        model, sha256 = str(data["model"]), data["file_sha256"]
        valid = isinstance(metrics.metrics, Mapping) and isinstance(metrics.per_class, Mapping)
    except OSError as error:
        raise DeployError(f"--reference {path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeployError(
            f"--reference {path} is not the output of `cskd-deploy eval MODEL ... --json` "
            f"({type(error).__name__}: {error})"
        ) from error
    if not valid or not isinstance(metrics.metrics.get("bbox_mAP"), (int, float)):
        raise DeployError(f"--reference {path} holds no mAP: evaluate the reference on annotated images")
    annotations = data.get("annotations_sha256")
    if annotations is None:
        raise DeployError(
            f"--reference {path} does not say which annotations it is of, an older version wrote it: evaluate the "
            "reference again"
        )
    return FormerResult(path, model, sha256, data.get("device"), metrics, annotations)


def annotations_sha256(dataset: Dataset) -> str:
    """Of all that mAP depends on beside the detections: the images, the boxes, and the classes by name.

    The same for whatever folder the images lie in and whatever order the classes have.
    """
    names: dict[int, Any] = {category["id"]: category["name"] for category in dataset.data["categories"]}
    images: dict[int, Any] = {
        one["id"]: [str(dataset.image_keys[one["id"]]), Path(one["file_name"]).name, one["width"], one["height"]]
        for one in dataset.images
    }
    boxes: list[Any] = [
        [*images[one["image_id"]], names[one["category_id"]], *one["bbox"], one["area"], one["iscrowd"]]
        for one in dataset.annotations
    ]
    content = [sorted(names.values()), sorted(images.values()), sorted(boxes)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
