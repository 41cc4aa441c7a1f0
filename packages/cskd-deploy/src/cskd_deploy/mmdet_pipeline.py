"""Read the preprocessing from the test pipeline of an mmdet config, as plain data.

Only what this package reproduces exactly is accepted. Anything else in the pipeline is an error that names it, since a
step left out would change the detections without a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cskd_deploy.errors import DeployError
from cskd_deploy.manifest import Preprocessing
from cskd_deploy.mmdet_model import number
from cskd_deploy.preprocess import padded_size

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


def preprocessing_of(config: Mapping[str, Any], input_size: tuple[int, int] | None = None) -> Preprocessing:
    """The rule of `config.data.test.pipeline`.

    Args:
        input_size: (height, width) of the graph; by default the config's `img_scale`, the way round it is written,
            rounded up to the pipeline's `size_divisor`: (1333, 800) gives 800 x 1344.

    Raises:
        DeployError: a step that is not reproduced here, or an `input_size` that is no multiple of the divisor.
    """
    steps = _test_steps(config)
    augment = _step(steps, "MultiScaleFlipAug")
    transforms = _checked_steps(augment.get("transforms", []))
    order = [step["type"] for step in transforms if step["type"] in _ORDER]
    if order != list(_ORDER):
        raise DeployError(f"the test pipeline has the steps {', '.join(order)}, expected {', '.join(_ORDER)} once each")
    resize, normalize, pad = (_step(transforms, name) for name in _ORDER)
    width, height = _scale(augment.get("img_scale"))
    divisor = number(pad.get("size_divisor"), "Pad's size_divisor", int)
    default_size = padded_size((height, width), divisor)
    if input_size is not None and any(side < divisor or side % divisor for side in input_size):
        near = padded_size(input_size, divisor)
        raise DeployError(
            f"--input-size {input_size[0]} {input_size[1]}: height and width must be multiples of {divisor}, "
            f"for example {near[0]} {near[1]}"
        )
    return Preprocessing(
        input_size=input_size or default_size,
        scale=(width, height),
        keep_ratio=bool(resize.get("keep_ratio", True)),
        mean=_triple(normalize.get("mean"), "Normalize's mean"),
        std=_triple(normalize.get("std"), "Normalize's std"),
        channel_order="rgb" if normalize.get("to_rgb", True) else "bgr",
        pad_divisor=divisor,
        pad_value=_pad_value(pad.get("pad_val", 0)),
    )


def _test_steps(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    test = config.get("data", {}).get("test")
    if not isinstance(test, Mapping) or not isinstance(test.get("pipeline"), Sequence):
        raise DeployError("the config has no data.test.pipeline, which says how images are resized and normalised")
    return _checked_steps(test["pipeline"])


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
