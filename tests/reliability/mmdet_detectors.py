"""mmdet's detectors by kind: a stock config of each that finds boxes, or why there is none; narrow, and one step.

A kind is a detector class with the parts that set it apart: its neck where that is no FPN, and its heads where they are
not those of Faster R-CNN.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmdet
import numpy as np
import torch
from mmcv import Config, ConfigDict
from mmdet.models import HEADS

from cskd_core.errors import CskdError
from cskd_deploy.errors import DeployError
from cskd_deploy.exporter.onnx import export
from cskd_train.files.checkpoints import FORMAT, FORMAT_VERSION, save
from cskd_train.files.config import config_to_data
from cskd_train.mm.plain import build_without_pretrained

from ..deploy.students import student_config
from ..train.distilling import under

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

MASKS = "learns from masks, which data sets here have not; with a neck it can be a teacher"
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
    """The narrow `model` config of a kind, without pretrained weights and with few regions."""
    return narrowed(_light(Config.fromfile(str(CONFIGS / STOCK[kind])).model))


_MOST = {"num": 16, "nms_pre": 200, "max_per_img": 100}


def _light(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if key != "pretrained"}
        if "Pretrained" in str(kept.get("init_cfg")):
            del kept["init_cfg"]
        if kept.get("type") == "TridentResNet":  # nothing but a file initialises its own convolutions
            kept["init_cfg"] = {"type": "Normal", "layer": ["Conv2d", "TridentConv"], "std": 0.01}
        return ConfigDict({key: min(item, _MOST[key]) if key in _MOST else _light(item) for key, item in kept.items()})
    return type(value)(_light(item) for item in value) if isinstance(value, (list, tuple)) else value


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
        if _default_norm(value.get("type")) == "GN":
            inner.setdefault("norm_cfg", {"type": "GN", "num_groups": 4, "requires_grad": True})
        return ConfigDict({**inner, "num_groups": 4} if value.get("type") == "GN" else inner)
    if isinstance(value, (list, tuple)):
        return type(value)(_divided(item, key) for item in value)
    if type(value) is int and value >= 2 * WIDTH and _WIDTHS.search(key):
        return value // WIDTH
    return value


def _default_norm(head: Any) -> str | None:
    """The type of `norm_cfg` that a head has where its config says none."""
    for parent in getattr(HEADS.get(head) if isinstance(head, str) else None, "__mro__", ()):
        default = inspect.signature(parent.__init__).parameters.get("norm_cfg")
        if default is not None:
            return (default.default or {}).get("type")
    return None


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


def plain_step(kind: str) -> dict[str, float]:
    """The losses of one training step, whose total is propagated back.

    Raises:
        ArithmeticError: as `propagated`.
    """
    return propagated(detector_of(kind), batch_of(size_of(kind)))


def distilled_step(kind: str, folder: Path) -> dict[str, float]:
    """The losses of one distilled step, under a teacher of the same config with other random weights.

    Args:
        kind: of both.
        folder: for the teacher's file.

    Raises:
        ArithmeticError: as `propagated`.
        CskdError: they are refused.
    """
    file = write_checkpoint(kind, folder / "teacher.pth")
    return propagated(under(model_of(kind), file).train(), batch_of(size_of(kind)))


def write_checkpoint(kind: str, file: Path) -> Path:
    """A checkpoint of cskd-train of the narrow detector of a kind, with random weights.

    Those of heads are larger than a config has them at first, so that scores lie apart by more than rounding.
    """
    model = model_of(kind)
    torch.manual_seed(1)
    detector = build_without_pretrained(model)
    detector.init_weights()
    for name, parameter in detector.named_parameters():
        if "head" in name and parameter.dim() > 1:
            torch.nn.init.kaiming_normal_(parameter)
    names = tuple(f"class {number}" for number in range(80))
    config = config_to_data({"model": model, "data": student_config(names)["data"]})
    meta = {"format": FORMAT, "version": FORMAT_VERSION, "config": config, "CLASSES": list(names)}
    save(file, {"state_dict": detector.state_dict(), "meta": meta})
    return file


def propagated(model: torch.nn.Module, batch: Mapping[str, Any]) -> dict[str, float]:
    """The losses of a detector, or of a student under its distiller, after their gradients have been computed.

    Raises:
        ArithmeticError: a loss or a gradient is not finite, or all gradients are zero.
    """
    torch.manual_seed(0)  # mmdet samples anchors and RoIs at random
    outputs = model.train_step(batch, None)  # type: ignore[operator]
    outputs["loss"].backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    wrong = [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()]
    if wrong or not math.isfinite(outputs["loss"].item()) or not any(gradient.any() for gradient in gradients.values()):
        raise ArithmeticError(f"losses {outputs['log_vars']}; gradients that are not finite: {wrong}")
    return dict(outputs["log_vars"])


GROUPS = ("pyramid", "tower", "prediction", "assistant", "roi")
COMPARED = {name: name for name in GROUPS} | {"roi": "second stage"}


@dataclass(frozen=True)
class Row:
    """What the page says of a kind.

    Attributes:
        terms: groups of the distilled step's terms.
        exported: whether `cskd-deploy export` takes a student: yes, no, or at which sizes.
        why: there is not more, where there is not.
    """

    kind: str
    terms: tuple[str, ...]
    exported: str
    why: str

    def __str__(self) -> str:
        terms = ", ".join(COMPARED[name] for name in self.terms) or "none"
        return f"| {self.kind} | `{STOCK[self.kind]}` | {terms} | {self.exported} | {self.why} |"


def row_of(kind: str, folder: Path) -> Row:
    """Take a plain step and a distilled one, and say what they were."""
    plain = plain_step(kind)
    exported, refused = how_exported(kind, folder)
    try:
        distilled = distilled_step(kind, folder)
    except CskdError as error:
        return Row(kind, (), exported, str(error).partition(" cannot be distilled: ")[2] or str(error))
    if missing := plain.keys() - distilled.keys():
        raise ArithmeticError(f"{kind}: the distilled step has lost {missing}")
    added = [name.removeprefix("loss_") for name in distilled.keys() - plain.keys()]
    terms = tuple(group for group in GROUPS if any(name.split("_")[0] == group for name in added))
    parts = isinstance(model_of(kind).get("neck"), (list, tuple))
    unread = "heads are not compared behind a neck of several parts" if parts else "nothing is known of its heads"
    why = [refused, None if len(terms) > 1 else unread]
    return Row(kind, terms, exported, "; ".join(filter(None, why)))


def how_exported(kind: str, folder: Path) -> tuple[str, str]:
    """Whether there is an ONNX file of a student, and what is in the way where there is none."""
    checkpoint = write_checkpoint(kind, folder / "student.pth")
    try:
        export(checkpoint, folder / "student.onnx")
    except DeployError as error:
        if "give --input-size" in str(error):
            export(checkpoint, folder / "student.onnx", input_sizes=[(256, 320)])
            return "at one size, `--input-size`", ""
        part = r"has (?:model\.)?(.+?), which cannot be exported|(mmcv:\w+)|operator ([\w ]+),"
        found = re.search(part, str(error))
        return "no", f"not exported: {next(filter(None, found.groups()))}" if found else ""
    return "yes", ""


HEADER = """\
# mmdet's detectors as students

Every kind of detector that mmdet ships a config of, with what a student of that kind gets from a teacher of the same
kind: each was built narrow and exported, and took one training step and one distilled step. Rows are what
`tests/reliability/test_every_mmdet_detector.py` finds, which holds this page.

A kind is `model.type` with the neck where that is no FPN, and the heads where they are not those of Faster R-CNN. Terms
are those of [the algorithm](algorithm.md); a teacher of another kind teaches by the pyramid alone, at the strides that
both have. What is not exported yet can be trained, evaluated and be a teacher. All of them run without mmcv's compiled
operators; a student PAA asks for scikit-learn: `pip install 'cskd-train[paa]'`.

| detector | config of mmdet | distilled terms | exported | why not more |
|---|---|---|---|---|
"""


def page(rows: Iterable[Row]) -> str:
    reasons: dict[str, list[str]] = {}
    for part, reason in REASONS.items():
        reasons.setdefault(reason, []).append(f"`{part}`")
    lines = [f"- {', '.join(parts)}: {reason}" for reason, parts in reasons.items()]
    table = "\n".join(map(str, rows))
    return f"{HEADER}{table}\n\nNot tried as students, by a part of theirs:\n\n" + "\n".join(lines) + "\n"
