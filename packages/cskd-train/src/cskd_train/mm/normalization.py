"""Image normalisation that differs between student and teacher: the same batch, as the other's pipeline gives it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cskd_train.errors import TrainError

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Normalization:
    """What mmdet's `Normalize` does to an image: (pixel - mean) / std, in RGB order or in BGR order.

    Images are read as BGR: mean 0 and std 1 in this order leave them as they are, as in YOLOX's pipelines.
    """

    mean: Triple  # in the order of the channels after the conversion, of pixel values 0..255
    std: Triple
    to_rgb: bool = True

    @classmethod
    def of_config(cls, cfg: Mapping[str, Any]) -> Normalization | None:
        """The normalisation of the images that a config trains on; None for a config without a pipeline.

        The pipelines of `data.train`, `data.val` and `data.test` are searched in this order, then `train_pipeline` and
        `test_pipeline`; dataset wrappers and steps that hold steps (`MultiScaleFlipAug`) are looked into. Last comes
        `model.data_preprocessor`, where mmdet 3 has it. Pipelines that normalise nowhere give pixels as they are.

        Raises:
            TrainError: a `Normalize` step without three numbers for mean and for std.
        """
        data = cfg.get("data") or {}
        splits = [data.get(split) for split in ("train", "val", "test")]
        pipelines = [cfg.get("train_pipeline"), cfg.get("test_pipeline")]
        for step in _steps([*splits, *pipelines]):
            if step.get("type") == "Normalize":
                return cls(_triple(step, "mean"), _triple(step, "std"), bool(step.get("to_rgb", True)))
        preprocessor = (cfg.get("model") or {}).get("data_preprocessor") or {}
        if found := cls.of_preprocessor(preprocessor):
            return found
        if preprocessor or any(pipelines) or any(step.get("pipeline") for step in _steps(splits)):
            return cls((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), bool(preprocessor.get("bgr_to_rgb", False)))
        return None

    @classmethod
    def of_preprocessor(cls, settings: Mapping[str, Any]) -> Normalization | None:
        """The normalisation in a `data_preprocessor` of mmdet 3, of images read as BGR; None where it does none.

        Raises:
            TrainError: no three numbers for mean and for std.
        """
        if settings.get("mean") is None:
            return None
        return cls(_triple(settings, "mean"), _triple(settings, "std"), bool(settings.get("bgr_to_rgb", False)))

    def as_step(self) -> str:
        """The step of a pipeline, as a config has it."""
        return f"dict(type='Normalize', mean={list(self.mean)}, std={list(self.std)}, to_rgb={self.to_rgb})"


def normalized(pipeline: Sequence[Mapping[str, Any]], wanted: Normalization) -> Any:
    """A pipeline for evaluation that normalises images so, its other steps as they are.

    Its `Normalize` is changed; one without gets one before `Pad`, whose zeros are then those of normalised images.

    Args:
        pipeline: steps as a config has them; they are not changed.
        wanted: the normalisation that images are to have.
    """
    if Normalization.of_config({"test_pipeline": pipeline}) == wanted:
        return pipeline
    step = {"type": "Normalize", "mean": list(wanted.mean), "std": list(wanted.std), "to_rgb": wanted.to_rgb}
    if any(one.get("type") == "Normalize" for one in _steps(pipeline)):
        return _with_normalize(pipeline, step)
    return _with_inserted(pipeline, step)


def _with_normalize(value: Any, step: Mapping[str, Any]) -> Any:
    """Nested steps with this one in the place of every `Normalize`."""
    if isinstance(value, Mapping):
        if value.get("type") == "Normalize":
            return dict(step)
        return {key: _with_normalize(item, step) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_with_normalize(item, step) for item in value)
    return value


_AFTER = ("Pad", "DefaultFormatBundle", "ImageToTensor", "Collect")
"""What may follow `Normalize` only."""


def _with_inserted(pipeline: Sequence[Mapping[str, Any]], step: Mapping[str, Any]) -> list[Any]:
    """Steps with this one before the first of `_AFTER`, inside a step that holds steps where these are there."""
    found: list[Any] = []
    for one in pipeline:
        if one.get("type") in _AFTER and step not in _steps(found):
            found.append(dict(step))
        inner = one.get("transforms")
        if isinstance(inner, (list, tuple)):
            one = {**one, "transforms": _with_inserted(inner, step)}
        found.append({key: value for key, value in one.items() if key != "pad_val"})
    return found


def renormalize(
    images: Tensor, source: Normalization, target: Normalization, image_shapes: Sequence[Sequence[int]]
) -> Tensor:
    """The batch as a pipeline with another `Normalize` would have given it.

        y = ((x * std_s + mean_s), channels reversed where only one is RGB, - mean_t) / std_t

    Args:
        images: (B, 3, H, W), normalised by `source`, then padded with zeros on the right and below.
        target: the normalisation to arrive at.
        image_shapes: (height, width) of each image before padding.

    Returns:
        (B, 3, H, W), normalised by `target`, zero outside the images; `images` itself where the two are equal.
    """
    if source == target:
        return images
    order = slice(None) if source.to_rgb == target.to_rgb else slice(None, None, -1)
    source_mean, source_std = (torch.tensor(values[order], dtype=torch.float64) for values in (source.mean, source.std))
    target_mean, target_std = (torch.tensor(values, dtype=torch.float64) for values in (target.mean, target.std))
    scale = (source_std / target_std).reshape(3, 1, 1).to(images)
    shift = ((source_mean - target_mean) / target_std).reshape(3, 1, 1).to(images)
    pixels = images if source.to_rgb == target.to_rgb else images.flip(1)
    return (pixels * scale + shift).masked_fill(_padding(images, image_shapes), 0)


def _padding(images: Tensor, image_shapes: Sequence[Sequence[int]]) -> Tensor:
    """(B, 1, H, W): True outside each image."""
    heights, widths = torch.tensor([tuple(shape)[:2] for shape in image_shapes], device=images.device).T
    below = torch.arange(images.shape[2], device=images.device) >= heights.unsqueeze(1)
    right = torch.arange(images.shape[3], device=images.device) >= widths.unsqueeze(1)
    return (below.unsqueeze(2) | right.unsqueeze(1)).unsqueeze(1)


def _steps(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every dict inside nested dicts, lists and tuples, each before what it holds."""
    if isinstance(value, Mapping):
        yield value
        for item in value.values():
            yield from _steps(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _steps(item)


def _triple(step: Mapping[str, Any], key: str) -> Triple:
    values = step.get(key)
    numbers = (
        [value for value in values if isinstance(value, (int, float))] if isinstance(values, (list, tuple)) else []
    )
    if len(numbers) != 3:
        raise TrainError(f"the config's normalisation has {key} = {values!r}: expected three numbers")
    first, second, third = map(float, numbers)
    return first, second, third
