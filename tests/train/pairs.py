"""Narrow stock detectors, a ResNet-18 under a ResNet-50, and one distilled step of them."""

from __future__ import annotations

import math

import torch
from mmcv import Config

from cskd_core.distiller import Distiller
from cskd_core.plan import DistillPlan
from cskd_train.mm.detector import DistilledDetector
from cskd_train.mm.families import family_of
from cskd_train.mm.plain import build_without_pretrained

IMAGES = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
# The first image fills less than half of the canvas: its anchors in the padding beyond column 32 are not valid.
METAS = [
    {"img_shape": (90, 30, 3), "pad_shape": (96, 32, 3), "scale_factor": 1.0},
    {"img_shape": (96, 64, 3), "pad_shape": (96, 64, 3), "scale_factor": 1.0},
]
BOXES = [torch.tensor([[4.0, 6.0, 28.0, 50.0]]), torch.tensor([[10.0, 10.0, 60.0, 30.0], [0.0, 0.0, 16.0, 16.0]])]
LABELS = [torch.tensor([1]), torch.tensor([0, 3])]

PYRAMID = {"pyramid_full", "pyramid_roi", "pyramid_foreground", "pyramid_background"}
ONE_STAGE = PYRAMID | {
    "tower_cls", "tower_reg", "prediction_cls", "prediction_reg", "assistant_cls", "assistant_reg"
}  # fmt: skip
TERMS = {
    "RetinaNet": ONE_STAGE,
    "FCOS": ONE_STAGE | {"prediction_centerness", "assistant_centerness"},
    "GFL": ONE_STAGE | {"assistant_dfl"},
    "ATSS": ONE_STAGE - {"assistant_cls", "assistant_reg"} | {"prediction_centerness"},
    "FSAF": ONE_STAGE - {"assistant_cls", "assistant_reg"},
    "FasterRCNN": PYRAMID
    | {"tower_rpn", "prediction_cls", "prediction_reg", "assistant_cls", "assistant_reg"}
    | {"roi_features_student", "roi_features_teacher", "roi_fc", "roi_prediction_cls", "roi_prediction_reg"}
    | {"assistant_roi_cls", "assistant_roi_reg"},
}
OWN = {
    "RetinaNet": {"loss_cls", "loss_bbox"},
    "FCOS": {"loss_cls", "loss_bbox", "loss_centerness"},
    "GFL": {"loss_cls", "loss_bbox", "loss_dfl"},
    "ATSS": {"loss_cls", "loss_bbox", "loss_centerness"},
    "FSAF": {"loss_cls", "loss_bbox", "pos_recall", "num_pos"},
    "FasterRCNN": {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "acc"},
}


def model_of(narrow_model, family, depth=18, width=32, **parts):
    """The `model` config of a detector; keywords are merged into its parts.

    Args:
        narrow_model: the fixture.
        width: channels of the pyramid and of the head.
    """
    model = narrow_model(family, depth)
    model.neck.out_channels = width
    if family == "FasterRCNN":
        model.rpn_head.update(in_channels=width, feat_channels=width)
        model.roi_head.bbox_roi_extractor.out_channels = width
        model.roi_head.bbox_head.in_channels = width
        model.train_cfg.rpn_proposal.update(nms_pre=100, max_per_img=50)
        model.train_cfg.rcnn.sampler.num = 32
    else:
        model.bbox_head.update(in_channels=width, feat_channels=width)
    if family in ("FCOS", "GFL", "ATSS"):  # more than one channel a group: of one cell a single one is zero
        model.bbox_head.norm_cfg = {"type": "GN", "num_groups": 8}
    return Config._merge_a_into_b(parts, model)


def pair(narrow_model, family, student=None, teacher=None, **distill):
    """A student under a teacher, distilled as the keywords say; `student` and `teacher` are keywords of `model_of`."""
    torch.manual_seed(0)
    ours = build_without_pretrained(model_of(narrow_model, family, 18, **(student or {})))
    theirs = build_without_pretrained(model_of(narrow_model, family, 50, **(teacher or {})))
    return distilled(ours, theirs, **distill)


def distilled(student, teacher, family=None, **distill):
    family = family or family_of(student)
    student.train()
    plan = DistillPlan.parse({"teacher": {"checkpoint": "-"}, **distill})
    return DistilledDetector(student, Distiller(student, teacher, family, plan))


def step(model, boxes=BOXES, labels=LABELS):
    """The losses of one step, the distiller's terms without `loss_`, and the student's own as mmdet names them."""
    torch.manual_seed(0)  # mmdet samples anchors and RoIs at random
    losses = model(img=IMAGES, img_metas=METAS, gt_bboxes=boxes, gt_labels=labels)
    own = {name: losses.pop(name) for name in OWN[type(model.student).__name__]}
    return {name.removeprefix("loss_"): value for name, value in losses.items()}, own


def total(model, terms, own):
    loss, values = model.student._parse_losses({**own, **{f"loss_{name}": value for name, value in terms.items()}})
    assert all(math.isfinite(value) for value in values.values()), values
    return loss


def trained(module):
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def check_gradients(model):
    """Every trained parameter has a finite gradient."""
    wrong = [name for name, p in trained(model).items() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not wrong


def moved(family, before, after):
    """The terms whose values differ by more than rounding."""
    assert set(before) == set(after) == TERMS[family]
    return {name for name in before if not torch.allclose(before[name], after[name], rtol=1e-6, atol=0)}
