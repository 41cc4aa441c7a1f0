"""Ground-truth boxes on a pyramid: foreground and background masks, RoIs (docs/algorithm.md 2.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from cskd_core.errors import ShapeError
from cskd_core.schema import settle
from cskd_core.transfer import to_device

Size = tuple[int, int]


@dataclass(frozen=True)
class RegionOptions:
    """Where the published projection can be questioned (docs/algorithm.md 9); the defaults are faithful to it.

    Attributes:
        coord_base: `img_shape` divides a coordinate by the *unpadded* image's side and multiplies it by the feature
            map's, which covers the padded canvas: wherever there is padding, boxes are stretched (9.10). `stride`
            divides by the level's stride, which is exact.
        inclusive_end: the cell in which a box ends is covered even if the box only touches its border (9.11).

    Raises:
        PlanError: a `coord_base` that is none, or a value of another kind.
    """

    coord_base: Literal["img_shape", "stride"] = "img_shape"
    inclusive_end: bool = True

    def __post_init__(self) -> None:
        settle(self, "distill.regions")


PUBLISHED = RegionOptions()


class Regions:
    """The boxes of one batch on every level of a pyramid; what a term has asked for is kept for the others.

    Args:
        boxes: one (N, 4) tensor an image: x1, y1, x2, y2 in pixels of the network's input; what is of lower precision
            is projected in float32. One without any element, of whatever shape, holds no box.
        image_shapes: (height, width) of each image before padding.
        sizes: (H, W) of each level's feature map.
        strides: of each level, in pixels.
        options: how boxes are projected.

    Raises:
        ShapeError: `boxes` and `image_shapes`, or `sizes` and `strides`, differ in length; boxes of another shape.

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
        self.sizes = list(sizes)
        of_images = [_n_by_4(image_boxes.detach(), number) for number, image_boxes in enumerate(boxes)]
        self._boxes = torch.cat(of_images)
        self._counts = [len(image_boxes) for image_boxes in of_images]
        self._image_shapes = [(int(shape[0]), int(shape[1])) for shape in image_shapes]
        self._strides = list(strides)
        self._options = options

    def refuse_not_finite(self) -> None:
        """Say so where a box is none; a GPU is waited for, so it is asked only after something has failed.

        Raises:
            ShapeError: a coordinate is NaN or infinite.
        """
        for image, boxes in enumerate(self._boxes.split(self._counts)):
            for box in boxes.tolist():
                if not all(map(math.isfinite, box)):
                    raise ShapeError(f"a box of image {image} is {box}: expected x1, y1, x2, y2 in pixels, all finite")

    def foreground(self, level: int) -> Tensor:
        """(B, H, W) float32, 1 where a box covers the cell: columns trunc(x1) to trunc(x2) inclusive, rows likewise."""
        return self._foreground[level]

    def background(self, level: int) -> Tensor:
        """(B, H, W) float32, 1 where no box covers the cell."""
        return self._background[level]

    def rois(self, level: int) -> Tensor:
        """(N, 5): image index, x1, y1, x2, y2 in cells, not truncated; in image order, then box order."""
        return self._rois[level]

    @cached_property
    def covered(self) -> Tensor:
        """The number of foreground cells of each level (levels,), in all images together."""
        return torch.stack([mask.sum() for mask in self._foreground])

    @cached_property
    def _foreground(self) -> list[Tensor]:
        return self._of_levels(self._rasterised)

    @cached_property
    def _background(self) -> list[Tensor]:
        return self._of_levels(1 - self._rasterised)

    @cached_property
    def _rois(self) -> Tensor:
        """(levels, N, 5)"""
        index = self._on_device(self._image_indices, self._boxes.dtype)
        return torch.cat([index.view(-1, 1).expand(len(self.sizes), -1, 1), self._cells], 2)

    @property
    def _image_indices(self) -> list[int]:
        """Of each box."""
        return [image for image, count in enumerate(self._counts) for _ in range(count)]

    @cached_property
    def _cells(self) -> Tensor:
        """(levels, N, 4): the boxes of all images, from pixels to cells."""
        if self._options.coord_base == "stride":
            return self._boxes / self._on_device(self._strides, self._boxes.dtype).view(-1, 1, 1)
        image_sides = [self._image_shapes[image][::-1] * 2 for image in self._image_indices]
        level_sides = [(width, height) * 2 for height, width in self.sizes]
        # Division first, then multiplication, as published.
        shares = self._boxes / self._on_device(image_sides, self._boxes.dtype).view(-1, 4)
        return shares * self._on_device(level_sides, self._boxes.dtype).unsqueeze(1)

    @cached_property
    def _rasterised(self) -> Tensor:
        """(B, cells of all levels): 1 where the row and the column of a cell are covered by the same box."""
        levels, images, most = len(self.sizes), len(self._counts), max(self._counts)
        # As many boxes in each image: those that are missing cover nothing, wherever they begin.
        boxes = self._cells.new_full((levels, images, most, 4), math.inf)
        slots = [slot for count in self._counts for slot in range(count)]
        boxes[:, self._on_device(self._image_indices), self._on_device(slots)] = self._cells
        first, end = boxes[..., :2].trunc(), boxes[..., 2:]
        last = end.trunc() if self._options.inclusive_end else torch.maximum(end.ceil() - 1, first)
        # Columns of every level, then rows of every level, each compared with the boxes on its level.
        lines = [
            (axis, level, line)
            for axis in (0, 1)
            for level in range(levels)
            for line in range(self.sizes[level][1 - axis])
        ]
        axis, level, line = self._on_device(list(zip(*lines, strict=True)))
        first, last = (side.permute(3, 0, 1, 2)[axis, level] for side in (first, last))  # (lines, B, boxes)
        line = line.view(-1, 1, 1)
        covers = ((line >= first) & (line <= last)).float()
        parts = covers.split([size[1 - axis] for axis in (0, 1) for size in self.sizes])
        masks = [
            torch.bmm(rows.permute(1, 0, 2), columns.permute(1, 2, 0)).flatten(1)
            for columns, rows in zip(parts[:levels], parts[levels:], strict=True)
        ]
        return torch.cat(masks, 1).clamp_max_(1)

    def _of_levels(self, cells: Tensor) -> list[Tensor]:
        """(B, H, W) a level of (B, cells of all levels)."""
        parts = cells.split([height * width for height, width in self.sizes], 1)
        return [part.unflatten(1, size) for part, size in zip(parts, self.sizes, strict=True)]

    def _on_device(self, numbers: Sequence[Any], dtype: torch.dtype | None = None) -> Tensor:
        return to_device(numbers, self._boxes.device, dtype or torch.int64)


def _n_by_4(boxes: Tensor, image: int) -> Tensor:
    if boxes.dtype not in (torch.float32, torch.float64):
        boxes = boxes.float()  # bfloat16 has no odd cell above 256
    if boxes.numel() == 0:
        return boxes.reshape(0, 4)
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ShapeError(f"the boxes of image {image} have the shape {tuple(boxes.shape)}, expected (N, 4)")
    return boxes
