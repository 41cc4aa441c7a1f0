"""A student that starts from its teacher's neck and heads."""

from __future__ import annotations

import pytest
import torch

from cskd_train.mm.plain import build_without_pretrained
from cskd_train.mm.teacher import inherit


@pytest.fixture
def pair(narrow_model):
    """`pair(family)`: a ResNet-18 student and a ResNet-50 teacher whose every weight differs from the student's."""

    def build(family, student_classes=4):
        student = build_without_pretrained(narrow_model(family, 18, student_classes))
        teacher = build_without_pretrained(narrow_model(family, 50))
        with torch.no_grad():
            for value in teacher.state_dict().values():
                value.fill_(3)
        return student, teacher

    return build


def test_neck_and_heads_are_the_teachers_and_all_else_is_the_students_own(pair, family):
    student, teacher = pair(family)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    found = inherit(student, teacher)
    heads = ("rpn_head.", "roi_head.") if family == "FasterRCNN" else ("bbox_head.",)
    expected = {key for key in before if key.startswith(heads) or key.startswith("neck.fpn_convs.")}
    expected -= {line.split(": ")[0] for line in found.skipped}
    assert set(found.copied) == expected
    for key, value in student.state_dict().items():
        assert torch.equal(value, torch.full_like(value, 3) if key in expected else before[key]), key


def test_only_retinanets_convolution_on_the_backbone_has_another_shape(pair, family):
    found = inherit(*pair(family))
    p6 = "neck.fpn_convs.3.conv.weight: (32, 256, 3, 3) in the teacher, (32, 64, 3, 3) in the student"
    assert found.skipped == ((p6,) if family == "RetinaNet" else ())


def test_what_does_not_fit_is_named_with_both_shapes(pair):
    student, teacher = pair("FasterRCNN", student_classes=2)
    teacher.roi_head.bbox_head.extra = torch.nn.Linear(3, 5)
    text = str(inherit(student, teacher))
    assert "roi_head.bbox_head.fc_cls.weight: (5, 32) in the teacher, (3, 32) in the student" in text
    assert "roi_head.bbox_head.extra.bias: (5,) in the teacher, not in the student" in text
    assert ", 6 not\n" in text


def test_later_training_leaves_the_teacher_alone(pair):
    student, teacher = pair("GFL")
    inherit(student, teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(parameter.eq(3).all() for parameter in teacher.parameters())
