"""Read what inference needs from the `model` of an mmdet config, as plain data: the family and `test_cfg`.

Only what this package reproduces exactly is accepted; a variant that would run and compute something else is an error
that names the setting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cskd_deploy.detect.preprocess import padded_size
from cskd_deploy.errors import DeployError
from cskd_deploy.model.manifest import Postprocessing, Preprocessing

_DELTAS = ("DeltaXYWHBBoxCoder", None)
_DISTANCES = ("DistancePointBBoxCoder", None)

_SIGMOID = "bbox_head.loss_cls.use_sigmoid"

# Model type -> family, and the settings that have to be as given here; None stands for a setting that is left out.
_FAMILIES: dict[str, tuple[str, dict[str, tuple[Any, ...]]]] = {
    "RetinaNet": (
        "retinanet",
        {
            "bbox_head.type": ("RetinaHead", "FreeAnchorRetinaHead", "PISARetinaHead"),  # they differ in training alone
            _SIGMOID: (True,),
            "bbox_head.bbox_coder.type": _DELTAS,
        },
    ),
    "FCOS": (
        "fcos",
        {
            "bbox_head.type": ("FCOSHead",),
            _SIGMOID: (True,),
            "bbox_head.bbox_coder.type": _DISTANCES,
            "bbox_head.dcn_on_last_conv": (False, None),
        },
    ),
    "GFL": (
        "gfl",
        {
            "bbox_head.type": ("GFLHead",),
            _SIGMOID: (True,),
            "bbox_head.bbox_coder.type": _DISTANCES,
        },
    ),
    "ATSS": (
        "atss",
        {
            "bbox_head.type": ("ATSSHead",),
            _SIGMOID: (True,),
            "bbox_head.bbox_coder.type": _DELTAS,
        },
    ),
    "AutoAssign": (
        "autoassign",
        {
            "bbox_head.type": ("AutoAssignHead",),
            _SIGMOID: (True,),
            "bbox_head.bbox_coder.type": _DISTANCES,
            "bbox_head.dcn_on_last_conv": (False, None),
        },
    ),
    "FSAF": (
        "fsaf",
        {
            "bbox_head.type": ("FSAFHead",),
            _SIGMOID: (True,),
            "bbox_head.bbox_coder.type": ("TBLRBBoxCoder",),
        },
    ),
    "FasterRCNN": (
        "faster_rcnn",
        {
            "rpn_head.type": ("RPNHead",),
            "rpn_head.loss_cls.use_sigmoid": (True,),
            "rpn_head.bbox_coder.type": _DELTAS,
            "rpn_head.bbox_coder.clip_border": (True, None),  # RoIAlign's map may end where the image does
            "roi_head.type": ("StandardRoIHead",),
            "roi_head.shared_head": (None,),
            "roi_head.mask_head": (None,),
            "roi_head.bbox_roi_extractor.type": ("SingleRoIExtractor",),
            "roi_head.bbox_roi_extractor.roi_layer.type": ("RoIAlign",),
            "roi_head.bbox_roi_extractor.roi_layer.pool_mode": ("avg", None),
            "roi_head.bbox_head.type": ("Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead", "ConvFCBBoxHead"),
            "roi_head.bbox_head.loss_cls.type": ("CrossEntropyLoss", None),
            "roi_head.bbox_head.bbox_coder.type": _DELTAS,
            "roi_head.bbox_head.reg_class_agnostic": (False, None),
            "roi_head.bbox_head.with_cls": (True, None),
            "roi_head.bbox_head.with_reg": (True, None),
        },
    ),
}
# Deformable convolutions have no ONNX operator.
_EVERY_FAMILY: dict[str, tuple[Any, ...]] = {
    "backbone.dcn": (None,),
    "bbox_head.conv_cfg.type": ("Conv", "Conv2d", None),
}
_DEFORMABLE_NECKS = ("DyHead",)
# Families whose head gives a score factor (centerness, objectness): mmdet multiplies it in after the score threshold.
_SCORE_FACTORS = ("fcos", "atss", "autoassign")

EXPORTABLE: Mapping[str, tuple[str, ...]] = {
    kind: settings.get("bbox_head.type") or settings["roi_head.bbox_head.type"]
    for kind, (_, settings) in _FAMILIES.items()
}
"""Detector class of mmdet -> the classes of its box head with which a student can be exported."""


@dataclass(frozen=True)
class ProposalRule:
    """How a two-stage detector chooses its proposals: `test_cfg.rpn`."""

    candidates_per_level: int
    nms_iou_threshold: float
    max_per_image: int
    min_size: float  # in pixels of the input; below zero no proposal is too small


def family_of(config: Mapping[str, Any]) -> str:
    """The family name of a config's model.

    Raises:
        DeployError: the model is of a family that cannot be exported, or only nearly of one that can.
    """
    model = config.get("model") or {}
    kind = model.get("type")
    if kind not in _FAMILIES:
        exportable = "; ".join(f"{name} ({', '.join(heads)})" for name, heads in EXPORTABLE.items())
        raise DeployError(
            f"the config's model is of type {kind!r}, which cannot be exported yet, though cskd-train may train and "
            f"distil it. What can be exported: {exportable}"
        )
    family, settings = _FAMILIES[kind]
    for path, accepted in {**settings, **_EVERY_FAMILY}.items():
        value = _setting(model, path)
        if path == _SIGMOID and _setting(model, "bbox_head.loss_cls") is None:
            value = True  # the default of every head of the table
        if value not in accepted:
            choices = " or ".join("left out" if choice is None else repr(choice) for choice in accepted)
            raise DeployError(
                f"the config's {kind} has model.{path}={value!r}, which cannot be exported (expected: {choices})"
            )
    necks = model.get("neck")
    for part in necks if isinstance(necks, Sequence) else [necks]:
        neck = _setting(part, "type")
        if neck in _DEFORMABLE_NECKS:
            raise DeployError(
                f"the config's {kind} has the neck {neck}, which cannot be exported: its deformable convolutions have "
                "no ONNX operator"
            )
    return family


def postprocessing_of(config: Mapping[str, Any]) -> Postprocessing:
    """The thresholds of `config.model.test_cfg` and whether the coder clips boxes.

    Raises:
        DeployError: a setting is missing, or asks for an NMS that is not greedy NMS.
    """
    family = family_of(config)
    model = config["model"]
    stage = ".rcnn" if family == "faster_rcnn" else ""
    settings, where = _setting(model, f"test_cfg{stage}") or {}, f"model.test_cfg{stage}"
    head = "roi_head.bbox_head" if family == "faster_rcnn" else "bbox_head"
    nms = settings.get("nms") or {}
    return Postprocessing(
        score_threshold=number(settings.get("score_thr"), f"{where}.score_thr", float),
        nms_iou_threshold=_overlap(nms, where, ("class_agnostic",)),
        nms_class_agnostic=bool(nms.get("class_agnostic", False)),
        max_per_image=number(settings.get("max_per_img"), f"{where}.max_per_img", int),
        clip_boxes=_setting(model, f"{head}.bbox_coder.clip_border") is not False,
        threshold_on="class_scores" if family in _SCORE_FACTORS else "scores",
    )


def candidates_per_level(config: Mapping[str, Any]) -> int:
    """`model.test_cfg.nms_pre`: how many candidates of a pyramid level go on to NMS.

    Raises:
        DeployError: it is missing or not positive (mmdet then keeps every pair of anchor and class).
    """
    count: int = number(_setting(config.get("model"), "test_cfg.nms_pre"), "model.test_cfg.nms_pre", int)
    return count


def proposals_of(config: Mapping[str, Any]) -> ProposalRule:
    """The rule of `config.model.test_cfg.rpn`.

    Raises:
        DeployError: a setting is missing, or asks for an NMS that is not greedy NMS on each level.
    """
    where = "model.test_cfg.rpn"
    settings = _setting(config.get("model"), "test_cfg.rpn") or {}
    return ProposalRule(
        candidates_per_level=number(settings.get("nms_pre"), f"{where}.nms_pre", int),
        nms_iou_threshold=_overlap(settings.get("nms") or {}, where),
        max_per_image=number(settings.get("max_per_img"), f"{where}.max_per_img", int),
        min_size=number(settings.get("min_bbox_size"), f"{where}.min_bbox_size", float),
    )


def most_proposals(config: Mapping[str, Any]) -> int | None:
    """How many proposals of an image mmdet keeps; None of a one-stage detector. What else there is is not looked at."""
    count: int | None = _setting(config.get("model"), "test_cfg.rpn.max_per_img")
    return count


def number(value: Any, what: str, kind: type) -> Any:
    """`value` as a float, or as a positive int.

    Raises:
        DeployError: it is none; the message names `what`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (kind is int and value != int(value)):
        raise DeployError(f"the config's {what} is {value!r}, expected a number")
    if kind is int and value < 1:
        raise DeployError(f"the config's {what} is {value!r}, expected a positive number")
    return kind(value)


def _overlap(nms: Mapping[str, Any], where: str, further: tuple[str, ...] = ()) -> float:
    """The IoU threshold of an NMS setting; `further` are the keys that it may have beside."""
    if nms.get("type", "nms") != "nms" or set(nms) - {"type", "iou_threshold", "iou_thr", *further}:
        raise DeployError(
            f"the config's {where}.nms is {dict(nms)}: only type='nms' with an iou_threshold can be exported"
        )
    threshold: float = number(nms.get("iou_threshold", nms.get("iou_thr")), f"{where}.nms.iou_threshold", float)
    return threshold


def _setting(model: Any, path: str) -> Any:
    """The value at a dotted path, None where there is none."""
    for key in path.split("."):
        model = model.get(key) if isinstance(model, Mapping) else None
    return model


# Accepted keys of each step beside `type`; other keys change the result, unless they stand at the value given here.
_STEPS: dict[str, dict[str, Any]] = {
    "LoadImageFromFile": {"to_float32": False, "color_type": "color", "channel_order": "bgr"},
    "MultiScaleFlipAug": {"img_scale": ..., "flip": False, "transforms": ..., "flip_direction": ...},
    "Resize": {
        "keep_ratio": ...,
        "interpolation": "bilinear",
        "backend": "cv2",
        "bbox_clip_border": ...,
        "img_scale": ...,
    },
    "RandomFlip": {"flip_ratio": ..., "direction": ...},  # MultiScaleFlipAug's flip=False switches it off
    "Normalize": {"mean": ..., "std": ..., "to_rgb": ...},
    "Pad": {"size_divisor": ..., "size": None, "pad_to_square": False, "pad_val": ...},
    "ImageToTensor": {"keys": ...},
    "DefaultFormatBundle": {},
    "Collect": {"keys": ..., "meta_keys": ...},
}
_ORDER = ("Resize", "Normalize", "Pad")
_OUTER = ("LoadImageFromFile", "MultiScaleFlipAug")  # the pipeline itself; the other steps stand in its second one


def preprocessing_of(config: Mapping[str, Any], input_sizes: Sequence[tuple[int, int]] = ()) -> Preprocessing:
    """The rule of `config.data.test.pipeline`.

    Args:
        input_sizes: (height, width) of the graph's input, or of its two canvases. By default the size is that of the
            config's `img_scale`, the way round it is written, rounded up to the pipeline's `size_divisor`: (1333, 800)
            gives 800 x 1344.

    Raises:
        DeployError: a step that is not reproduced here, a size that is no multiple of the divisor, or several where the
            pipeline gives one size only.
    """
    augment = _augment(config)
    transforms = _checked_steps(augment.get("transforms", []))
    stray = next((step["type"] for step in transforms if step["type"] in _OUTER), None)
    if stray is not None:
        raise DeployError(
            f"the test pipeline has the step {stray} inside MultiScaleFlipAug, which cskd-deploy does not reproduce: "
            "take it out"
        )
    order = [step["type"] for step in transforms if step["type"] in _ORDER]
    if order != list(_ORDER):
        raise DeployError(f"the test pipeline has the steps {', '.join(order)}, expected {', '.join(_ORDER)} once each")
    resize, normalize, pad = (_step(transforms, name) for name in _ORDER)
    width, height = _scale(augment.get("img_scale"))
    divisor = number(pad.get("size_divisor"), "Pad's size_divisor", int)
    keep_ratio = bool(resize.get("keep_ratio", True))
    for size in input_sizes:
        if any(side < divisor or side % divisor for side in size):
            near = padded_size(size, divisor)
            raise DeployError(
                f"--input-size {size[0]} {size[1]}: height and width must be multiples of {divisor}, "
                f"for example {near[0]} {near[1]}"
            )
    if len(input_sizes) > 1 and not keep_ratio:
        raise DeployError(
            f"the test pipeline stretches every image to {height} x {width} (keep_ratio=False): give one --input-size"
        )
    return Preprocessing(
        input_size=input_sizes[0] if input_sizes else padded_size((height, width), divisor),
        scale=(width, height),
        keep_ratio=keep_ratio,
        mean=_triple(normalize.get("mean"), "Normalize's mean"),
        std=_triple(normalize.get("std"), "Normalize's std"),
        channel_order="rgb" if normalize.get("to_rgb", True) else "bgr",
        pad_divisor=divisor,
        pad_value=_pad_value(pad.get("pad_val", 0)),
        canvases=tuple(input_sizes) if len(input_sizes) > 1 else (),
    )


def pipeline_of(config: Mapping[str, Any]) -> Sequence[Any]:
    """`data.test.pipeline`, unchecked.

    Raises:
        DeployError: the config has none.
    """
    test = config.get("data", {}).get("test")
    if not isinstance(test, Mapping) or not isinstance(test.get("pipeline"), Sequence):
        raise DeployError("the config has no data.test.pipeline, which says how images are resized and normalised")
    pipeline: Sequence[Any] = test["pipeline"]
    return pipeline


def _augment(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The MultiScaleFlipAug of the test pipeline, which stands there behind the loading alone."""
    steps = _checked_steps(pipeline_of(config))
    names = tuple(step["type"] for step in steps)
    if names != _OUTER:
        raise DeployError(
            f"the test pipeline has the steps {', '.join(names)}, expected {' and '.join(_OUTER)}, once each: "
            f"cskd-deploy reproduces the other steps inside {_OUTER[1]} only"
        )
    return steps[1]


def _checked_steps(steps: Sequence[Any]) -> list[Mapping[str, Any]]:
    for step in steps:
        name = step.get("type") if isinstance(step, Mapping) else step
        if name not in _STEPS:
            raise DeployError(
                f"the test pipeline has a step {name!r}, which cskd-deploy does not reproduce "
                f"(it does: {', '.join(_STEPS)})"
            )
        for key, value in step.items():
            if key in ("type", "file_client_args"):
                continue
            expected = _STEPS[name].get(key, "left out")
            if expected is not ... and value != expected:
                raise DeployError(
                    f"the test pipeline's {name} has {key}={value!r}, which cskd-deploy does not reproduce "
                    f"(expected: {expected!r})"
                )
    return list(steps)


def _step(steps: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    for step in steps:
        if step["type"] == name:
            return step
    raise DeployError(f"the test pipeline has no {name} step")


def _scale(value: Any) -> tuple[int, int]:
    if isinstance(value, Sequence) and len(value) == 1:
        value = value[0]
    if isinstance(value, Sequence) and len(value) == 2 and all(isinstance(side, int) and side > 0 for side in value):
        return value[0], value[1]
    raise DeployError(f"the test pipeline's img_scale is {value!r}, expected one (width, height) pair")


def _pad_value(setting: Any) -> float:
    """The number that every channel is padded with."""
    value = setting.get("img", 0) if isinstance(setting, Mapping) else setting
    # Of a single number mmcv fills the first channel with it, and the others with 0.
    channels = value if isinstance(value, Sequence) else (value, 0, 0)
    if len(channels) != 3 or len({number(one, "Pad's pad_val", float) for one in channels}) != 1:
        raise DeployError(
            f"the test pipeline's Pad has pad_val={value!r}, which cskd-deploy does not reproduce "
            "(expected: 0, or one number three times)"
        )
    return float(channels[0])


def _triple(value: Any, what: str) -> tuple[float, float, float]:
    if isinstance(value, Sequence) and len(value) == 3:
        return float(value[0]), float(value[1]), float(value[2])
    raise DeployError(f"the test pipeline's {what} is {value!r}, expected three numbers")
