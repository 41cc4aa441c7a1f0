"""Ground-truth boxes on a feature map: foreground and background masks, RoIs (docs/algorithm.md 2.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cskd_core.errors import ShapeError

Size = tuple[int, int]


class Regions:
    """The boxes of one batch, projected to any feature size on request and kept, since every term asks again.

    Args:
        boxes: one (N, 4) tensor an image: x1, y1, x2, y2 in pixels of the network's input.
        image_shapes: (height, width) of each image before padding.

    Raises:
        ShapeError: the two do not name the same number of images.

    Source: docs/algorithm.md 2.2. As published, a coordinate is divided by the *unpadded* image's side and
    multiplied by the feature map's side, which covers the padded canvas.
    """

    def __init__(self, boxes: Sequence[Tensor], image_shapes: Sequence[Sequence[int]]) -> None:
        if len(boxes) != len(image_shapes):
            raise ShapeError(
                f"{len(boxes)} images with boxes and {len(image_shapes)} image shapes: expected one of each"
            )
        self.boxes = [image_boxes.detach() for image_boxes in boxes]
        self.image_shapes = [(int(shape[0]), int(shape[1])) for shape in image_shapes]
        self.count = sum(len(image_boxes) for image_boxes in boxes)
        self._foreground: dict[tuple[int, int], Tensor] = {}

    def foreground(self, size: Size) -> Tensor:
        """(B, H, W) float32, 1 where a box covers the cell: columns trunc(x1) to trunc(x2) inclusive, rows likewise."""
        if size not in self._foreground:
            masks = [
                _rasterise(_to_feature(boxes, shape, size), size)
                for boxes, shape in zip(self.boxes, self.image_shapes, strict=True)
            ]
            self._foreground[size] = torch.stack(masks)
        return self._foreground[size]

    def background(self, size: Size) -> Tensor:
        """(B, H, W) float32, 1 where no box covers the cell."""
        return 1 - self.foreground(size)

    def rois(self, size: Size) -> Tensor:
        """(N, 5): image index, x1, y1, x2, y2 in cells, not truncated; in image order, then box order."""
        parts = [
            torch.cat([boxes.new_full((len(boxes), 1), index), _to_feature(boxes, shape, size)], dim=1)
            for index, (boxes, shape) in enumerate(zip(self.boxes, self.image_shapes, strict=True))
        ]
        return torch.cat(parts)


def _to_feature(boxes: Tensor, image_shape: Size, size: Size) -> Tensor:
    """Boxes (N, 4) from pixels to cells; division first, then multiplication, as published."""
    (image_height, image_width), (height, width) = image_shape, size
    x, y = boxes[:, 0::2] / image_width * width, boxes[:, 1::2] / image_height * height
    return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=1)


def _rasterise(boxes: Tensor, size: Size) -> Tensor:
    """Union (H, W) of boxes (N, 4) in cells: the rows a box covers times the columns it covers."""
    first, last = boxes.trunc()[:, :2], boxes.trunc()[:, 2:]
    rows = torch.arange(size[0], device=boxes.device)
    columns = torch.arange(size[1], device=boxes.device)
    covers_column = (columns >= first[:, :1]) & (columns <= last[:, :1])
    covers_row = (rows >= first[:, 1:]) & (rows <= last[:, 1:])
    return (covers_row.float().T @ covers_column.float()).clamp_max(1)
