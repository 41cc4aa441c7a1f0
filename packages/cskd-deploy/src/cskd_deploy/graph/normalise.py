"""Normalisation in the graph: raw pixels in, what mmdet's pipeline makes of them out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from cskd_deploy.manifest import Preprocessing


class Normalise(nn.Module):
    """Reorder, normalise and mask uint8 pixels.

    The padding is set to its value after normalisation, exactly, as mmdet pads; which colour stands there on the canvas
    does not matter. No colour would do in its stead: the mean is no whole number.
    """

    def __init__(self, rule: Preprocessing) -> None:
        super().__init__()
        mean, std = (np.array(values, dtype=np.float32).reshape(1, 3, 1, 1) for values in (rule.mean, rule.std))
        self.register_buffer("mean", torch.from_numpy(mean), persistent=False)
        inverse = (1 / np.float64(std)).astype(np.float32)  # as mmcv
        self.register_buffer("inverse_std", torch.from_numpy(inverse), persistent=False)
        self._reversed = rule.channel_order == "rgb"
        self._pad_value = rule.pad_value

    def forward(self, pixels: Tensor, image_shape: Tensor) -> Tensor:
        """Pixels `(N, H, W, 3)` BGR uint8 and `(N, 2)`, where each image ends, to `(N, 3, H, W)` float32."""
        values = pixels.float().permute(0, 3, 1, 2)  # the cast first: it is all that TensorRT does with uint8
        if self._reversed:
            values = values[:, [2, 1, 0]]
        values = (values - self.get_buffer("mean")) * self.get_buffer("inverse_std")
        rows = torch.arange(values.shape[2]).to(values).reshape(1, 1, -1, 1)
        columns = torch.arange(values.shape[3]).to(values).reshape(1, 1, 1, -1)
        height, width = image_shape.reshape(-1, 2, 1, 1, 1).unbind(1)
        inside = (rows < height) & (columns < width)
        return torch.where(inside, values, torch.full((1,), self._pad_value))
