"""What an exported file says about itself: all that inference needs, kept in the file's own metadata.

The manifest is one JSON text under the key `cskd_manifest` of the ONNX `metadata_props`. It is data: it is read with a
strict parser, and nothing in it is ever executed.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cskd_deploy import __version__
from cskd_deploy.arguments import whole
from cskd_deploy.errors import DeployError

MANIFEST_KEY = "cskd_manifest"
# 2 added `postprocessing.threshold_on`, 3 `graph`, 4 `preprocessing.canvases`, `graph.batch`, `graph.proposals`,
# `agreement` and `requires`
SCHEMA = 4
SCHEMAS = (1, 2, 3, 4)  # that are read
INPUTS = ("float", "uint8")
NMS_PLACES = ("outside", "graph")


@dataclass(frozen=True)
class Preprocessing:
    """From a BGR image to the network's input, as mmdet's test pipeline does it.

    The image is resized (bilinear), its channels are put in `channel_order`, it is normalised as `(x - mean) / std` and
    padded right and bottom with `pad_value`. With `keep_ratio` it is made as large as `scale` allows, whichever way
    round the image is; without, it is stretched to `scale`. It is padded to `input_size`, and made smaller where it
    would not fit. Where the graph's size is dynamic, it is padded to the next multiples of `pad_divisor` as mmdet does
    it, or to that one of the `canvases` on which it is largest.
    """

    input_size: tuple[int, int]  # (height, width) of the graph's input; of a dynamic one, that of an image of `scale`
    scale: tuple[int, int]  # (width, height), the `img_scale` of the test pipeline
    keep_ratio: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channel_order: str  # "rgb" or "bgr": the order of the graph's channels, of mean and of std
    pad_divisor: int  # mmdet pads each image to a multiple of this; `input_size` is one
    pad_value: float  # after normalisation
    canvases: tuple[tuple[int, int], ...] = ()  # (height, width) of a dynamic graph that takes no other sizes

    def __post_init__(self) -> None:
        sides = (
            *self.input_size,
            *self.scale,
            self.pad_divisor,
            *(side for canvas in self.canvases for side in canvas),
        )
        if min(sides) < 1:
            raise ValueError("sizes must be positive")
        if self.channel_order not in ("rgb", "bgr"):
            raise ValueError(f"channel_order is {self.channel_order!r}, expected 'rgb' or 'bgr'")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")


@dataclass(frozen=True)
class Postprocessing:
    """From the graph's candidates to detections: threshold, clip, scale back, NMS, keep the best."""

    score_threshold: float
    nms_iou_threshold: float
    nms_class_agnostic: bool
    max_per_image: int
    clip_boxes: bool  # to the image before padding
    threshold_on: str = "scores"  # or "class_scores": the graph's output that the score threshold applies to

    def __post_init__(self) -> None:
        if self.max_per_image < 1:
            raise ValueError("max_per_image must be positive")
        if self.threshold_on not in ("scores", "class_scores"):
            raise ValueError(f"threshold_on is {self.threshold_on!r}, expected 'scores' or 'class_scores'")


@dataclass(frozen=True)
class GraphForm:
    """What of the pre- and post-processing the graph does itself, and which sizes it takes.

    A "float" graph takes `(N, 3, H, W)` float32 that is reordered, normalised and padded. A "uint8" graph takes the
    resized pixels as OpenCV has them, `(N, H, W, 3)` BGR, padded with anything; it does the rest itself, and
    `image_shape` tells it where the padding begins.
    """

    input: str = "float"
    dynamic: bool = False  # height and width are any multiples of `pad_divisor`
    nms: str = "outside"  # "graph": it gives detections, boxes of score 0 fill up their number
    batch: int | None = 1  # images at a time; None takes any number
    proposals: int | None = None  # of an image, of a two-stage student; of a file before schema 4 it is not known

    def __post_init__(self) -> None:
        for name in ("batch", "proposals"):
            count = getattr(self, name)
            if count is not None:
                object.__setattr__(self, name, whole(count, name))
        if self.input not in INPUTS:
            raise DeployError(f"input is {self.input!r}, expected 'float' or 'uint8'")
        if self.nms not in NMS_PLACES:
            raise DeployError(f"nms is {self.nms!r}, expected 'outside' or 'graph'")


@dataclass(frozen=True)
class AgreementWithFp32:
    """How far a file agreed with the one that it was made of, before it got its name (`accuracy.against_fp32`)."""

    sha256: str  # of the FP32 file; of an engine's, the ONNX file
    images: int
    random: bool  # they were seeded random images, no pictures
    detections: int  # of both files together, but for those whose score is at the cut
    matched: float  # share of them
    overlap: float  # mean IoU of the matched
    correlation: dict[str, tuple[float | None, ...]]  # of class logits, by layer, level by level; None: all are equal
    difference: dict[str, tuple[float, ...]]  # root mean square of the logits' differences
    spread: dict[str, tuple[float, ...]]  # standard deviation of FP32's

    def __str__(self) -> str:
        images = f"{self.images} random images" if self.random else f"{self.images} images"
        lines = [
            f"agrees with its source on {images}: {100 * self.matched:.1f} % of {self.detections} detections, IoU "
            f"{self.overlap:.3f}"
        ]
        for layer, levels in self.correlation.items():
            shown = " ".join("-" if value is None else f"{value:.5f}" for value in levels)
            lines.append(f"correlation of {layer}: {shown}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Manifest:
    """The whole of it. `checkpoint` and `sha256` name the file that was exported."""

    family: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    postprocessing: Postprocessing
    checkpoint: str
    sha256: str
    opset: int  # of the graph; 0 for a student that is not exported
    precision: str
    versions: dict[str, str]
    graph: GraphForm = GraphForm()
    schema: int = SCHEMA
    agreement: AgreementWithFp32 | None = None  # None: FP32, or of an earlier schema
    requires: tuple[str, ...] = ()  # instruction sets without which a processor computes other numbers

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as it stands in the file."""
        return dataclasses.asdict(self)

    def to_metadata(self) -> dict[str, str]:
        """The one entry of the ONNX `metadata_props`."""
        return {MANIFEST_KEY: json.dumps(self.to_dict())}


def manifest_from_metadata(metadata: Mapping[str, str], path: object) -> Manifest:
    """Read the manifest from the metadata of the file at `path`.

    Raises:
        DeployError: there is none (an ONNX file of another kind), it is malformed, or a newer version wrote it.
    """
    text = metadata.get(MANIFEST_KEY)
    if text is None:
        raise DeployError(
            f"{path} is an ONNX file, but not one of `cskd-deploy export`: its metadata has no {MANIFEST_KEY!r} "
            "(class names, input size, thresholds). Export the student's checkpoint again"
        )
    try:
        data = json.loads(text)
        if not isinstance(data, dict):
            raise TypeError("expected an object")
        schema = checked_schema(data, SCHEMAS, data.get("versions"))
        return Manifest(
            family=_typed(data, "family", str),
            classes=tuple(_typed_list(data, "classes", str)),
            preprocessing=_preprocessing(_typed(data, "preprocessing", dict), schema),
            postprocessing=_postprocessing(_typed(data, "postprocessing", dict), schema),
            checkpoint=_typed(data, "checkpoint", str),
            sha256=_typed(data, "sha256", str),
            opset=_typed(data, "opset", int),
            precision=_typed(data, "precision", str),
            versions={str(name): str(version) for name, version in _typed(data, "versions", dict).items()},
            graph=GraphForm() if schema < 3 else _graph(_typed(data, "graph", dict), schema, data["family"]),
            schema=schema,
            agreement=None if schema < 4 or data.get("agreement", 0) is None else _agreement(data),
            requires=_requires(data, schema),
        )
    except (ValueError, TypeError, DeployError) as error:
        raise DeployError(f"the metadata {MANIFEST_KEY!r} of {path} cannot be read: {error}") from error


def checked_schema(data: Mapping[str, Any], schemas: tuple[int, ...], versions: object) -> int:
    """The schema of a manifest's data.

    Args:
        schemas: those that are read.
        versions: what the data says of the versions that wrote it, if anything.

    Raises:
        TypeError, ValueError: it is no number, or none of `schemas`; says which version reads it.
    """
    schema: int = _typed(data, "schema", int)
    if schema in schemas:
        return schema
    message = f"schema is {schema}, cskd-deploy {__version__} reads {', '.join(map(str, schemas))}"
    if schema < max(schemas):
        raise ValueError(f"{message}. Export the student's checkpoint again")
    writer = versions.get("cskd-deploy") if isinstance(versions, dict) else None
    newer = f"cskd-deploy {writer}, which wrote it, or newer" if isinstance(writer, str) else "a newer cskd-deploy"
    raise ValueError(f"{message}. Install {newer}, or export the student's checkpoint again with {__version__}")


def _preprocessing(data: Mapping[str, Any], schema: int) -> Preprocessing:
    canvases = [] if schema < 4 else _typed_list(data, "canvases", list)
    scale_width, scale_height = _typed_list(data, "scale", int, 2)
    mean = _typed_list(data, "mean", float, 3)
    std = _typed_list(data, "std", float, 3)
    return Preprocessing(
        input_size=_size(data, "input_size"),
        scale=(scale_width, scale_height),
        keep_ratio=_typed(data, "keep_ratio", bool),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        channel_order=_typed(data, "channel_order", str),
        pad_divisor=_typed(data, "pad_divisor", int),
        pad_value=_typed(data, "pad_value", float),
        canvases=tuple(_size({"canvases": canvas}, "canvases") for canvas in canvases),
    )


def _size(data: Mapping[str, Any], key: str) -> tuple[int, int]:
    height, width = _typed_list(data, key, int, 2)
    return height, width


def _postprocessing(data: Mapping[str, Any], schema: int) -> Postprocessing:
    return Postprocessing(
        score_threshold=_typed(data, "score_threshold", float),
        nms_iou_threshold=_typed(data, "nms_iou_threshold", float),
        nms_class_agnostic=_typed(data, "nms_class_agnostic", bool),
        max_per_image=_typed(data, "max_per_image", int),
        clip_boxes=_typed(data, "clip_boxes", bool),
        threshold_on="scores" if schema == 1 else _typed(data, "threshold_on", str),
    )


def _graph(data: Mapping[str, Any], schema: int, family: str) -> GraphForm:
    dynamic, nms = _typed(data, "dynamic", bool), _typed(data, "nms", str)
    if schema < 4:  # every dynamic graph took any batch, where its parts do
        batch = None if dynamic and nms == "outside" and family != "faster_rcnn" else 1
    else:
        batch = _int_or_none(data, "batch")
    proposals = None if schema < 4 else _int_or_none(data, "proposals")
    return GraphForm(input=_typed(data, "input", str), dynamic=dynamic, nms=nms, batch=batch, proposals=proposals)


def _int_or_none(data: Mapping[str, Any], key: str) -> int | None:
    return None if data.get(key, 0) is None else _typed(data, key, int)


def _agreement(manifest: Mapping[str, Any]) -> AgreementWithFp32:
    data = _typed(manifest, "agreement", dict)
    correlation, difference, spread = (_typed(data, key, dict) for key in ("correlation", "difference", "spread"))
    return AgreementWithFp32(
        sha256=_typed(data, "sha256", str),
        images=_typed(data, "images", int),
        random=_typed(data, "random", bool),
        detections=_typed(data, "detections", int),
        matched=_typed(data, "matched", float),
        overlap=_typed(data, "overlap", float),
        correlation={
            layer: tuple(None if value is None else _checked(value, "correlation", float) for value in levels)
            for layer, levels in ((layer, _typed(correlation, layer, list)) for layer in correlation)
        },
        difference={layer: tuple(_typed_list(difference, layer, float)) for layer in difference},
        spread={layer: tuple(_typed_list(spread, layer, float)) for layer in spread},
    )


def _requires(data: Mapping[str, Any], schema: int) -> tuple[str, ...]:
    if schema < 4:  # weights of 8 bits for ONNX Runtime's processor kernels
        return ("vnni",) if data["precision"] == "int8-cpu" else ()
    return tuple(_typed_list(data, "requires", str))


def _typed(data: Mapping[str, Any], key: str, kind: type) -> Any:
    if key not in data:
        raise ValueError(f"{key!r} is missing")
    return _checked(data[key], key, kind)


def _typed_list(data: Mapping[str, Any], key: str, kind: type, length: int | None = None) -> list[Any]:
    values = _typed(data, key, list)
    if length is not None and len(values) != length:
        raise ValueError(f"{key!r} has {len(values)} values, expected {length}")
    return [_checked(value, key, kind) for value in values]


def _checked(value: Any, key: str, kind: type) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    # bool is a subclass of int, but `true` is no size.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{key!r} is {value!r}, expected {kind.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key!r} is {value!r}, expected a finite number")
    return value
