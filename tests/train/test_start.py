"""A detector that starts from another's checkpoint: every row of its classifier, and what is taken of the rest."""

from __future__ import annotations

import pytest
import torch

from cskd_train.errors import TrainError
from cskd_train.files.checkpoints import Checkpoint
from cskd_train.mm.plain import build_without_pretrained
from cskd_train.mm.start import Fit

SHAPES = ("circle", "ring", "square", "triangle", "star", "cross")
AQUARIUM = ("fish", "jellyfish", "penguin", "puffin", "shark", "starfish", "stingray")
BCCD = ("RBC", "WBC", "Platelets")
CARDS = ("nine", "ten", "jack", "queen", "king", "ace")
PREDICTORS = {
    "RetinaNet": ["bbox_head.retina_cls"],
    "FCOS": ["bbox_head.conv_cls"],
    "GFL": ["bbox_head.gfl_cls"],
    "FasterRCNN": ["roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg"],
}
ANCHORS = {"RetinaNet": 9, "FCOS": 1, "GFL": 1}


def detector(model, seed):
    """A detector in which every number is its own."""
    torch.manual_seed(seed)
    made = build_without_pretrained(model)
    with torch.no_grad():
        for value in made.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape))
    return made


def checkpoint_of(model, classes, path="old.pth", **more):
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    return Checkpoint(weights | more, {}, tuple(classes), {}, {}, path)


@pytest.fixture
def started(narrow_model):
    """`started(family, old classes, new classes)`: weights of the file, of the detector before and after, and Start."""

    def start(family, stored, classes, names=None, known=(), **options):
        old = detector(narrow_model(family, classes=len(stored), **options), 1)
        new = detector(narrow_model(family, classes=len(classes)), 2)
        before = {key: value.clone() for key, value in new.state_dict().items()}
        checkpoint = checkpoint_of(old, stored if names is None else names)
        start = Fit(new, checkpoint, classes, known).load(new)
        return checkpoint.state_dict, before, new.state_dict(), start

    return start


def row_of(family, layer, classes, name, anchor):
    """The rows of a class in a predictor, by the layout of mmdet's heads, written out."""
    index = classes.index(name) if name != "background" else len(classes)
    if layer.endswith("fc_reg"):
        return slice(4 * index, 4 * index + 4)
    return anchor * len(classes) + index


def check_rows(family, found, stored, classes, shared):
    """Every row of every predictor: of a shared class the file's, of any other as it was."""
    file, before, after = found
    seen = 0
    for layer in PREDICTORS[family]:
        background = ["background"] if layer.endswith("fc_cls") else []
        for key in (f"{layer}.weight", f"{layer}.bias"):
            for anchor in range(ANCHORS.get(family, 1)):
                for name in [*classes, *background]:
                    new = row_of(family, layer, classes, name, anchor)
                    kept = name in shared or (name == "background" and bool(shared))
                    source, row = (file, row_of(family, layer, stored, name, anchor)) if kept else (before, new)
                    assert torch.equal(after[key][new], source[key][row]), (key, anchor, name)
                    seen += after[key][new].shape[0] if isinstance(new, slice) else 1
    assert seen == sum(after[f"{layer}.{leaf}"].shape[0] for layer in PREDICTORS[family] for leaf in ("weight", "bias"))


ONE_SHARED = ("ace", "triangle", "jack")
REORDERED = ("cross", "circle", "queen", "star", "square")


@pytest.mark.parametrize(
    ("classes", "shared"),
    [
        (AQUARIUM, ()),
        (BCCD, ()),
        (CARDS, ()),
        (ONE_SHARED, ("triangle",)),
        (REORDERED, ("cross", "circle", "star", "square")),
        (SHAPES, SHAPES),
    ],
    ids=["aquarium, 7", "bccd, 3", "cards, 6 other names", "one shared name", "in another order", "the same"],
)
def test_every_row_of_a_classifier_is_kept_by_the_name_of_its_class(family, started, classes, shared):
    *found, start = started(family, SHAPES, classes)
    check_rows(family, found, SHAPES, classes, shared)
    assert start.classes_kept == [name for name in classes if name in shared]
    assert start.classes_fresh == [name for name in classes if name not in shared]
    said = f"rows of {len(shared)} of {len(classes)} classes kept"
    assert said in str(start)
    if not shared:
        assert f"{said}: the file's are circle, ring, square, triangle and 2 more; " in str(start)


def test_all_other_tensors_are_the_files(family, started):
    file, _, after, start = started(family, SHAPES, CARDS)
    layers = {f"{layer}.{leaf}" for layer in PREDICTORS[family] for leaf in ("weight", "bias")}
    assert [key for key in after if key not in layers and not torch.equal(after[key], file[key])] == []
    assert set(start.fresh) == set(PREDICTORS[family])
    assert start.left_out == {}
    counted = [key for key in after if not key.endswith("num_batches_tracked")]
    assert (start.taken, start.tensors) == (len(counted) - len(layers), len(counted))


def test_the_same_number_of_classes_without_names_keeps_no_row(family, started):
    *found, start = started(family, SHAPES, SHAPES, names=())
    check_rows(family, found, SHAPES, SHAPES, ())
    assert "rows of 0 of 6 classes kept: the file names no classes" in str(start)


def test_names_that_are_known_from_elsewhere_serve_and_are_said(started):
    *found, start = started("GFL", SHAPES, ("star", "ace"), names=(), known=SHAPES)
    check_rows("GFL", found, SHAPES, ("star", "ace"), ("star",))
    assert "kept by name (star), fresh for ace (the file names none; mmdet's zoo says COCO)" in str(start)


@pytest.mark.parametrize("names", [SHAPES[:5], CARDS[:2] + SHAPES])
def test_a_classifier_with_another_number_of_rows_than_names_is_not_taken(family, started, names):
    *found, start = started(family, SHAPES, SHAPES, names=names)
    check_rows(family, found, SHAPES, SHAPES, ())
    assert f"for its {len(names)} classes" in start.rows


def test_a_classifier_of_other_anchors_is_not_taken(narrow_model):
    model = narrow_model("RetinaNet", classes=6)
    new = detector(model, 2)
    model.bbox_head.anchor_generator.scales_per_octave = 2
    old = detector(model, 1)
    before = new.bbox_head.retina_cls.weight.clone()
    start = Fit(new, checkpoint_of(old, SHAPES), SHAPES).load(new)
    assert torch.equal(new.bbox_head.retina_cls.weight, before)
    assert start.fresh["bbox_head.retina_cls"] == "36 rows in the file, expected 9 x 6 for its 6 classes"
    assert "24 x 32 x 3 x 3 in the file, 36 x 32 x 3 x 3 here" in start.fresh["bbox_head.retina_reg"]


def test_boxes_by_class_and_boxes_for_all_are_not_mixed(narrow_model):
    model = narrow_model("FasterRCNN", classes=6)
    new = detector(model, 2)
    model.roi_head.bbox_head.reg_class_agnostic = True
    for one, other, why in (
        (new, detector(model, 1), "4 rows in the file"),
        (detector(model, 3), new, "24 x 32 in the"),
    ):
        before = one.roi_head.bbox_head.fc_reg.weight.clone()
        start = Fit(one, checkpoint_of(other, SHAPES), SHAPES).load(one)
        assert torch.equal(one.roi_head.bbox_head.fc_reg.weight, before)
        assert why in start.fresh["roi_head.bbox_head.fc_reg"]
        assert start.classes_kept == list(SHAPES)


def test_half_precision_in_a_file_becomes_the_detectors(narrow_model):
    old, new = (detector(narrow_model("FCOS", classes=3), seed) for seed in (1, 2))
    checkpoint = checkpoint_of(old.half(), ("a", "b", "c"))
    Fit(new, checkpoint, ("b", "d", "a")).load(new)
    assert new.bbox_head.conv_cls.weight.dtype == torch.float32
    assert torch.equal(new.bbox_head.conv_cls.weight[0], checkpoint.state_dict["bbox_head.conv_cls.weight"][1].float())
    assert torch.equal(new.backbone.conv1.weight, checkpoint.state_dict["backbone.conv1.weight"].float())


def test_a_neck_of_another_width_begins_afresh_and_is_named(narrow_model):
    model = narrow_model("RetinaNet", classes=6)
    old = detector(model, 1)
    model.neck.out_channels = model.bbox_head.in_channels = 24
    new = detector(model, 2)
    start = Fit(new, checkpoint_of(old, SHAPES), SHAPES).load(new)
    assert torch.equal(new.backbone.layer4[1].conv2.weight, old.backbone.layer4[1].conv2.weight)
    assert "weight 32 x 8 x 1 x 1 in the file, 24 x 8 x 1 x 1 here" in start.fresh["neck.lateral_convs.0"] or (
        "weight 32 x 16 x 1 x 1 in the file, 24 x 16 x 1 x 1 here" in start.fresh["neck.lateral_convs.0"]
    )
    assert "bbox_head.cls_convs.0" in start.fresh
    assert "bbox_head.cls_convs.1" not in start.fresh
    assert "parts fresh: neck.lateral_convs.0 (weight " in str(start)


def test_of_a_deeper_backbone_of_the_same_blocks_the_common_ones_are_taken(narrow_model):
    old, new = (detector(narrow_model("RetinaNet", depth=depth, classes=6), depth) for depth in (50, 101))
    before = new.backbone.layer3[6].conv1.weight.clone()
    fit = Fit(new, checkpoint_of(old, SHAPES), SHAPES)
    assert not fit.backbone_is_whole
    start = fit.load(new)
    assert torch.equal(new.backbone.layer3[5].conv1.weight, old.backbone.layer3[5].conv1.weight)
    assert torch.equal(new.backbone.layer3[6].conv1.weight, before)
    assert start.fresh["backbone.layer3.6"] == "not in the file"
    assert sum(part.startswith("backbone.") for part in start.fresh) == 17


@pytest.mark.parametrize(("student_depth", "stored_depth"), [(18, 50), (50, 18)])
def test_a_backbone_of_other_blocks_is_refused_though_some_shapes_agree(
    narrow_model, family, student_depth, stored_depth
):
    old, new = (detector(narrow_model(family, depth=depth), depth) for depth in (stored_depth, student_depth))
    expected = new.state_dict()
    assert any(
        key.startswith("backbone.layer") and value.dim() == 4 and expected[key].shape == value.shape
        for key, value in old.state_dict().items()
        if key in expected
    )
    before = {key: value.clone() for key, value in expected.items()}
    with pytest.raises(
        TrainError, match=r"load_from old\.pth: nothing of the backbone of this \w+ fits \(backbone\.la"
    ):
        Fit(new, checkpoint_of(old, "abcd"), "abcd")
    assert all(torch.equal(value, before[key]) for key, value in new.state_dict().items())


def test_a_head_of_another_family_begins_afresh_and_the_files_is_left_out(narrow_model):
    old, new = (detector(narrow_model(family, classes=6), 3) for family in ("FCOS", "RetinaNet"))
    start = Fit(new, checkpoint_of(old, SHAPES), SHAPES).load(new)
    assert "bbox_head.retina_cls" in start.fresh
    assert start.left_out["bbox_head.conv_cls"] == "not in this detector"
    assert "rows of 0 of 6 classes kept: bbox_head.retina_cls: not in the file" in str(start)
    assert start.classes_kept == []


@pytest.mark.parametrize(("classes", "fresh"), [(SHAPES, False), (CARDS, True)])
def test_a_head_whose_classifier_is_not_known_is_taken_for_the_same_classes_only(narrow_model, classes, fresh):
    old, new = (detector(narrow_model("FCOS", classes=6), seed) for seed in (1, 2))
    for one in (old, new):
        one.bbox_head.predict_what = one.bbox_head.conv_cls
        del one.bbox_head.conv_cls
    start = Fit(new, checkpoint_of(old, SHAPES), classes).load(new)
    assert ("bbox_head.predict_what" in start.fresh) is fresh
    assert start.rows == ""
    assert torch.equal(new.bbox_head.predict_what.weight, old.bbox_head.predict_what.weight) is not fresh
