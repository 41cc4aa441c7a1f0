"""Which of a teacher's classes serve a student's, and a teacher cut down to these."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cskd_core.taps import submodule
from cskd_train.errors import TrainError
from cskd_train.mm.families import FAMILIES
from cskd_train.mm.families.base import class_head

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
    of_student, of_teacher = tuple(student), tuple(teacher)
    if class_map is None:
        if of_student == of_teacher:
            return None
        order = " in another order" if sorted(of_student) == sorted(of_teacher) else ""
        raise TrainError(
            f"the student's classes are {_shortened(of_student)}, the teacher's {_shortened(of_teacher)}{order}: set "
            "distill.teacher.class_map={STUDENT CLASS: TEACHER CLASS, ...}; classes of equal name need no entry, "
            "so that {} matches by name alone"
        )
    if strangers := [name for name in class_map if name not in of_student]:
        raise TrainError(f"distill.teacher.class_map: the student has no class {_with_near(strangers, of_student)}")
    wanted = [class_map.get(name, name) for name in of_student]
    if missing := [name for name in wanted if name not in of_teacher]:
        raise TrainError(
            f"distill.teacher.class_map: the teacher has no class {_with_near(missing, of_teacher)}. Each of the "
            "student's classes needs one of the teacher's"
        )
    indices = tuple(of_teacher.index(name) for name in wanted)
    return None if indices == tuple(range(len(of_teacher))) else indices


def keep_classes(teacher: nn.Module, indices: Sequence[int]) -> None:
    """Cut a teacher's predictors down to some of its classes, in a new order; the teacher is changed.

    One-stage: rows of the class predictor, anchor after anchor. Two-stage: rows of `fc_cls`, of which the background
    stays the last, and four rows a class of `fc_reg` where boxes are predicted by class.

    Args:
        teacher: a stock mmdet detector of a family that names its classifier, with its weights loaded.
        indices: the teacher's class of each new one; a class may serve twice.

    Raises:
        TrainError: a detector of another kind.
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
    family = next((family for family in FAMILIES if family.reads(detector)), None)
    if family is None or family.classifier is None:
        raise TrainError(
            f"the classes of a {type(detector).__name__} with these heads cannot be mapped: its classifier is not "
            "known. Use a teacher with the student's classes, or compare no classes: distill.prediction=None, "
            "distill.assistant=None, distill.roi=None"
        )
    return class_head(detector), submodule(detector, family.classifier)


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
