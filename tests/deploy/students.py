"""Tiny students of every family, as plain data and as checkpoints of untrained weights that find plenty."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

SIZE = (128, 128)
GRAPHS = ("RetinaNet", "FCOS", "GFL", "FasterRCNN")  # each has a graph of its own
FAMILIES = (*GRAPHS, "ATSS")  # which has FCOS's graph
STRIDES = [8, 16, 32, 64, 128]
GROUPS = {"type": "GN", "num_groups": 8}

# For each family: layer, deviation and mean that its channels get on a random image, the first ones first. Scores above
# the threshold for a few hundred candidates, boxes of some strides, overlaps for NMS to remove.
OUTPUTS: dict[str, list[tuple[str, float, float]]] = {
    "RetinaNet": [("bbox_head.retina_cls", 1.5, -3), ("bbox_head.retina_reg", 0.3, 0)],
    "FCOS": [
        ("bbox_head.conv_cls", 1.5, -3),
        ("bbox_head.conv_reg", 1, 2),
        ("bbox_head.conv_centerness", 1.5, 0),
    ],
    "GFL": [("bbox_head.gfl_cls", 1.5, -3), ("bbox_head.gfl_reg", 1.5, 0)],
    "ATSS": [
        ("bbox_head.atss_cls", 1.5, -3),
        ("bbox_head.atss_reg", 2, 0),
        ("bbox_head.atss_centerness", 1.5, 0),
    ],
    "AutoAssign": [
        ("bbox_head.conv_cls", 1.5, -3),
        ("bbox_head.conv_reg", 1, 2),
        ("bbox_head.conv_centerness", 1.5, 0),
    ],
    "FSAF": [("bbox_head.retina_cls", 1.5, -3), ("bbox_head.retina_reg", 0.3, 0.6)],
    "FasterRCNN": [
        ("rpn_head.rpn_cls", 1.5, 0),
        ("rpn_head.rpn_reg", 0.3, 0),
        ("roi_head.bbox_head.fc_cls", 1.5, 0),
        ("roi_head.bbox_head.fc_reg", 1, 0),
    ],
}


def student_config(
    classes: tuple[str, ...], scale: tuple[int, int] = SIZE, family: str = "RetinaNet", **sizes: Any
) -> dict[str, Any]:
    """A ResNet-18 student of half width with a narrow neck and head, as plain data; `sizes` as `model_config`."""
    norm = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "to_rgb": True}
    transforms = [
        {"type": "Resize", "keep_ratio": True},
        {"type": "RandomFlip"},
        {"type": "Normalize", **norm},
        {"type": "Pad", "size_divisor": 32},
        {"type": "ImageToTensor", "keys": ["img"]},
        {"type": "Collect", "keys": ["img"]},
    ]
    augment = {"type": "MultiScaleFlipAug", "img_scale": scale, "flip": False, "transforms": transforms}
    split = {"type": "CocoDataset", "classes": classes, "ann_file": "val.json", "img_prefix": "images/"}
    return {
        "model": model_config(family, len(classes), **sizes),
        "data": {
            "workers_per_gpu": 0,
            "test": {**split, "pipeline": [{"type": "LoadImageFromFile"}, augment]},
        },
    }


def model_config(
    family: str, num_classes: int, width: int = 32, candidates: int = 300, base: int = 32
) -> dict[str, Any]:
    """The `model` of a family as mmdet's shipped configs have it, but for its size.

    Args:
        base: channels of the backbone's first stage, 64 in full width.
        width: channels of the neck and the head.
        candidates: nms_pre, and for Faster R-CNN the number of proposals.
    """
    stages = [base, 2 * base, 4 * base, 8 * base]
    neck: dict[str, Any] = {"type": "FPN", "in_channels": stages, "out_channels": width, "num_outs": 5}
    test = {"score_thr": 0.05, "nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 100}
    pre = {"nms_pre": candidates, "min_bbox_size": 0}
    parts: dict[str, Any]
    if family == "FasterRCNN":
        proposals = {**pre, "max_per_img": candidates, "nms": {"type": "nms", "iou_threshold": 0.7}}
        parts = {**_two_stage(num_classes, width), "test_cfg": {"rpn": proposals, "rcnn": test}}
    else:
        further_levels, head = _one_stage(family)
        neck |= {"start_level": 1, **further_levels}
        dense = {"num_classes": num_classes, "in_channels": width, "feat_channels": width, "stacked_convs": 2}
        parts = {"bbox_head": {**head, **dense}, "test_cfg": {**pre, **test}}
    backbone = {
        "type": "ResNet",
        "depth": 18,
        "base_channels": base,
        "norm_cfg": {"type": "BN"},
        "out_indices": (0, 1, 2, 3),
    }
    return {"type": family, "backbone": backbone, "neck": neck, "train_cfg": None, **parts}


def _one_stage(family: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the neck and the head of a one-stage family have of their own."""
    focal = {"type": "FocalLoss", "use_sigmoid": True}
    giou = {"type": "GIoULoss"}
    if family == "RetinaNet":
        return {"add_extra_convs": "on_input"}, {
            "type": "RetinaHead",
            "anchor_generator": _anchors(4, 3, [0.5, 1.0, 2.0]),
            "bbox_coder": {"type": "DeltaXYWHBBoxCoder"},
            "loss_cls": focal,
            "loss_bbox": {"type": "L1Loss"},
        }
    if family == "FSAF":
        return {"add_extra_convs": "on_input"}, {
            "type": "FSAFHead",
            "anchor_generator": _anchors(1),
            "bbox_coder": {"type": "TBLRBBoxCoder", "normalizer": 4.0},
            "reg_decoded_bbox": True,
            "loss_cls": {**focal, "reduction": "none"},
            "loss_bbox": {"type": "IoULoss", "reduction": "none"},
        }
    if family == "FCOS":
        points = {"type": "FCOSHead", "strides": STRIDES, "norm_on_bbox": True, "conv_bias": True}
        extra = {"add_extra_convs": "on_output", "relu_before_extra_convs": True}
        return extra, {**points, "norm_cfg": GROUPS, "loss_cls": focal}
    if family == "AutoAssign":
        points = {"type": "AutoAssignHead", "strides": STRIDES}
        extra = {"add_extra_convs": True, "relu_before_extra_convs": True}
        return extra, {**points, "norm_cfg": GROUPS, "loss_bbox": giou}
    head: dict[str, dict[str, Any]] = {
        "GFL": {"type": "GFLHead", "loss_cls": {"type": "QualityFocalLoss", "use_sigmoid": True}},
        "ATSS": {
            "type": "ATSSHead",
            "bbox_coder": {"type": "DeltaXYWHBBoxCoder", "target_stds": [0.1, 0.1, 0.2, 0.2]},
            "loss_cls": focal,
        },
    }
    shared = {"anchor_generator": _anchors(8), "loss_bbox": giou, "norm_cfg": GROUPS}
    return {"add_extra_convs": "on_output"}, {**head[family], **shared}


def _anchors(scale: int, scales_per_octave: int = 1, ratios: Sequence[float] = (1.0,)) -> dict[str, Any]:
    octave = {"octave_base_scale": scale, "scales_per_octave": scales_per_octave}
    return {"type": "AnchorGenerator", **octave, "ratios": list(ratios), "strides": STRIDES}


def _two_stage(num_classes: int, width: int) -> dict[str, Any]:
    anchors = {"scales": [8], "ratios": [0.5, 1.0, 2.0], "strides": [4, 8, 16, 32, 64]}
    return {
        "rpn_head": {
            "type": "RPNHead",
            "in_channels": width,
            "feat_channels": width,
            "anchor_generator": {"type": "AnchorGenerator", **anchors},
            "bbox_coder": {"type": "DeltaXYWHBBoxCoder"},
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True},
        },
        "roi_head": {
            "type": "StandardRoIHead",
            "bbox_roi_extractor": {
                "type": "SingleRoIExtractor",
                "roi_layer": {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 0},
                "out_channels": width,
                "featmap_strides": [4, 8, 16, 32],
                "finest_scale": 14,  # a quarter of the usual: small images use all four levels
            },
            "bbox_head": {
                "type": "Shared2FCBBoxHead",
                "in_channels": width,
                "fc_out_channels": 2 * width,
                "roi_feat_size": 7,
                "num_classes": num_classes,
                "bbox_coder": {"type": "DeltaXYWHBBoxCoder", "target_stds": [0.1, 0.1, 0.2, 0.2]},
                "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False},
                "loss_bbox": {"type": "L1Loss"},
            },
        },
    }


def write_checkpoint(path: Path, classes: tuple[str, ...], config: dict[str, Any] | None = None, seed: int = 0) -> Path:
    """A checkpoint of an untrained student whose scores and boxes are spread as a trained one's are."""
    import torch

    from cskd_train.files.checkpoints import save
    from cskd_train.files.config import config_from_data
    from cskd_train.mm.detector import build_student

    config = config or student_config(classes)
    torch.manual_seed(seed)
    model = build_student(config_from_data(config)).eval()
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # as after training: neither zero nor one
                module.weight.uniform_(0.5, 1.0)
                module.bias.uniform_(-0.1, 0.1)
            elif isinstance(module, torch.nn.Conv2d) and "head" in name:
                torch.nn.init.kaiming_normal_(module.weight)
    for layer, deviation, mean in OUTPUTS[config["model"]["type"]]:
        _spread(model, layer, deviation, mean)
    meta = {
        "format": "cskd",
        "version": 1,
        "config": config,
        "CLASSES": list(classes),
        "epoch": 1,
        "iter": 1,
        "metrics": {"bbox_mAP": 0.0},
        "seed": seed,
        "versions": {},
        "distilled": False,
    }
    save(path, {"state_dict": model.state_dict(), "meta": meta})
    return path


def _spread(model: Any, layer: str, deviation: float, mean: float) -> None:
    """Rescale a layer so that on a random image each of its channels has this mean, and all have this deviation."""
    import numpy as np
    import torch

    module = model.get_submodule(layer)
    seen: list[torch.Tensor] = []
    hook = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output.transpose(0, 1).flatten(1)))
    meta = {"img_shape": (*SIZE, 3), "scale_factor": np.ones(4, dtype=np.float32)}
    with torch.no_grad():
        model.simple_test(torch.randn(1, 3, *SIZE), [meta])
        hook.remove()
        values = torch.cat(seen, dim=1) - module.bias[:, None]
        factor = deviation / (values - values.mean(dim=1, keepdim=True)).std()
        module.weight *= factor
        module.bias.copy_(mean - factor * values.mean(dim=1))
        if layer.endswith("gfl_reg"):  # the nearer bins the likelier: boxes of a few strides
            module.bias += torch.linspace(0, -4, len(module.bias) // 4).repeat(4)
