"""Detectors of two kinds, or with heads that no family reads: their pyramids are compared, and nothing else."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path

import pytest
import torch
from mmcv import ConfigDict

from cskd_core.errors import PlanError, ShapeError, TapError
from cskd_core.family import PyramidSpec
from cskd_deploy.exporter import EXPORTABLE
from cskd_train.errors import TrainError
from cskd_train.files.config import load_config
from cskd_train.mm.detector import build_student
from cskd_train.mm.families import atss, export_note, exportable
from cskd_train.mm.families.gfl import GFLFamily
from cskd_train.mm.families.pyramid import PyramidFamily
from cskd_train.mm.families.retinanet import RetinaNetFamily
from cskd_train.mm.plain import build_without_pretrained

from .distilling import BATCH, store_teacher, under

PYRAMID = {"loss_pyramid_full", "loss_pyramid_roi", "loss_pyramid_foreground", "loss_pyramid_background"}
ALONE = {"tower": None, "prediction": None, "assistant": None, "roi": None}


@pytest.fixture
def save_teacher(tmp_path):
    return partial(store_teacher, tmp_path / "teacher.pth")


def two_stage(config, classes=4):
    """A narrow two-stage detector on a ResNet-18, with the heads of one of mmdet's configs."""
    model = load_config(config).model
    model.backbone.update(depth=18, base_channels=8, init_cfg=None)
    model.neck.update(in_channels=[8, 16, 32, 64], out_channels=32)
    model.rpn_head.update(in_channels=32, feat_channels=32)
    roi_head = model.roi_head
    for part in ("bbox_roi_extractor", "mask_roi_extractor"):
        if part in roi_head:
            roi_head[part].out_channels = 32
    heads = roi_head.bbox_head if isinstance(roi_head.bbox_head, list) else [roi_head.bbox_head]
    for head in heads:
        head.update(in_channels=32, fc_out_channels=32, num_classes=classes)
    if "mask_head" in roi_head:
        roi_head.mask_head.update(in_channels=32, conv_out_channels=32, num_classes=classes)
    return model


cascade = partial(two_stage, "mmdet::cascade_rcnn/cascade_rcnn_r50_fpn_1x_coco.py")
mask = partial(two_stage, "mmdet::mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py")


def distilled_terms(losses):
    return {name for name in losses if name.startswith(("loss_pyramid", "loss_tower", "loss_pred", "loss_assist"))}


def test_a_one_stage_student_under_a_cascade_learns_its_pyramid_where_the_strides_meet(narrow_model, save_teacher):
    model = under(narrow_model("RetinaNet"), save_teacher(cascade(classes=7)))
    assert [note.partition(": ")[0] for note in model.notes] == [
        "a RetinaNet (RetinaHead) under a CascadeRCNN (RPNHead, CascadeRoIHead)",
        "the student's pyramid levels of stride 128 are not compared",
        "the teacher's pyramid levels of stride 4 are not compared",
    ]
    losses = model(**BATCH)
    assert distilled_terms(losses) == PYRAMID
    model.train_step(BATCH, None)["loss"].backward()
    assert len(model.distiller.pyramid.adapters) == 4
    assert all(p.grad.abs().sum() > 0 for p in model.distiller.parameters())
    assert all(p.grad is None for p in model.distiller.teacher.detector.parameters())


def test_what_is_compared_at_a_stride_is_the_same_stride_of_the_teacher(narrow_model, save_teacher):
    model = under(narrow_model("RetinaNet"), save_teacher(cascade()))
    seen = []
    model.distiller.pyramid.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[:2]))
    model(**BATCH)
    student, teacher = seen[0]
    sizes = [(12, 8), (6, 4), (3, 2), (2, 1)]  # of 96 x 64 pixels, at strides of 8 to 64
    assert [level.shape[2:] for level in student] == [level.shape[2:] for level in teacher] == sizes
    pyramid = model.distiller.teacher.detector.extract_feat(BATCH["img"])
    assert all(torch.equal(one, other) for one, other in zip(teacher, pyramid[1:], strict=True))


OTHER_HEADS = [
    ("RetinaNet", "bbox_head", "RetinaSepBNHead"),
    ("FasterRCNN", "roi_head", "DoubleHeadRoIHead"),
    ("FasterRCNN", "roi_head.bbox_head", "ConvFCBBoxHead"),  # any number of layers, any branches
]


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize(("detector", "path", "head"), OTHER_HEADS)
def test_of_a_head_that_no_family_reads_nothing_is_compared(narrow_model, save_teacher, role, detector, path, head):
    models = {"student": narrow_model(detector), "teacher": narrow_model(detector, 50)}
    changed = models[role]
    for name in path.split("."):
        changed = changed[name]
    changed.type = head
    if head == "ConvFCBBoxHead":
        changed.num_shared_fcs = 2
    if head == "DoubleHeadRoIHead":
        changed.reg_roi_scale_factor = 1.3
        changed.bbox_head.update(type="DoubleConvFCBBoxHead", num_convs=1, num_fcs=1, conv_out_channels=32)
    if head == "RetinaSepBNHead":
        changed.num_ins = 5
    model = under(models["student"], save_teacher(models["teacher"]))
    assert model.notes[0].endswith("the pyramids are compared, nothing of the heads")
    losses = model(**BATCH)
    assert distilled_terms(losses) == PYRAMID
    assert not [name for name in losses if name.startswith("loss_roi")]


def test_of_a_neck_of_several_parts_the_last_one_is_compared(narrow_model, save_teacher):
    model = narrow_model("RetinaNet")
    model.neck = [model.neck, {"type": "BFP", "in_channels": 32, "num_levels": 5, "refine_type": "conv"}]
    distilled = under(model, save_teacher(narrow_model("RetinaNet", 50)))
    assert distilled.notes[0].startswith("a RetinaNet (neck FPN, BFP; RetinaHead) under a RetinaNet (RetinaHead): ")
    assert distilled_terms(distilled(**BATCH)) == PYRAMID


def test_a_plan_without_heads_runs_none_and_gives_the_same_pyramid_terms(narrow_model, save_teacher, family):
    teacher = save_teacher(narrow_model(family, 50))
    whole, alone = under(narrow_model(family), teacher), under(narrow_model(family), teacher, **ALONE)
    alone.load_state_dict(
        {key: value for key, value in whole.state_dict().items() if key in alone.state_dict()}, strict=True
    )
    assert alone.notes == ()
    detector, ran = alone.distiller.teacher.detector, []
    head = detector.rpn_head if family == "FasterRCNN" else detector.bbox_head
    head.register_forward_hook(lambda *_: ran.append(1))
    terms = []
    for model in (whole, alone):
        torch.manual_seed(0)
        losses = model(**BATCH)
        terms.append({name: losses[name].item() for name in PYRAMID})
        assert (distilled_terms(losses) == PYRAMID) == (model is alone)
    assert terms[0] == pytest.approx(terms[1], rel=1e-6)
    assert not ran


def test_settings_of_heads_that_are_not_compared_are_refused(narrow_model, save_teacher):
    teacher = save_teacher(cascade())
    with pytest.raises(
        PlanError, match=r"distill\.tower\.cls: a RetinaNet .* under a CascadeRCNN .* has no use for it"
    ):
        under(narrow_model("RetinaNet"), teacher, tower={"cls": (2, 1)})
    with pytest.raises(PlanError, match=r"distill\.prediction: "):
        under(narrow_model("RetinaNet"), teacher, prediction=(3, 1))


def test_classes_need_not_agree_where_none_are_compared(narrow_model, save_teacher):
    cars, cards = ("car", "bus", "van", "truck"), ("ace", "king", "queen")
    teacher = save_teacher(narrow_model("RetinaNet", 50, 3), cards)
    with pytest.raises(TrainError, match=r"set distill\.teacher\.class_map"):
        under(narrow_model("RetinaNet"), teacher, cars)
    model = under(narrow_model("RetinaNet"), teacher, cars, **ALONE)
    assert not model.same_classes
    assert distilled_terms(model(**BATCH)) == PYRAMID
    with pytest.raises(TrainError, match="class_map is set, but no classes are compared"):
        under(narrow_model("RetinaNet"), teacher, cars, teacher={"class_map": {"car": "ace"}}, **ALONE)


def test_towers_are_compared_whatever_the_classes(narrow_model, save_teacher):
    teacher = save_teacher(narrow_model("RetinaNet", 50, 3), ("ace", "king", "queen"))
    model = under(narrow_model("RetinaNet"), teacher, ("a", "b", "c", "d"), prediction=None, assistant=None)
    assert distilled_terms(model(**BATCH)) == PYRAMID | {"loss_tower_cls", "loss_tower_reg"}


def test_a_detector_of_masks_teaches_and_is_no_student(narrow_model, save_teacher):
    model = under(narrow_model("FasterRCNN"), save_teacher(mask()))
    assert distilled_terms(model(**BATCH)) == PYRAMID
    meta = {**BATCH["img_metas"][0], "ori_shape": (90, 60, 3)}
    ((boxes, _),) = model.taught_by()(img=[BATCH["img"][:1]], img_metas=[[meta]], return_loss=False, rescale=True)
    assert [found.shape[1] for found in boxes] == [5] * 4
    with pytest.raises(
        TrainError, match=r"a MaskRCNN learns masks, .* Take the detector of the same kind without masks"
    ):
        build_student({"model": mask()})


def test_a_student_has_to_find_boxes_of_classes(narrow_model):
    model = narrow_model("FasterRCNN")
    parts = {name: model[name] for name in ("backbone", "neck", "rpn_head")}
    settings = {name: {"rpn": model[name].rpn} for name in ("train_cfg", "test_cfg")}
    settings["train_cfg"]["rpn_proposal"] = model.train_cfg.rpn_proposal
    with pytest.raises(TrainError, match="a RPN finds no boxes of classes: take a detector that does"):
        build_student({"model": ConfigDict(type="RPN", **parts, **settings)})


def test_pyramids_without_a_common_stride_are_refused(narrow_model, save_teacher, monkeypatch):
    pyramid = PyramidFamily.pyramid

    def halved(self, detector):
        found = pyramid(self, detector)
        first = type(detector).__name__ == "CascadeRCNN"
        return PyramidSpec(found.channels[:1], found.strides[:1]) if first else found

    monkeypatch.setattr(PyramidFamily, "pyramid", halved)
    with pytest.raises(ShapeError, match=r"\(8, 16, 32, 64, 128\) in the student, \(4,\) in the teacher: no level"):
        under(narrow_model("RetinaNet"), save_teacher(cascade()))


def test_heads_on_other_strides_are_compared_if_the_plan_leaves_them_out(narrow_model, save_teacher):
    teacher = narrow_model("RetinaNet", 50)
    teacher.neck.num_outs = 4
    teacher.bbox_head.anchor_generator.strides = [8, 16, 32, 64]
    saved = save_teacher(teacher)
    with pytest.raises(ShapeError, match=r"at \(8, 16, 32, 64\): leave the heads out with tower=None, prediction=None"):
        under(narrow_model("RetinaNet"), saved)
    model = under(narrow_model("RetinaNet"), saved, **ALONE)
    assert model.notes == ("the student's pyramid levels of stride 128 are not compared: the teacher has none",)
    assert distilled_terms(model(**BATCH)) == PYRAMID


def test_a_pyramid_is_seen_without_changing_the_detector():
    detector = build_without_pretrained(cascade())
    detector.train()
    detector.backbone.eval()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    modes = [module.training for module in detector.modules()]
    found = PyramidFamily(detector).pyramid(detector)
    assert found == PyramidSpec((32,) * 5, (4, 8, 16, 32, 64))
    assert [module.training for module in detector.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())


def dense(config, depth):
    """A narrow one-stage detector with the head of one of mmdet's configs."""
    model = load_config(config).model
    widths = [8, 16, 32, 64] if depth < 50 else [32, 64, 128, 256]
    model.backbone.update(depth=depth, base_channels=8, init_cfg=None)
    model.neck.update(in_channels=widths, out_channels=32)
    model.bbox_head.update(in_channels=32, feat_channels=32, num_classes=4)
    return model


@pytest.mark.parametrize(
    ("config", "more"),
    [
        ("mmdet::atss/atss_r50_fpn_1x_coco.py", {"loss_prediction_centerness"}),
        ("mmdet::free_anchor/retinanet_free_anchor_r50_fpn_1x_coco.py", set()),
        ("mmdet::pisa/pisa_retinanet_r50_fpn_1x_coco.py", set()),
        ("mmdet::fsaf/fsaf_r50_fpn_1x_coco.py", set()),
    ],
)
def test_heads_of_a_known_form_have_towers_and_predictions(save_teacher, config, more):
    model = under(dense(config, 18), save_teacher(dense(config, 50)))
    losses = model(**BATCH)
    assert model.notes == ()
    towers = {"loss_tower_cls", "loss_tower_reg", "loss_prediction_cls", "loss_prediction_reg"}
    assert distilled_terms(losses) == PYRAMID | towers | more
    model.train_step(BATCH, None)["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    head = model.student.bbox_head
    assert all(p.grad.abs().sum() > 0 for p in head.cls_convs.parameters())
    with pytest.raises(PlanError, match=r"distill\.assistant\.soft_labels: .* has no use for it"):
        under(dense(config, 18), save_teacher(dense(config, 50)), assistant={"soft_labels": True})


def test_what_is_said_to_be_exportable_is_what_cskd_deploy_exports():
    assert {name: set(heads) for name, heads in exportable().items()} == {
        name: set(heads) for name, heads in EXPORTABLE.items()
    }


@pytest.mark.parametrize(
    ("model", "note"),
    [
        (partial(dense, "mmdet::atss/atss_r50_fpn_1x_coco.py", 18), None),
        (partial(two_stage, "mmdet::faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py"), None),
        (
            cascade,
            "a CascadeRCNN with a CascadeRoIHead can be trained and distilled, but cskd-deploy cannot export it yet; ",
        ),
        (partial(dense, "mmdet::foveabox/fovea_r50_fpn_4x4_1x_coco.py", 18), "a FOVEA with a FoveaHead can be "),
    ],
)
def test_a_student_that_cannot_be_exported_is_named_with_what_can(model, note):
    found = export_note(model())
    assert found is None if note is None else found.startswith(note)
    assert note is None or "RetinaNet (RetinaHead, FreeAnchorRetinaHead, PISARetinaHead); FCOS (FCOSHead)" in found


def test_a_head_that_gives_other_targets_than_its_family_knows_is_refused(narrow_model, save_teacher, monkeypatch):
    monkeypatch.setattr(RetinaNetFamily, "targets", (*RetinaNetFamily.targets, "more"))
    model = under(narrow_model("RetinaNet"), save_teacher(narrow_model("RetinaNet", 50)))
    with pytest.raises(
        TapError, match=r"RetinaHead\.get_targets gives 6 things, expected 7 \(labels, .*assistant=None"
    ):
        model(**BATCH)


def test_a_head_without_what_its_family_reads_is_refused_by_the_name_of_that(narrow_model, save_teacher):
    student = build_without_pretrained(narrow_model("GFL"))
    del student.bbox_head.stacked_convs
    with pytest.raises(TapError, match="the bbox_head of this GFL, a GFLHead, has no stacked_convs"):
        GFLFamily(student).check(student)


def test_the_docs_show_the_family_as_it_is():
    page = (Path(__file__).parents[2] / "docs" / "adding_a_detector.md").read_text()
    assert f"```python\n{inspect.getsource(atss)}```" in page
