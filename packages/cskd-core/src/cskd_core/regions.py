"""Ground-truth boxes on a pyramid: foreground and background masks, RoIs (docs/algorithm.md 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cskd_core.errors import ShapeError

Size = tuple[int, int]


@dataclass(frozen=True)
class RegionOptions:
    """Where the published projection can be questioned (docs/algorithm.md 9); the defaults are faithful to it.

    Attributes:
        coord_base: `img_shape` divides a coordinate by the *unpadded* image's side and multiplies it by the feature
            map's, which covers the padded canvas: wherever there is padding, boxes are stretched (9.10). `stride`
            divides by the level's stride, which is exact.
        inclusive_end: the cell in which a box ends is covered even if the box only touches its border (9.11).
    """

    coord_base: Literal["img_shape", "stride"] = "img_shape"
    inclusive_end: bool = True


PUBLISHED = RegionOptions()


class Regions:
    """The boxes of one batch on every level of a pyramid; masks are kept, since every term asks again.

    Args:
        boxes: one (N, 4) tensor an image: x1, y1, x2, y2 in pixels of the network's input.
        image_shapes: (height, width) of each image before padding.
        sizes: (H, W) of each level's feature map.
        strides: of each level, in pixels.
        options: how boxes are projected.

    Raises:
        ShapeError: `boxes` and `image_shapes`, or `sizes` and `strides`, differ in length.

    Source: docs/algorithm.md 2.2.
    """

    def __init__(
        self,
        boxes: Sequence[Tensor],
        image_shapes: Sequence[Sequence[int]],
        sizes: Sequence[Size],
        strides: Sequence[int],
        options: RegionOptions = PUBLISHED,
    ) -> None:
        if len(boxes) != len(image_shapes):
            raise ShapeError(
                f"{len(boxes)} images with boxes and {len(image_shapes)} image shapes: expected one of each"
            )
        if len(sizes) != len(strides):
            raise ShapeError(f"{len(sizes)} feature maps and {len(strides)} strides: expected one of each a level")
        self.boxes = [image_boxes.detach() for image_boxes in boxes]
        self.image_shapes = [(int(shape[0]), int(shape[1])) for shape in image_shapes]
        self.count = sum(len(image_boxes) for image_boxes in boxes)
        self.sizes = list(sizes)
        self._strides = list(strides)
        self._options = options
        self._foreground: dict[int, Tensor] = {}

    def foreground(self, level: int) -> Tensor:
        """(B, H, W) float32, 1 where a box covers the cell: columns trunc(x1) to trunc(x2) inclusive, rows likewise."""
        if level not in self._foreground:
            masks = [_rasterise(cells, self.sizes[level], self._options) for cells in self._cells(level)]
            self._foreground[level] = torch.stack(masks)
        return self._foreground[level]

    def background(self, level: int) -> Tensor:
        """(B, H, W) float32, 1 where no box covers the cell."""
        return 1 - self.foreground(level)

    def rois(self, level: int) -> Tensor:
        """(N, 5): image index, x1, y1, x2, y2 in cells, not truncated; in image order, then box order."""
        parts = [
            torch.cat([cells.new_full((len(cells), 1), index), cells], dim=1)
            for index, cells in enumerate(self._cells(level))
        ]
        return torch.cat(parts)

    def _cells(self, level: int) -> list[Tensor]:
        """The boxes (N, 4) of each image, from pixels to cells."""
        if self._options.coord_base == "stride":
            return [boxes / self._strides[level] for boxes in self.boxes]
        height, width = self.sizes[level]
        cells = []
        for boxes, (image_height, image_width) in zip(self.boxes, self.image_shapes, strict=True):
            # Division first, then multiplication, as published.
            x, y = boxes[:, 0::2] / image_width * width, boxes[:, 1::2] / image_height * height
            cells.append(torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=1))
        return cells


def _rasterise(boxes: Tensor, size: Size, options: RegionOptions) -> Tensor:
    """Union (H, W) of boxes (N, 4) in cells: the rows a box covers times the columns it covers."""
    first, end = boxes.trunc()[:, :2], boxes[:, 2:]
    last = end.trunc() if options.inclusive_end else torch.maximum(end.ceil() - 1, first)
    rows = torch.arange(size[0], device=boxes.device)
    columns = torch.arange(size[1], device=boxes.device)
    covers_column = (columns >= first[:, :1]) & (columns <= last[:, :1])
    covers_row = (rows >= first[:, 1:]) & (rows <= last[:, 1:])
    return (covers_row.float().T @ covers_column.float()).clamp_max(1)
