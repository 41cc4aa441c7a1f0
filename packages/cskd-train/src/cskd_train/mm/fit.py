"""Whether a teacher suits a student, beyond what the distiller sees by itself."""

from __future__ import annotations

from typing import Any

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


def check_fit(student: Any, teacher: Any) -> list[str]:
    """Refuse a teacher that cannot teach this student; gives remarks on what is compared all the same.

    Raises:
        TrainError: detectors of different families, a neck or head that their family does not read, another number of
            classes, a two-stage teacher that cannot sample.
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
    return _remarks(our_head, their_head)


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
