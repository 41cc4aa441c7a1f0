"""Students none of whose settings stands at its usual value, so that a setting which nobody reads shows."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from .students import student_config

# With these seeds each setting changes what is detected; of RetinaNet's candidates most have high scores.
SEEDS = {"RetinaNet": 5, "FCOS": 1, "GFL": 1, "ATSS": 1, "FasterRCNN": 0}
SCORES = {"RetinaNet": 0.6, "FCOS": 0.2, "GFL": 0.2, "ATSS": 0.2, "FasterRCNN": 0.3}

_TRANSFORMS = "data.test.pipeline.1.transforms"
_PIPELINE = {
    "data.test.pipeline.1.img_scale": (160, 120),
    f"{_TRANSFORMS}.2.mean": [100.0, 90.0, 80.0],
    f"{_TRANSFORMS}.2.std": [40.0, 50.0, 70.0],
    f"{_TRANSFORMS}.2.to_rgb": False,
    f"{_TRANSFORMS}.3.size_divisor": 64,
    f"{_TRANSFORMS}.3.pad_val": {"img": (0.75, 0.75, 0.75)},
}


def settings_of(family: str) -> dict[str, Any]:
    """Dotted path in the config -> its unusual value; in `student_config` all of them have other ones."""
    two_stage = family == "FasterRCNN"
    test = "model.test_cfg.rcnn" if two_stage else "model.test_cfg"
    head = "model.roi_head.bbox_head" if two_stage else "model.bbox_head"
    settings = {
        f"{test}.score_thr": SCORES[family],
        f"{test}.nms.iou_threshold": 0.6,
        f"{test}.nms.class_agnostic": True,
        f"{test}.max_per_img": 7 if two_stage else 40,
        f"{head}.bbox_coder.clip_border": False,
        **_PIPELINE,
    }
    if not two_stage:
        return {**settings, "model.test_cfg.nms_pre": 20}
    rpn = {"nms_pre": 30, "nms.iou_threshold": 0.4, "max_per_img": 12, "min_bbox_size": 20}
    return {**settings, **{f"model.test_cfg.rpn.{name}": value for name, value in rpn.items()}}


def config_with(family: str, classes: tuple[str, ...], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a very narrow student, with these settings in place of the usual ones."""
    config = copy.deepcopy(student_config(classes, family=family, width=16))
    model = config["model"]
    model["backbone"] |= {"base_channels": 16, "stem_channels": 16}
    model["neck"]["in_channels"] = [16, 32, 64, 128]
    if family in ("FCOS", "GFL"):
        model["bbox_head"]["bbox_coder"] = {"type": "DistancePointBBoxCoder"}
    for path, value in settings.items():
        *way, last = path.split(".")
        at: Any = config
        for key in way:
            at = at[int(key)] if isinstance(at, list) else at[key]
        at[last] = value
    return config
