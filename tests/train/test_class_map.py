"""Teachers with other classes than their students: what is matched, what is refused, what is cut away."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from cskd_train.errors import TrainError
from cskd_train.mm.class_map import keep_classes, match_classes
from cskd_train.mm.plain import build_without_pretrained

VEHICLES = ("car", "bus", "truck", "bicycle")


def refused(*arguments):
    with pytest.raises(TrainError) as error:
        match_classes(*arguments)
    return str(error.value)


def test_equal_lists_need_no_choice():
    assert match_classes(VEHICLES, list(VEHICLES), None) is None
    assert match_classes(list(VEHICLES), VEHICLES, {}) is None


def test_a_teacher_that_names_no_classes_is_taken_as_it_is():
    assert match_classes(VEHICLES, None, None) is None
    assert "neither the teacher's checkpoint nor its config names its classes" in refused(VEHICLES, None, {})


def test_an_empty_map_matches_by_name():
    assert match_classes(("truck", "car"), VEHICLES, {}) == (2, 0)
    assert match_classes(VEHICLES[:2], VEHICLES, {}) == (0, 1)


def test_a_map_goes_before_the_name_and_the_rest_is_matched_by_name():
    assert match_classes(("lorry", "car", "bus"), VEHICLES, {"lorry": "truck", "car": "bus"}) == (2, 1, 1)


def test_equal_lists_can_still_be_mapped():
    assert match_classes(("car", "bus"), ("car", "bus"), {"car": "bus", "bus": "car"}) == (1, 0)


def test_other_classes_are_refused_without_a_map():
    message = refused([f"part {number}" for number in range(9)], VEHICLES, None)
    assert "student's classes are (part 0, part 1, part 2, part 3, part 4, ... (9 in all))" in message
    assert "the teacher's (car, bus, truck, bicycle): set distill.teacher.class_map={" in message
    assert "{} matches by name alone" in message


def test_another_order_is_refused_without_a_map():
    assert "(car, bus), the teacher's (bus, car) in another order" in refused(("car", "bus"), ("bus", "car"), None)


def test_a_class_without_a_counterpart_is_named_with_near_names():
    message = refused(("bicycles", "car", "moon"), VEHICLES, {"car": "cars"})
    assert (
        "the teacher has no class 'bicycles' (near: bicycle), 'cars' (near: car), 'moon'; it has (car, bus" in message
    )


def test_a_map_of_a_class_that_the_student_lacks_is_refused():
    assert "the student has no class 'cra' (near: car)" in refused(("car",), VEHICLES, {"cra": "car"})


def random_detector(model):
    torch.manual_seed(0)
    detector = build_without_pretrained(model)
    with torch.no_grad():
        for name, parameter in detector.named_parameters():
            if "_cls" in name or "fc_reg" in name:
                parameter.normal_()
    detector.CLASSES = VEHICLES
    return detector.eval().requires_grad_(False)


@pytest.mark.parametrize("indices", [(2, 0), (1, 1, 3, 0, 2), (3,)])
def test_what_is_kept_predicts_as_before_in_the_new_order(narrow_model, family, indices):
    whole = random_detector(narrow_model(family))
    cut = copy.deepcopy(whole)
    keep_classes(cut, indices)
    chosen = torch.tensor(indices)
    generator = torch.Generator().manual_seed(1)
    if family == "FasterRCNN":
        rois = torch.randn(6, 32, 7, 7, generator=generator)
        logits, deltas = whole.roi_head.bbox_head(rois)
        kept_logits, kept_deltas = cut.roi_head.bbox_head(rois)
        torch.testing.assert_close(kept_logits, torch.cat([logits[:, chosen], logits[:, -1:]], 1))
        torch.testing.assert_close(kept_deltas, deltas.reshape(6, 4, 4)[:, chosen].flatten(1))
    else:
        pyramid = [torch.randn(2, 32, size, size, generator=generator) for size in (8, 4, 2, 1, 1)]
        (logits, *others), (kept_logits, *kept_others) = whole.bbox_head(pyramid), cut.bbox_head(pyramid)
        for before, after in zip(logits, kept_logits, strict=True):
            by_anchor = before.unflatten(1, (-1, 4))  # (B, A, C, H, W): mmdet reads A * C channels anchor by anchor
            torch.testing.assert_close(after, by_anchor[:, :, chosen].flatten(1, 2))
        torch.testing.assert_close(others, kept_others)


def test_a_cut_detector_still_detects_and_knows_its_classes(narrow_model, family):
    detector = random_detector(narrow_model(family))
    meta = {"img_shape": (160, 90, 3), "ori_shape": (160, 90, 3), "scale_factor": 1.0, "flip": False}
    image = {"img": [torch.randn(1, 3, 160, 96)], "img_metas": [[meta]], "return_loss": False}
    test = detector.test_cfg.rcnn if family == "FasterRCNN" else detector.test_cfg
    test.update(
        nms_pre=10_000, max_per_img=10_000, nms={"type": "nms", "iou_threshold": 1.1}
    )  # every box of every class
    (whole,) = detector(**image)
    keep_classes(detector, (2, 0, 2))
    head = detector.roi_head.bbox_head if family == "FasterRCNN" else detector.bbox_head
    assert detector.CLASSES == ("truck", "car", "truck")
    assert head.num_classes == 3
    assert family == "FasterRCNN" or head.cls_out_channels == 3
    assert not any(parameter.requires_grad for parameter in detector.parameters())
    (boxes,) = detector(**image)
    found, expected = ([np.array(sorted(map(tuple, one))) for one in by_class] for by_class in (boxes, whole))
    assert len(found) == 3
    assert len(found[0]) > 3
    np.testing.assert_array_equal(found[0], found[2])
    if family != "FasterRCNN":  # whose scores are a softmax over other classes now
        for kept, before in zip(found, (2, 0, 2), strict=True):
            np.testing.assert_allclose(kept, expected[before], rtol=1e-4, atol=1e-3)


def test_boxes_that_all_classes_share_stay(narrow_model):
    model = narrow_model("FasterRCNN")
    model.roi_head.bbox_head.reg_class_agnostic = True
    detector = build_without_pretrained(model)
    before = detector.roi_head.bbox_head.fc_reg.weight.clone()
    keep_classes(detector, (1, 0))
    assert torch.equal(detector.roi_head.bbox_head.fc_reg.weight, before)


def test_a_head_of_another_kind_is_refused(narrow_model):
    detector = build_without_pretrained(narrow_model("RetinaNet"))
    detector.bbox_head = torch.nn.Linear(1, 1)
    with pytest.raises(TrainError, match="the classes of a RetinaNet with these heads cannot be mapped"):
        keep_classes(detector, (0,))
