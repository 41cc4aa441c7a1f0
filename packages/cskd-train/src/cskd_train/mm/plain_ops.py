"""mmcv's operators but deformable convolution, on torchvision's kernels where they run, in plain torch elsewhere.

The functions have the signatures of mmcv's compiled ones, out-arguments included.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from cskd_core.roi_align import roi_align
from cskd_train.errors import NotInstalled

EXTENSION = "mmcv._ext"


@dataclass(frozen=True)
class NativeExtension:
    """mmcv's compiled operators: whether they are installed, and why they do not load where they do not."""

    installed: bool
    error: str | None = None

    @property
    def serves(self) -> bool:
        return self.installed and self.error is None


@cache
def native_extension() -> NativeExtension:
    """Look for mmcv-full's extension module and load it."""
    if importlib.util.find_spec(EXTENSION) is None:
        return NativeExtension(installed=False)
    try:
        importlib.import_module(EXTENSION)
    except (ImportError, OSError) as error:  # built for another torch, CUDA or Python
        return NativeExtension(installed=True, error=str(error))
    return NativeExtension(installed=True)


@cache
def torchvision_loads() -> bool:
    """Whether torchvision is there and was built for this torch."""
    try:
        importlib.import_module("torchvision")
        return hasattr(torch.ops.torchvision, "nms")
    except (ImportError, RuntimeError, OSError):
        return False


@cache
def torchvision_serves(device: str) -> bool:
    """Whether torchvision's kernels run on a type of device; a build for the CPU loads beside a torch for CUDA."""
    if not torchvision_loads():
        return False
    try:
        torch.ops.torchvision.nms(torch.zeros(2, 4, device=device), torch.zeros(2, device=device), 0.5)
    except RuntimeError:  # among them NotImplementedError: no kernel for this device
        return False
    return True


def unserved_message(what: str, served: str) -> str:
    """Why an operator is missing and how to have it.

    Args:
        what: the operator.
        served: what there is instead, in words.
    """
    native = native_extension()
    cause = f"do not load ({native.error})" if native.installed else "are not installed"
    return (
        f"mmcv's operator {what!r} is not available: mmcv-full's compiled operators {cause}, and without them CSKD "
        f"serves {served} only. Choose a model that does not use it, or build mmcv-full with its operators: "
        "MMCV_WITH_OPS=1 pip install --no-build-isolation mmcv-full==1.7.2"
    )


NMS_BLOCK = 128  # boxes resolved together: large enough to vectorise, small enough that the block's pairs stay in cache


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Greedy non-maximum suppression: the indices kept (K,), best score first.

    Args:
        boxes: (N, 4), x1 y1 x2 y2.
        scores: (N,). Equal scores keep their order.
        iou_threshold: a box overlapping a kept, better one by more than this is dropped.
        offset: width is x2 - x1 + offset.
    """
    boxes, scores = at_least_float32(boxes), at_least_float32(scores)
    if offset:
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    if torchvision_serves(boxes.device.type):
        kept: Tensor = torch.ops.torchvision.nms(boxes, scores, iou_threshold)
        return kept
    return greedy_nms(boxes, scores, iou_threshold)


def greedy_nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """`nms` in plain torch, a block of the best boxes at a time: inside the block, then the block against the rest."""
    order = scores.argsort(descending=True, stable=True)
    corners = boxes[order].T.contiguous()  # (4, N): each coordinate is one contiguous row
    kept = []
    while len(order):
        block, rest = corners[:, :NMS_BLOCK], corners[:, NMS_BLOCK:]
        alive = _undefeated(_pairwise_iou(block, block) > iou_threshold)
        kept.append(order[:NMS_BLOCK][alive])
        clear = ~(_pairwise_iou(block[:, alive], rest) > iou_threshold).any(dim=0)
        corners, order = rest[:, clear], order[NMS_BLOCK:][clear]
    return torch.cat(kept) if kept else order


def _undefeated(overlaps: Tensor) -> Tensor:
    """(N,) bool: the boxes that greedy suppression keeps, from (N, N) overlaps of boxes sorted by falling score.

    A box is kept when no kept box above it overlaps it. Iterating that sentence settles the first k boxes in k rounds
    at most (in practice a handful for all), and what is settled is the greedy answer.
    """
    overlapped_from_above = overlaps.triu(diagonal=1)
    alive = overlaps.new_ones(len(overlaps))
    while True:
        survivors = ~(overlapped_from_above & alive.unsqueeze(1)).any(dim=0)
        if torch.equal(survivors, alive):
            return alive
        alive = survivors


def _pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU (M, N) of boxes (4, M) with boxes (4, N); 0/0 of two empty boxes is NaN, which no threshold exceeds."""
    x1, y1, x2, y2 = first.unsqueeze(2)
    u1, v1, u2, v2 = second.unsqueeze(1)
    width = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp_min(0)
    height = (torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp_min(0)
    intersection = width * height
    return intersection / ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - intersection)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft non-maximum suppression: the indices kept (K,), in the order in which they were taken.

    The box of the best score is taken, and the scores of those left fall with their overlap with it; again, until no
    box is left. K boxes with the scores that they were taken with are written into the first rows of `dets`.

    Args:
        boxes: (N, 4), x1 y1 x2 y2.
        scores: (N,).
        dets: (N, 5).
        iou_threshold: overlap from which `method` 0 and 1 lower a score.
        sigma: of `method` 2.
        min_score: a box whose score falls below it is dropped.
        method: 0 lowers scores to zero, 1 by the overlap, 2 by a Gaussian of it.
        offset: width is x2 - x1 + offset.

    Source: Bodla et al. 2017, Soft-NMS, section 3.
    """
    corners = boxes.T + scores.new_tensor([0, 0, offset, offset]).unsqueeze(1)
    left, scores, taken = torch.arange(len(boxes)), scores.clone(), []
    while len(left):
        best = left[scores[left].argmax()]
        taken.append(best)
        left = left[left != best]
        overlaps = _pairwise_iou(corners[:, best, None], corners[:, left]).squeeze(0).nan_to_num(0)
        if method == 2:
            factors = (-overlaps.square() / sigma).exp()
        else:
            factors = torch.where(overlaps >= iou_threshold, 1 - overlaps if method else 0.0, 1.0)
        scores[left] *= factors
        left = left[~(scores[left] < min_score)]
    kept = torch.stack(taken) if taken else left
    dets[: len(kept)] = torch.cat([boxes[kept], scores[kept, None]], 1)
    return kept


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of boxes: each that greedy suppression keeps, and behind it those that it suppresses, best score first.

    Args:
        dets: (N, 5), x1 y1 x2 y2 score.
        iou_threshold: a box overlapping a kept, better one by this much or more is suppressed.
    """
    corners = dets[:, :4].T
    left, groups = dets[:, 4].argsort(descending=True, stable=True), []
    while len(left):
        overlaps = _pairwise_iou(corners[:, left[:1]], corners[:, left]).squeeze(0)
        suppressed = overlaps >= iou_threshold
        suppressed[0] = True  # itself, whose overlap is NaN where it has no area
        groups.append(left[suppressed].tolist())
        left = left[~suppressed]
    return groups


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the pooled RoIs (N, C, rows, columns) into `output`; `pool_mode` 0 is max, 1 is average."""
    size = (aligned_height, aligned_width)
    output.copy_(_average_roi_align(input, rois, size, spatial_scale, sampling_ratio, pool_mode, aligned))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient (B, C, H, W) into `grad_input`. Pooling is linear: its gradient does not need the features."""
    size = (aligned_height, aligned_width)
    features = grad_input.new_zeros(()).expand(grad_input.shape).requires_grad_()
    with torch.enable_grad():
        pooled = _average_roi_align(features, rois, size, spatial_scale, sampling_ratio, pool_mode, aligned)
    (gradient,) = torch.autograd.grad(pooled, features, grad_output.to(pooled.dtype))
    grad_input.copy_(gradient)


def _average_roi_align(
    features: Tensor,
    rois: Tensor,
    size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> Tensor:
    if pool_mode != 1:
        raise NotInstalled(unserved_message("roi_align with pool_mode='max'", "roi_align with pool_mode='avg'"))
    # Half precision has no room for coordinates of a few hundred cells with a fraction.
    with torch.autocast(features.device.type, enabled=False):
        return roi_align(
            at_least_float32(features), at_least_float32(rois), size, spatial_scale, sampling_ratio, aligned
        )


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Write what a kernel sees at N positions of one map (1, C, H, W) into `col` (C * kernel_h * kernel_w, N)."""
    padded = F.pad(im[0], (pad_w, pad_w, pad_h, pad_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=im.device).view(-1, 1, 1)
    columns = mask_w_idx + torch.arange(kernel_w, device=im.device).view(1, -1, 1)
    col.copy_(padded[:, rows, columns].flatten(0, 2))


def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """Write `col` (C, N) to N positions of one map `im` (1, C, H, W)."""
    im[0, :, mask_h_idx, mask_w_idx] = col


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the reassembled map (B, C, H * scale_factor, W * scale_factor) into `output`.

    Args:
        features: (B, C, H, W), kept in `rfeatures`, which is all that mmcv hands to the backward function.
        masks: (B, group_size * kernel_size**2, rows and columns of the output).
        rfeatures: as `features`.
        routput: mmcv's buffer, as `rmasks`: not needed.
        rmasks: not needed.
        output: the map.
        kernel_size: cells around the one below, along each axis, that an output is a weighted sum of.
        group_size: groups of channels with masks of their own.
        scale_factor: of the upsampling.

    Source: Wang et al. 2019, CARAFE, section 3.1, equation 4.
    """
    rfeatures.copy_(features)
    output.copy_(_reassembled(at_least_float32(features), at_least_float32(masks), kernel_size, group_size))


def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the gradients of features and masks into `bottom_grad` and `mask_grad`."""
    features, shares = (at_least_float32(tensor).detach().requires_grad_() for tensor in (rfeatures, masks))
    with torch.enable_grad():
        output = _reassembled(features, shares, kernel_size, group_size)
    found = torch.autograd.grad(output, (features, shares), top_grad.to(output.dtype))
    for gradient, to in zip(found, (bottom_grad, mask_grad), strict=True):
        to.copy_(gradient)


def _reassembled(features: Tensor, masks: Tensor, kernel_size: int, group_size: int) -> Tensor:
    height, width = features.shape[2:]
    cells = F.unfold(features, kernel_size, padding=kernel_size // 2)
    cells = cells.unflatten(1, (group_size, -1, kernel_size**2)).unflatten(4, (height, width))
    shares = masks.unflatten(1, (group_size, kernel_size**2)).unflatten(4, (width, -1)).unflatten(3, (height, -1))
    return torch.einsum("bgckhw,bgkhiwj->bgchiwj", cells, shares).flatten(1, 2).flatten(4, 5).flatten(2, 3)


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the focal loss (N, C) of logits `input` (N, C) and class indices `target` (N,), C = background."""
    output.copy_(_focal_loss(input, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative (N, C) of each loss by its logit into `grad_input`."""
    logits = input.detach().requires_grad_()
    with torch.enable_grad():
        loss = _focal_loss(logits, target, weight, gamma, alpha)
    (gradient,) = torch.autograd.grad(loss, logits, torch.ones_like(loss))
    grad_input.copy_(gradient)


def _focal_loss(logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    """-a (1 - p)^gamma log p, with p the probability given to the truth; in logarithms, so that no logit overflows."""
    logits = at_least_float32(logits)
    positive = target.unsqueeze(1) == torch.arange(logits.shape[1], device=target.device)
    towards_truth = torch.where(positive, logits, -logits)
    balance = torch.full_like(logits, 1 - alpha).masked_fill(positive, alpha)
    loss = -balance * (gamma * F.logsigmoid(-towards_truth)).exp() * F.logsigmoid(towards_truth)
    return loss * weight[target].unsqueeze(1) if weight.numel() else loss


def at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
