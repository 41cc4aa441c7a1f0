"""Whether a teacher suits a student, beyond what the distiller sees by itself."""

from __future__ import annotations

from typing import Any

import torch

from cskd_core.plan import DistillPlan
from cskd_train.errors import TrainError

_PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "RetinaNet": {"bbox_head": ("RetinaHead", "AscendRetinaHead")},
    "FCOS": {"bbox_head": ("FCOSHead",)},
    "GFL": {"bbox_head": ("GFLHead",)},
    "FasterRCNN": {
        "rpn_head": ("RPNHead",),
        "roi_head": ("StandardRoIHead", "DynamicRoIHead"),
        "roi_head.bbox_head": ("Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead"),
    },
}
"""The heads that each family reads. mmdet also puts others into detectors of these classes, with other layers, targets
or samplers: FreeAnchor's, PISA's and SABL's into a RetinaNet, for example."""


def check_fit(student: Any, teacher: Any, plan: DistillPlan | None = None) -> list[str]:
    """Refuse a teacher that cannot teach this student; gives notes on what is compared all the same.

    Raises:
        TrainError: detectors of different families, a neck or head that their family does not read, another number of
            classes, box deltas from other anchors or in other units that the plan compares, a two-stage teacher that
            cannot sample.
    """
    ours, theirs = type(student).__name__, type(teacher).__name__
    if ours != theirs:
        raise TrainError(
            f"the teacher is a {theirs}, the student a {ours}: both must be detectors of one family. "
            f"Take a {ours} as the teacher"
        )
    _check_parts("student", student)
    _check_parts("teacher", teacher)
    our_head, their_head = _class_head(student), _class_head(teacher)
    if our_head.num_classes != their_head.num_classes:
        raise TrainError(
            f"the student has {our_head.num_classes} classes and the teacher {their_head.num_classes}, and the "
            "teacher's names are unknown: name them in data.train.classes of the teacher's config, then say in "
            "distill.teacher.class_map which is which"
        )
    if ours == "FasterRCNN" and getattr(teacher.roi_head, "bbox_sampler", None) is None:
        raise TrainError(
            "the teacher's config has no model.train_cfg.rcnn: its RoIs are sampled as it was trained, so give its "
            "training config"
        )
    if plan is None or plan.prediction or plan.assistant:
        _check_deltas(student, teacher)
    return _remarks(our_head, their_head)


def _check_deltas(student: Any, teacher: Any) -> None:
    """Box deltas say the same only from the same anchors, in the same units."""
    modules = dict(student.named_modules()), dict(teacher.named_modules())
    instead = "Take the teacher's setting, or compare no predictions (distill.prediction=None, distill.assistant=None)"
    for path in _PARTS[type(student).__name__]:
        ours, theirs = (found.get(path) for found in modules)
        anchors = [
            getattr(getattr(head, "prior_generator", None), "base_anchors", None) or [] for head in (ours, theirs)
        ]
        levels = zip(*anchors, strict=False)  # another number of anchors is found by the number of channels
        if any(one.shape == other.shape and not torch.allclose(one, other) for one, other in levels):
            raise TrainError(f"{path} has other anchors in the teacher: its box deltas mean other boxes. {instead}")
        coders = [vars(getattr(head, "bbox_coder", None) or object) for head in (ours, theirs)]
        for setting in ("means", "stds"):
            units = [tuple(coder.get(setting, ())) for coder in coders]
            if units[0] != units[1]:
                raise TrainError(
                    f"{path}.bbox_coder.target_{setting} is {units[0]} in the student and {units[1]} in the teacher: "
                    f"their box deltas are in other units. {instead}"
                )


def _check_parts(role: str, detector: Any) -> None:
    """A part that is missing altogether is found as the distiller taps it, which names what is there instead."""
    modules = dict(detector.named_modules())
    for path, known in _PARTS[type(detector).__name__].items():
        if path in modules and type(modules[path]).__name__ not in known:
            raise TrainError(
                f"the {role} is a {type(detector).__name__} whose {path} is a {type(modules[path]).__name__}: "
                f"it cannot be distilled. Supported there: {', '.join(known)}"
            )
    if "neck" in modules and not hasattr(modules["neck"], "out_channels"):
        raise TrainError(
            f"the {role}'s neck is a {type(modules['neck']).__name__} that does not say how many channels it gives: "
            "it cannot be distilled. Take a single neck with out_channels, for example an FPN"
        )


def _remarks(student_head: Any, teacher_head: Any) -> list[str]:
    """What differs between two FCOS heads and is compared nevertheless (docs/algorithm.md 9.13)."""
    remarks = []
    if getattr(student_head, "centerness_on_reg", None) != getattr(teacher_head, "centerness_on_reg", None):
        towers = {True: "reg", False: "cls"}
        remarks.append(
            f"the student predicts centerness from its {towers[student_head.centerness_on_reg]} tower, the teacher "
            f"from its {towers[teacher_head.centerness_on_reg]} tower; the predictions are compared all the same"
        )
    if getattr(student_head, "norm_on_bbox", None) != getattr(teacher_head, "norm_on_bbox", None):
        units = {True: "strides", False: "pixels"}
        remarks.append(
            f"the teacher's box distances in {units[teacher_head.norm_on_bbox]} are converted to the student's "
            f"{units[student_head.norm_on_bbox]}"
        )
    return remarks


def _class_head(detector: Any) -> Any:
    return detector.roi_head.bbox_head if hasattr(detector, "roi_head") else detector.bbox_head
