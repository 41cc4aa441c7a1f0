"""From an image to the graph's input with NumPy and OpenCV alone, equal to mmdet's test pipeline to the pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from cskd_deploy.model.manifest import GraphForm, Preprocessing

FLOAT = GraphForm()


@dataclass(frozen=True)
class PreparedImage:
    """The graph's input and what is needed to bring boxes back to the image."""

    tensor: np.ndarray  # (1, 3, input height, input width) float32, or (1, input height, input width, 3) uint8
    resized_size: tuple[int, int]  # (height, width) of the image on the canvas, before padding
    scale_factor: np.ndarray  # (4,) float32: resized / original, as (x, y, x, y)


@dataclass(frozen=True)
class Placement:
    """How large an image is on which canvas, both as (height, width)."""

    resized_size: tuple[int, int]
    canvas: tuple[int, int]


def placement(size: tuple[int, int], rule: Preprocessing, form: GraphForm = FLOAT) -> Placement:
    """Where an image of `size` (height, width) lies on the input of a graph of this form.

    On a graph that takes every size it is resized and padded as mmdet does it. Elsewhere an image that does not fit a
    canvas (an upright image for a lying graph) is made smaller until it does, and of several canvases it gets the one
    on which it is largest; of those, the smallest.
    """
    if form.dynamic and not rule.canvases:
        return exact_placement(size, rule)
    canvases = rule.canvases if form.dynamic else (rule.input_size,)
    choices = [Placement(_fitted(size, rule, canvas), canvas) for canvas in canvases]
    return min(choices, key=lambda one: (-math.prod(one.resized_size), math.prod(one.canvas)))


def exact_placement(size: tuple[int, int], rule: Preprocessing) -> Placement:
    """Where mmdet's test pipeline lays an image of `size` (height, width)."""
    resized = resized_size(size, rule)
    return Placement(resized, padded_size(resized, rule.pad_divisor))


def resized_size(size: tuple[int, int], rule: Preprocessing) -> tuple[int, int]:
    """The (height, width) that mmdet resizes an image of `size` (height, width) to.

    With `keep_ratio` this is mmcv's `rescale_size`: the long edge within the long edge of `rule.scale`, the short one
    within the short one, rounded half up.
    """
    if not rule.keep_ratio:
        return rule.scale[1], rule.scale[0]
    height, width = size
    return _scaled(size, min(max(rule.scale) / max(height, width), min(rule.scale) / min(height, width)))


def _fitted(size: tuple[int, int], rule: Preprocessing, canvas: tuple[int, int]) -> tuple[int, int]:
    """`resized_size`, or less where the canvas is smaller."""
    resized = resized_size(size, rule)
    if not rule.keep_ratio:
        return min(resized[0], canvas[0]), min(resized[1], canvas[1])
    if resized[0] > canvas[0] or resized[1] > canvas[1]:
        return _scaled(size, min(canvas[0] / size[0], canvas[1] / size[1]))
    return resized


def _scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return max(int(size[0] * factor + 0.5), 1), max(int(size[1] * factor + 0.5), 1)


def padded_size(size: tuple[int, int], divisor: int) -> tuple[int, int]:
    """`size` (height, width) rounded up to multiples of `divisor`."""
    return -(-size[0] // divisor) * divisor, -(-size[1] // divisor) * divisor


def prepare(image: np.ndarray, rule: Preprocessing, form: GraphForm = FLOAT) -> PreparedImage:
    """Make the graph's input of a BGR uint8 image `(height, width, 3)`.

    It is resized and padded, and for a graph with a float input also reordered and normalised.
    """
    placed = placement((image.shape[0], image.shape[1]), rule, form)
    (height, width), canvas = placed.resized_size, placed.canvas
    pixels = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    tensor = padded_pixels(pixels, canvas) if form.input == "uint8" else normalised(pixels, canvas, rule)
    scale_x, scale_y = width / image.shape[1], height / image.shape[0]
    factors = np.array([scale_x, scale_y, scale_x, scale_y], dtype=np.float32)
    return PreparedImage(tensor, (height, width), factors)


def padded_pixels(pixels: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """BGR uint8 pixels on a canvas: `(1, canvas height, canvas width, 3)`. What the padding holds does not matter."""
    tensor = np.zeros((1, *canvas, 3), dtype=np.uint8)
    tensor[0, : pixels.shape[0], : pixels.shape[1]] = pixels
    return tensor


def normalised(pixels: np.ndarray, canvas: tuple[int, int], rule: Preprocessing) -> np.ndarray:
    """BGR uint8 pixels reordered, normalised and padded: `(1, 3, canvas height, canvas width)` float32.

    The OpenCV calls are those of mmcv's `imrescale` and `imnormalize_`, in their order: any other arithmetic differs in
    the last bits.
    """
    values = pixels.astype(np.float32)
    if rule.channel_order == "rgb":
        cv2.cvtColor(values, cv2.COLOR_BGR2RGB, values)
    # mmdet keeps mean and std in float32 and computes with their float64 values.
    mean = np.float64(np.array(rule.mean, dtype=np.float32).reshape(1, -1))
    inverse_std = 1 / np.float64(np.array(rule.std, dtype=np.float32).reshape(1, -1))
    cv2.subtract(values, mean, values)
    cv2.multiply(values, inverse_std, values)
    tensor = np.full((1, 3, *canvas), rule.pad_value, dtype=np.float32)
    tensor[0, :, : pixels.shape[0], : pixels.shape[1]] = values.transpose(2, 0, 1)
    return tensor
