"""Stock detectors of mmdet, 32 channels wide."""

from __future__ import annotations

from typing import Any

from cskd_train.files.config import load_config

NARROW = {
    "RetinaNet": ("mmdet::_base_/models/retinanet_r50_fpn.py", {"bbox_head": {"in_channels": 32, "feat_channels": 32}}),
    "FCOS": (
        "mmdet::fcos/fcos_r50_caffe_fpn_gn-head_1x_coco.py",
        {"bbox_head": {"in_channels": 32, "feat_channels": 32}},
    ),
    "GFL": ("mmdet::gfl/gfl_r50_fpn_1x_coco.py", {"bbox_head": {"in_channels": 32, "feat_channels": 32}}),
    "ATSS": ("mmdet::atss/atss_r50_fpn_1x_coco.py", {"bbox_head": {"in_channels": 32, "feat_channels": 32}}),
    "FSAF": ("mmdet::fsaf/fsaf_r50_fpn_1x_coco.py", {"bbox_head": {"in_channels": 32, "feat_channels": 32}}),
    "FasterRCNN": (
        "mmdet::_base_/models/faster_rcnn_r50_fpn.py",
        {
            "rpn_head": {"in_channels": 32, "feat_channels": 32},
            "roi_head": {
                "bbox_roi_extractor": {"out_channels": 32},
                "bbox_head": {"in_channels": 32, "fc_out_channels": 32},
            },
        },
    ),
}

PUBLISHED = ("RetinaNet", "FCOS", "GFL", "FasterRCNN")
"""Those for which the distillation is published; the others have terms of the same kinds."""


def narrow(family: str, depth: int = 18, classes: int = 4) -> Any:
    """The `model` config of a detector, without pretrained weights."""
    file, heads = NARROW[family]
    cfg = load_config(file)
    widths = [8, 16, 32, 64] if depth < 50 else [32, 64, 128, 256]
    cfg.merge_from_dict({"model": {"backbone": {"depth": depth, "base_channels": 8, "init_cfg": None}, **heads}})
    cfg.model.neck.update(in_channels=widths, out_channels=32)
    head = cfg.model.roi_head.bbox_head if family == "FasterRCNN" else cfg.model.bbox_head
    head.num_classes = classes
    return cfg.model
