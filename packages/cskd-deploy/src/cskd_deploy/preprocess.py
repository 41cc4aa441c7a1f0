"""From an image to the graph's input with NumPy and OpenCV alone, equal to mmdet's test pipeline to the pixel."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from cskd_deploy.manifest import Preprocessing


@dataclass(frozen=True)
class PreparedImage:
    """The graph's input and what is needed to bring boxes back to the image."""

    tensor: np.ndarray  # (1, 3, input height, input width) float32
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


def prepare(image: np.ndarray, rule: Preprocessing) -> PreparedImage:
    """Resize, reorder, normalise and pad a BGR uint8 image `(height, width, 3)`.

    The OpenCV calls are those of mmcv's `imrescale` and `imnormalize_`, in their order: any other arithmetic differs in
    the last bits.
    """
    height, width = resized_size((image.shape[0], image.shape[1]), rule)
    scale_x, scale_y = width / image.shape[1], height / image.shape[0]
    pixels = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    if rule.channel_order == "rgb":
        cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, pixels)
    # mmdet keeps mean and std in float32 and computes with their float64 values.
    mean = np.float64(np.array(rule.mean, dtype=np.float32).reshape(1, -1))
    inverse_std = 1 / np.float64(np.array(rule.std, dtype=np.float32).reshape(1, -1))
    cv2.subtract(pixels, mean, pixels)
    cv2.multiply(pixels, inverse_std, pixels)
    tensor = np.full((1, 3, *rule.input_size), rule.pad_value, dtype=np.float32)
    tensor[0, :, :height, :width] = pixels.transpose(2, 0, 1)
    factors = np.array([scale_x, scale_y, scale_x, scale_y], dtype=np.float32)
    return PreparedImage(tensor, (height, width), factors)


def _rounded(length: float) -> int:
    return int(length + 0.5)
