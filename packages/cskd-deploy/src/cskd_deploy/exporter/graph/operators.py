"""The operators of a two-stage detector: mmcv's in PyTorch, standard ones in ONNX.

mmcv brings its own ONNX forms of both; they are not used. Its RoIAlign dates from before opset 16: it subtracts the
half cell itself, and from opset 16 on the operator does so again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.onnx.symbolic_helper import parse_args

OLDEST_OPSET = 16  # RoiAlign with half_pixel


def non_max_suppression(boxes: Tensor, scores: Tensor, iou_threshold: float, count: int) -> tuple[Tensor, Tensor]:
    """Greedy NMS within each image: the best `count` boxes that it keeps.

    ONNX says nothing of the order in which NonMaxSuppression gives the boxes of an image, or the images: what is kept
    is marked at its place, and the best of the marked are taken.

    Args:
        boxes: `(N, n, 4)` as x1, y1, x2, y2.
        scores: `(N, n)`; a box whose score is not above 0 takes no part.
        iou_threshold: a box overlapping a kept, better one by more than this is dropped.
        count: how many are given of each image.

    Returns:
        Their places, best first, and which of them are real, 1.0 or 0.0, both `(N, count)`. Where fewer are kept, the
        first box fills up.
    """
    selected = torch.ops.cskd_deploy.select(boxes, scores.unsqueeze(1), iou_threshold, count)
    kept = selected[:, 0] * scores.shape[1] + selected[:, 2]
    marks = torch.zeros_like(scores).flatten().scatter(0, kept, torch.ones_like(kept).to(scores))
    marked = torch.where(marks.reshape(scores.shape) > 0, scores, torch.zeros_like(scores))
    none = torch.zeros_like(scores[:, :1]).expand(-1, count)  # there may be fewer boxes than `count`
    best, places = torch.topk(torch.cat([marked, none], dim=1), count, dim=1)
    real = best > 0
    return torch.where(real, places, torch.zeros_like(places)), real.to(scores)


def offset_by_group(boxes: Tensor, groups: Tensor, taking_part: Tensor) -> Tensor:
    """Boxes `(N, n, 4)` moved so that NMS finds overlaps within a group alone, a class or a level: `(N, n, 4)`.

    As mmcv's `batched_nms` moves those of an image, in float32, so that overlaps near the threshold fall as they do
    there.

    Args:
        groups: `(N, n)`, from 0 on.
        taking_part: `(N, n)` bool; how far boxes are moved depends on these of their image alone.
    """
    farthest = torch.where(taking_part.unsqueeze(-1), boxes, torch.zeros_like(boxes)).amax(dim=(1, 2))
    return boxes + (groups.to(boxes) * (farthest + 1).unsqueeze(-1)).unsqueeze(-1)


def clipped(boxes: Tensor, image_shape: Tensor) -> Tensor:
    """Boxes `(N, n, 4)` within their image, whose (height, width) stand in `image_shape` `(N, 2)`."""
    return torch.minimum(boxes.clamp(min=0), image_shape.flip(1).repeat(1, 2).unsqueeze(1))


def roi_align(features: Tensor, boxes: Tensor, places: Tensor, layer: Any) -> Tensor:
    """What mmcv's layer `mmcv.ops.RoIAlign` with average pooling does.

    Args:
        features: `(N, C, H, W)`.
        boxes: `(n, 4)`: x1, y1, x2, y2 in cells.
        places: of the N maps, the one to pool each box from, `(n,)` int64.
        layer: whose size and sampling it has.

    Returns:
        `(n, C, rows, columns)`.
    """
    rows, columns = layer.output_size
    ratio = max(layer.sampling_ratio, 0)
    pooled: Tensor = torch.ops.cskd_deploy.pool(features, boxes, places, rows, columns, ratio, layer.aligned)
    return pooled


def _select(boxes: Tensor, scores: Tensor, iou_threshold: float, most: int) -> Tensor:
    """Boxes `(N, n, 4)` and scores `(N, 1, n)` to `(kept, 3)`: image, class and box, as ONNX's NonMaxSuppression."""
    from mmcv.ops import nms

    selected = []
    for number, (corners, (values,)) in enumerate(zip(boxes, scores, strict=True)):
        _, kept = nms(corners, values, iou_threshold)
        kept = kept[values[kept] > 0][:most]
        selected.append(torch.stack([torch.full_like(kept, number), torch.zeros_like(kept), kept], dim=1))
    return torch.cat(selected)


def _pool(
    features: Tensor, boxes: Tensor, places: Tensor, rows: int, columns: int, ratio: int, aligned: bool
) -> Tensor:
    """Features `(N, C, H, W)`, boxes `(n, 4)` and indices of maps `(n,)` to `(n, C, rows, columns)`."""
    from mmcv.ops import roi_align as mmcv_roi_align

    rois = torch.cat([places.unsqueeze(1).to(boxes), boxes], dim=1)
    pooled: Tensor = mmcv_roi_align(features, rois, (rows, columns), 1.0, ratio, "avg", aligned)
    return pooled


@parse_args("v", "v", "f", "i")
def _select_in_onnx(g: Any, boxes: Any, scores: Any, iou_threshold: float, most: int) -> Any:
    limits = (torch.tensor([most]), torch.tensor([iou_threshold]), torch.tensor([0.0]))
    return g.op("NonMaxSuppression", boxes, scores, *(g.op("Constant", value_t=limit) for limit in limits))


@parse_args("v", "v", "v", "i", "i", "i", "b")
def _pool_in_onnx(
    g: Any, features: Any, boxes: Any, places: Any, rows: int, columns: int, ratio: int, aligned: bool
) -> Any:
    return g.op(
        "RoiAlign",
        features,
        boxes,
        places,
        coordinate_transformation_mode_s="half_pixel" if aligned else "output_half_pixel",
        mode_s="avg",
        output_height_i=rows,
        output_width_i=columns,
        sampling_ratio_i=ratio,
        spatial_scale_f=1.0,
    )


_OPERATORS = torch.library.Library("cskd_deploy", "DEF")
_OPERATORS.define("select(Tensor boxes, Tensor scores, float iou_threshold, int most) -> Tensor")
_OPERATORS.define(
    "pool(Tensor features, Tensor boxes, Tensor places, int rows, int columns, int ratio, bool aligned) -> Tensor"
)
_OPERATORS.impl("select", _select, "CompositeExplicitAutograd")
_OPERATORS.impl("pool", _pool, "CompositeExplicitAutograd")
torch.onnx.register_custom_op_symbolic("cskd_deploy::select", _select_in_onnx, OLDEST_OPSET)
torch.onnx.register_custom_op_symbolic("cskd_deploy::pool", _pool_in_onnx, OLDEST_OPSET)
