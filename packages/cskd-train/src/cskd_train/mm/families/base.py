"""What all families of mmdet's detectors say of themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from cskd_core.family import Family
from cskd_core.plan import DistillPlan
from cskd_core.taps import submodule
from cskd_train.errors import TrainError


class DetectorFamily(Family):
    """A kind of mmdet detector, by the classes of its detector and of its heads.

    Attributes:
        detectors: mmdet's detector classes.
        heads: path of each head that is read -> its classes. mmdet puts others into detectors of the same classes, with
            other layers, targets or samplers: FreeAnchor's, PISA's and SABL's into a RetinaNet, for example.
        classifier: path of the layer with a row, or one for each anchor, a class; None where its rows are not known.
        exported: detector class -> classes of the head that tells classes apart, with which `cskd-deploy export` can
            write it.
    """

    detectors: ClassVar[tuple[str, ...]] = ()
    heads: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    classifier: ClassVar[str | None] = None
    exported: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    init_student = True

    def __init__(self, student: Any) -> None:
        """For distilling into a student."""

    @classmethod
    def reads(cls, detector: Any) -> bool:
        """Whether a detector is of this family: its class, its heads, and one neck that says its channels."""
        modules = dict(detector.named_modules())
        return (
            type(detector).__name__ in cls.detectors
            and isinstance(getattr(modules.get("neck"), "out_channels", None), int)
            and all(path in modules and type(modules[path]).__name__ in known for path, known in cls.heads.items())
        )

    def check(self, detector: Any) -> None:
        for path in ("neck", *self.heads):
            submodule(detector, path)

    def check_pair(self, student: Any, teacher: Any, plan: DistillPlan) -> list[str]:
        """Refuse what cannot be compared of two detectors of this family, before the distiller is built.

        Returns:
            notes on what is compared all the same.

        Raises:
            TrainError: their classes or box deltas mean other things, and the plan compares them.
        """
        if self.compares_classes(student, plan):
            self._check_classes(student, teacher)
        if {"prediction", "assistant"} & {*self.compared(student, plan)}:
            for path in self.heads:
                check_deltas(path, submodule(student, path), submodule(teacher, path))
        return []

    def compares_classes(self, student: Any, plan: DistillPlan) -> bool:
        """Whether a plan compares what is said of classes."""
        return bool({"prediction", "assistant", "roi"} & {*self.compared(student, plan)})

    def _check_classes(self, student: Any, teacher: Any) -> None:
        of_student, of_teacher = (class_head(detector).num_classes for detector in (student, teacher))
        if of_student != of_teacher:
            raise TrainError(
                f"the student has {of_student} classes and the teacher {of_teacher}, and the teacher's names are "
                "unknown: name them in data.train.classes of the teacher's config, then say in "
                "distill.teacher.class_map which is which"
            )


def class_head(detector: Any) -> Any:
    """The head that tells classes apart."""
    return detector.roi_head.bbox_head if hasattr(detector, "roi_head") else detector.bbox_head


def check_deltas(path: str, student_head: Any, teacher_head: Any) -> None:
    """Box deltas say the same only from the same anchors, in the same units.

    Raises:
        TrainError: they do not.
    """
    instead = "Take the teacher's setting, or compare no predictions (distill.prediction=None, distill.assistant=None)"
    heads = student_head, teacher_head
    anchors = [getattr(getattr(head, "prior_generator", None), "base_anchors", None) or [] for head in heads]
    levels = zip(*anchors, strict=False)  # another number of anchors is found by the number of channels
    if any(one.shape == other.shape and not torch.allclose(one, other) for one, other in levels):
        raise TrainError(f"{path} has other anchors in the teacher: its box deltas mean other boxes. {instead}")
    coders = [vars(getattr(head, "bbox_coder", None) or object) for head in heads]
    for setting in ("means", "stds"):
        units = [tuple(coder.get(setting, ())) for coder in coders]
        if units[0] != units[1]:
            raise TrainError(
                f"{path}.bbox_coder.target_{setting} is {units[0]} in the student and {units[1]} in the teacher: "
                f"their box deltas are in other units. {instead}"
            )


def strides_of(head: Any) -> tuple[int, ...]:
    """The stride of each level; mmdet keeps (width, height) pairs."""
    return tuple(int(stride[0]) for stride in head.prior_generator.strides)
