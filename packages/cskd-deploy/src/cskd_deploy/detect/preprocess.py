"""From an image to the graph's input with NumPy and OpenCV alone, equal to mmdet's test pipeline to the pixel."""

from __future__ import annotations

import dataclasses
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


def resized_size(size: tuple[int, int], rule: Preprocessing) -> tuple[int, int]:
    """The (height, width) that an image of `size` (height, width) is resized to.

    With `keep_ratio` this is mmcv's `rescale_size`: the long edge within the long edge of `rule.scale`, the short one
    within the short one, rounded half up. An image that would then not fit in `rule.input_size` (an upright image for a
    lying graph) is made smaller until it does.
    """
    height, width = size
    input_height, input_width = rule.input_size
    if not rule.keep_ratio:
        return min(rule.scale[1], input_height), min(rule.scale[0], input_width)
    factor = min(max(rule.scale) / max(height, width), min(rule.scale) / min(height, width))
    resized = _rounded(height * factor), _rounded(width * factor)
    if resized[0] > input_height or resized[1] > input_width:
        factor = min(input_height / height, input_width / width)
        resized = _rounded(height * factor), _rounded(width * factor)
    return max(resized[0], 1), max(resized[1], 1)


def padded_size(size: tuple[int, int], divisor: int) -> tuple[int, int]:
    """`size` (height, width) rounded up to multiples of `divisor`."""
    return -(-size[0] // divisor) * divisor, -(-size[1] // divisor) * divisor


def prepare(image: np.ndarray, rule: Preprocessing, form: GraphForm = FLOAT) -> PreparedImage:
    """Make the graph's input of a BGR uint8 image `(height, width, 3)`.

    It is resized and padded, and for a graph with a float input also reordered and normalised.
    """
    height, width = resized_size((image.shape[0], image.shape[1]), unbounded(rule) if form.dynamic else rule)
    pixels = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    canvas = padded_size((height, width), rule.pad_divisor) if form.dynamic else rule.input_size
    tensor = padded_pixels(pixels, canvas) if form.input == "uint8" else normalised(pixels, canvas, rule)
    scale_x, scale_y = width / image.shape[1], height / image.shape[0]
    factors = np.array([scale_x, scale_y, scale_x, scale_y], dtype=np.float32)
    return PreparedImage(tensor, (height, width), factors)


def unbounded(rule: Preprocessing) -> Preprocessing:
    """The rule of an input that every image fits."""
    return dataclasses.replace(rule, input_size=(1 << 20, 1 << 20))


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


def _rounded(length: float) -> int:
    return int(length + 0.5)
