"""Whether a teacher suits a student, beyond what the distiller sees by itself; which of its classes serve."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

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


_DENSE_PREDICTORS = ("retina_cls", "conv_cls", "gfl_cls")  # RetinaNet, FCOS, GFL
_SHOWN = 5


def match_classes(
    student: Sequence[str], teacher: Sequence[str] | None, class_map: Mapping[str, str] | None
) -> tuple[int, ...] | None:
    """The index of the teacher's class that serves each of the student's.

    Args:
        student: the student's class names, in the order of its labels.
        teacher: the teacher's; None where nothing names them.
        class_map: student class -> teacher class; a class that it leaves out is matched by its own name.

    Returns:
        An index for each student class, or None where nothing is to be chosen: the lists are equal, or the teacher's
        names are unknown. In the latter case the caller still has to compare the numbers of classes.

    Raises:
        TrainError: the lists differ and there is no `class_map`; a class has no counterpart; a key of `class_map` is no
            class of the student; a `class_map` for a teacher whose names are unknown.
    """
    if teacher is None:
        if class_map is not None:
            raise TrainError(
                "distill.teacher.class_map is set, but neither the teacher's checkpoint nor its config names its "
                "classes: give the teacher's config with data.train.classes"
            )
        return None
    ours, theirs = tuple(student), tuple(teacher)
    if class_map is None:
        if ours == theirs:
            return None
        order = " in another order" if sorted(ours) == sorted(theirs) else ""
        raise TrainError(
            f"the student's classes are {_shortened(ours)}, the teacher's {_shortened(theirs)}{order}: set "
            "distill.teacher.class_map={STUDENT CLASS: TEACHER CLASS, ...}; classes of equal name need no entry, "
            "so that {} matches by name alone"
        )
    if strangers := [name for name in class_map if name not in ours]:
        raise TrainError(f"distill.teacher.class_map: the student has no class {_with_near(strangers, ours)}")
    wanted = [class_map.get(name, name) for name in ours]
    if missing := [name for name in wanted if name not in theirs]:
        raise TrainError(
            f"distill.teacher.class_map: the teacher has no class {_with_near(missing, theirs)}. Each of the student's "
            "classes needs one of the teacher's"
        )
    indices = tuple(theirs.index(name) for name in wanted)
    return None if indices == tuple(range(len(theirs))) else indices


def keep_classes(teacher: nn.Module, indices: Sequence[int]) -> None:
    """Cut a teacher's predictors down to some of its classes, in a new order; the teacher is changed.

    One-stage: rows of the class predictor, anchor after anchor. Two-stage: rows of `fc_cls`, of which the background
    stays the last, and four rows a class of `fc_reg` where boxes are predicted by class.

    Args:
        teacher: a stock mmdet RetinaNet, FCOS, GFL or FasterRCNN with its weights loaded.
        indices: the teacher's class of each new one; a class may serve twice.

    Raises:
        TrainError: a head of another kind.
    """
    head, predictor = _class_predictor(teacher)
    old, new = head.num_classes, len(indices)
    sigmoid = getattr(head, "use_sigmoid_cls", False)  # one-stage heads only; all others have a background class
    width = old if sigmoid else old + 1
    if predictor.weight.shape[0] % width:
        raise TrainError(
            f"the teacher's class predictor has {predictor.weight.shape[0]} outputs, no multiple of {width}: "
            "its classes cannot be mapped. Use a teacher with the student's classes"
        )
    kept = torch.tensor([*indices] if sigmoid else [*indices, old])
    _keep_rows(predictor, kept, width)
    regression = getattr(head, "fc_reg", None)
    if regression is not None and not head.reg_class_agnostic:
        rows = (torch.tensor([*indices]).unsqueeze(1) * 4 + torch.arange(4)).flatten()
        _keep_rows(regression, rows, 4 * old)
    head.num_classes = new
    if hasattr(head, "cls_out_channels"):
        head.cls_out_channels = len(kept)
    if names := getattr(teacher, "CLASSES", None):
        teacher.CLASSES = tuple(names[index] for index in indices)  # type: ignore[assignment]


def _class_predictor(detector: Any) -> tuple[Any, Any]:
    """The head that classifies, and its last layer."""
    two_stage = hasattr(detector, "roi_head")
    head = detector.roi_head.bbox_head if two_stage else detector.bbox_head
    names = ("fc_cls",) if two_stage else _DENSE_PREDICTORS
    for name in names:
        if hasattr(head, name):
            return head, getattr(head, name)
    raise TrainError(
        f"the classes of a {type(head).__name__} cannot be mapped: it has none of {', '.join(names)}. "
        "Use a teacher with the student's classes"
    )


def _keep_rows(layer: Any, kept: Tensor, width: int) -> None:
    """Keep some of each `width` consecutive outputs of a convolution or a linear layer."""
    groups = layer.weight.shape[0] // width
    rows = (torch.arange(groups).unsqueeze(1) * width + kept).flatten()
    for name in ("weight", "bias"):
        parameter = getattr(layer, name)
        if parameter is not None:
            chosen = parameter.detach()[rows.to(parameter.device)].clone()
            setattr(layer, name, nn.Parameter(chosen, requires_grad=parameter.requires_grad))
    size = "out_channels" if hasattr(layer, "out_channels") else "out_features"
    setattr(layer, size, len(rows))


def _shortened(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > _SHOWN else ""
    return f"({', '.join(names[:_SHOWN])}{more})"


def _with_near(missing: Sequence[str], known: Sequence[str]) -> str:
    """Each missing name with the known ones that resemble it."""
    described = []
    for name in missing[:_SHOWN]:
        near = difflib.get_close_matches(name, known, n=3)
        described.append(f"{name!r}" + (f" (near: {', '.join(near)})" if near else ""))
    more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    return f"{', '.join(described)}{more}; it has {_shortened(known)}"
