"""mmdet's detectors by kind: a stock config of each that finds boxes, or why there is none; narrow, and one step.

A kind is a detector class with the parts that set it apart: its neck where that is no FPN, and its heads where they are
not those of Faster R-CNN.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mmdet
import numpy as np
import torch
from mmcv import Config, ConfigDict

import cskd_train.mm  # noqa: F401  (before mmdet and mmcv)
from cskd_train.mm.plain import build_without_pretrained

CONFIGS = Path(mmdet.__file__).parent / ".mim" / "configs"
USUAL = ("FPN", "RPNHead", "StandardRoIHead", "SingleRoIExtractor", "Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead")
WIDTH = 8  # stock ResNets and all that follows them are divided by it

STOCK = {
    "ATSS ATSSHead": "atss/atss_r50_fpn_1x_coco.py",
    "ATSS DyHead ATSSHead": "dyhead/atss_r50_fpn_dyhead_1x_coco.py",
    "AutoAssign AutoAssignHead": "autoassign/autoassign_r50_fpn_8x2_1x_coco.py",
    "CascadeRCNN CascadeRoIHead": "cascade_rcnn/cascade_rcnn_r50_fpn_1x_coco.py",
    "CascadeRCNN HRFPN CascadeRoIHead": "hrnet/cascade_rcnn_hrnetv2p_w18_20e_coco.py",
    "CascadeRCNN CascadeRoIHead SABLHead": "sabl/sabl_cascade_rcnn_r50_fpn_1x_coco.py",
    "CascadeRCNN RFP CascadeRoIHead": "detectors/detectors_cascade_rcnn_r50_1x_coco.py",
    "CenterNet CTResNetNeck CenterNetHead": "centernet/centernet_resnet18_140e_coco.py",
    "CornerNet CornerHead": "cornernet/cornernet_hourglass104_mstest_8x6_210e_coco.py",
    "CornerNet CentripetalHead": "centripetalnet/centripetalnet_hourglass104_mstest_16x6_210e_coco.py",
    "DDOD DDODHead": "ddod/ddod_r50_fpn_1x_coco.py",
    "DETR DETRHead": "detr/detr_r50_8x2_150e_coco.py",
    "DeformableDETR ChannelMapper DeformableDETRHead": "deformable_detr/deformable_detr_r50_16x2_50e_coco.py",
    "FCOS FCOSHead": "fcos/fcos_r50_caffe_fpn_gn-head_1x_coco.py",
    "FCOS HRFPN FCOSHead": "hrnet/fcos_hrnetv2p_w18_gn-head_4x4_1x_coco.py",
    "FOVEA FoveaHead": "foveabox/fovea_align_r50_fpn_gn-head_4x4_2x_coco.py",
    "FSAF FSAFHead": "fsaf/fsaf_r50_fpn_1x_coco.py",
    "FasterRCNN": "faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py",
    "FasterRCNN BBoxHead": "faster_rcnn/faster_rcnn_r50_caffe_c4_1x_coco.py",
    "FasterRCNN BFP": "libra_rcnn/libra_faster_rcnn_r50_fpn_1x_coco.py",
    "FasterRCNN CascadeRPNHead": "cascade_rpn/crpn_faster_rcnn_r50_caffe_fpn_1x_coco.py",
    "FasterRCNN DoubleHeadRoIHead DoubleConvFCBBoxHead": "double_heads/dh_faster_rcnn_r50_fpn_1x_coco.py",
    "FasterRCNN DynamicRoIHead": "dynamic_rcnn/dynamic_rcnn_r50_fpn_1x_coco.py",
    "FasterRCNN FPG": "fpg/faster_rcnn_r50_fpg_crop640_50e_coco.py",
    "FasterRCNN FPN_CARAFE": "carafe/faster_rcnn_r50_fpn_carafe_1x_coco.py",
    "FasterRCNN GARPNHead": "guided_anchoring/ga_faster_r50_fpn_1x_coco.py",
    "FasterRCNN GenericRoIExtractor": "groie/faster_rcnn_r50_fpn_groie_1x_coco.py",
    "FasterRCNN HRFPN": "hrnet/faster_rcnn_hrnetv2p_w18_1x_coco.py",
    "FasterRCNN PAFPN": "pafpn/faster_rcnn_r50_pafpn_1x_coco.py",
    "FasterRCNN PISARoIHead": "pisa/pisa_faster_rcnn_r50_fpn_1x_coco.py",
    "FasterRCNN SABLHead": "sabl/sabl_faster_rcnn_r50_fpn_1x_coco.py",
    "GFL GFLHead": "gfl/gfl_r50_fpn_1x_coco.py",
    "GridRCNN GridRoIHead GridHead": "grid_rcnn/grid_rcnn_r50_fpn_gn-head_1x_coco.py",
    "GridRCNN GridRoIHead GenericRoIExtractor GridHead": "groie/grid_rcnn_r50_fpn_gn-head_groie_1x_coco.py",
    "NASFCOS NASFCOS_FPN FCOSHead": "nas_fcos/nas_fcos_fcoshead_r50_caffe_fpn_gn-head_4x4_1x_coco.py",
    "NASFCOS NASFCOS_FPN NASFCOSHead": "nas_fcos/nas_fcos_nashead_r50_caffe_fpn_gn-head_4x4_1x_coco.py",
    "PAA PAAHead": "paa/paa_r50_fpn_1x_coco.py",
    "RepPointsDetector RepPointsHead": "reppoints/reppoints_moment_r50_fpn_gn-neck+head_1x_coco.py",
    "RetinaNet BFP RetinaHead": "libra_rcnn/libra_retinanet_r50_fpn_1x_coco.py",
    "RetinaNet FPG RetinaSepBNHead": "fpg/retinanet_r50_fpg_crop640_50e_coco.py",
    "RetinaNet FreeAnchorRetinaHead": "free_anchor/retinanet_free_anchor_r50_fpn_1x_coco.py",
    "RetinaNet GARetinaHead": "guided_anchoring/ga_retinanet_r50_fpn_1x_coco.py",
    "RetinaNet NASFPN RetinaSepBNHead": "nas_fpn/retinanet_r50_nasfpn_crop640_50e_coco.py",
    "RetinaNet PISARetinaHead": "pisa/pisa_retinanet_r50_fpn_1x_coco.py",
    "RetinaNet RetinaHead": "retinanet/retinanet_r50_fpn_1x_coco.py",
    "RetinaNet RetinaSepBNHead": "nas_fpn/retinanet_r50_fpn_crop640_50e_coco.py",
    "RetinaNet SABLRetinaHead": "sabl/sabl_retinanet_r50_fpn_1x_coco.py",
    "SingleStageDetector SSDNeck SSDHead": "ssd/ssd300_coco.py",
    "SingleStageDetector SSDNeck PISASSDHead": "pisa/pisa_ssd300_coco.py",
    "SparseRCNN EmbeddingRPNHead SparseRoIHead DIIHead": "sparse_rcnn/sparse_rcnn_r50_fpn_1x_coco.py",
    "TOOD TOODHead": "tood/tood_r50_fpn_1x_coco.py",
    "TridentFasterRCNN TridentRoIHead BBoxHead": "tridentnet/tridentnet_r50_caffe_1x_coco.py",
    "VFNet VFNetHead": "vfnet/vfnet_r50_fpn_1x_coco.py",
    "YOLOF DilatedEncoder YOLOFHead": "yolof/yolof_r50_c5_8x8_1x_coco.py",
    "YOLOV3 YOLOV3Neck YOLOV3Head": "yolo/yolov3_mobilenetv2_320_300e_coco.py",
    "YOLOX YOLOXPAFPN YOLOXHead": "yolox/yolox_tiny_8x8_300e_coco.py",
}
"""Kind -> its config: with a ResNet, narrowed, wherever mmdet has one; without, the lightest, as it is."""

MASKS = "learns from masks"
REASONS = {
    **dict.fromkeys(("FCNMaskHead", "HTCMaskHead", "SCNetMaskHead", "CoarseMaskHead", "DynamicMaskHead"), MASKS),
    **dict.fromkeys(("SOLOHead", "DecoupledSOLOHead", "DecoupledSOLOLightHead", "SOLOV2Head"), MASKS),
    **dict.fromkeys(("Mask2Former", "MaskFormer", "YOLACT"), MASKS),
    "RPN": "finds regions without classes",
    "FastRCNN": "needs the proposals of another detector in its data",
    "LAD": "brings a teacher of its own",
    "KnowledgeDistillationSingleStageDetector": "brings a teacher of its own",
    **dict.fromkeys(("AscendRetinaHead", "AscendSSDHead"), "is the stock head for one make of processor"),
}
"""Part of a kind -> why detectors with it are not tried."""


def stock_configs() -> Iterator[tuple[str, Any]]:
    """The `model` of each config that mmdet ships, behind its name; those that say only parts of one are left out."""
    for path in sorted(CONFIGS.rglob("*.py")):
        name = path.relative_to(CONFIGS).as_posix()
        if name.split("/")[0] in ("_base_", "common"):
            continue
        model = Config.fromfile(str(path), import_custom_modules=False).get("model")
        if model:
            yield name, model


def kind_of(model: Any) -> str:
    """The kind of a `model` config: types of the detector, its necks and its heads, without the usual ones."""
    roi_head = model.get("roi_head") or {}
    parts = [model, model.get("neck"), model.get("rpn_head"), model.get("bbox_head"), roi_head]
    parts += [roi_head.get(name) for name in ("bbox_roi_extractor", "bbox_head", "grid_head", "mask_head")]
    parts += [model.get("mask_head")]
    types = [
        part["type"]
        for one_or_many in parts
        for part in (one_or_many if isinstance(one_or_many, (list, tuple)) else [one_or_many])
        if part and "type" in part
    ]
    return " ".join(dict.fromkeys(name for name in types if name not in USUAL))


def reason_of(kind: str) -> str | None:
    """Why detectors of a kind are not tried."""
    return next((REASONS[part] for part in kind.split() if part in REASONS), None)


def model_of(kind: str) -> Any:
    """The narrow `model` config of a kind."""
    return narrowed(Config.fromfile(str(CONFIGS / STOCK[kind])).model)


def narrowed(model: Any) -> Any:
    """A `model` config with all widths divided by `WIDTH`, if its backbone is a ResNet, and group norms of 4 groups.

    A model stays as it is where no config says all of its widths: other backbones, transformers, and heads that end a
    backbone.
    """
    fixed = "transformer" in (model.get("bbox_head") or {}) or "shared_head" in (model.get("roi_head") or {})
    return model if fixed or "ResNet" not in model.backbone.type else _divided(model)


_WIDTHS = re.compile(r"(channels?|embed_dims|num_feats|inplanes|filters)$")


def _divided(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        inner = {name: _divided(item, name) for name, item in value.items()}
        if "ResNet" in str(value.get("type")) and "depth" in value:
            inner["base_channels"] = 64 // WIDTH
        return ConfigDict({**inner, "num_groups": 4} if value.get("type") == "GN" else inner)
    if isinstance(value, (list, tuple)):
        return type(value)(_divided(item, key) for item in value)
    if type(value) is int and value >= 2 * WIDTH and _WIDTHS.search(key):
        return value // WIDTH
    return value


def detector_of(kind: str) -> Any:
    """The narrow detector of a kind in training mode, with random weights as its config initialises them."""
    torch.manual_seed(0)
    detector = build_without_pretrained(model_of(kind))
    detector.init_weights()
    return detector.train()


def batch_of(size: int = 128) -> dict[str, Any]:
    """Two square images with boxes, as mmdet's loader gives them."""
    metas = [
        {
            "filename": f"{number}.png",
            "ori_filename": f"{number}.png",
            "ori_shape": (size, size, 3),
            "img_shape": (size, size, 3),
            "pad_shape": (size, size, 3),
            "scale_factor": np.ones(4, dtype=np.float32),
            "flip": False,
            "flip_direction": None,
            "img_norm_cfg": {},
        }
        for number in range(2)
    ]
    boxes = [torch.tensor([[0.1, 0.1, 0.45, 0.8]]), torch.tensor([[0.15, 0.2, 0.9, 0.5], [0.0, 0.0, 0.25, 0.25]])]
    return {
        "img": torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)),
        "img_metas": metas,
        "gt_bboxes": [box * size for box in boxes],
        "gt_labels": [torch.tensor([1]), torch.tensor([0, 3])],
    }


def size_of(kind: str) -> int:
    """Pixels of the images' sides: SSD's last levels are empty for small ones."""
    return 300 if "SSDNeck" in kind else 128


def plain_step(kind: str) -> Mapping[str, float]:
    """The losses of one training step, whose total is propagated back.

    Raises:
        ArithmeticError: a loss or a gradient is not finite, or no parameter has a gradient.
    """
    detector = detector_of(kind)
    total, losses = detector._parse_losses(detector(return_loss=True, **batch_of(size_of(kind))))
    total.backward()
    gradients = {name: p.grad for name, p in detector.named_parameters() if p.grad is not None}
    wrong = [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()]
    if not torch.isfinite(total) or wrong or not any(gradient.any() for gradient in gradients.values()):
        raise ArithmeticError(f"{kind}: losses {losses}; not finite: {wrong}")
    return losses
