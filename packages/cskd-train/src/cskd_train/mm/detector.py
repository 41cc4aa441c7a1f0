"""Build a student, and wrap it for distilled training without changing it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cskd_core.distiller import Distiller
from cskd_core.family import Batch
from cskd_core.plan import DistillPlan
from cskd_core.teacher import FrozenTeacher
from cskd_train.errors import TrainError
from cskd_train.files.heads import head_kind
from cskd_train.mm.class_map import keep_classes, match_classes
from cskd_train.mm.families import family_of_pair
from cskd_train.mm.folding import folded
from cskd_train.mm.normalization import Normalization, renormalize
from cskd_train.mm.plain import build_detector, init_weights
from cskd_train.mm.teacher import Teacher, build_teacher, inherit


def build_student(cfg: Any, note: Callable[[str], None] = lambda line: None) -> nn.Module:
    """The plain mmdet detector of `cfg.model`, with its weights initialised as the config says.

    Args:
        cfg: of the run.
        note: called with one line for each part with pretrained weights: what was taken from which file.

    Raises:
        TrainError: the model cannot be built or initialised, or its pretrained weights cannot be had; it learns masks,
            or finds no boxes of classes.
    """
    model = cfg["model"]
    student = build_detector(model)
    if getattr(student, "with_mask", False):
        raise TrainError(
            f"a {type(student).__name__} learns masks, and data sets here have boxes alone: it can teach, but not be a "
            "student. Take the detector of the same kind without masks, such as FasterRCNN or CascadeRCNN"
        )
    refuse_without_boxes(student)
    try:
        init_weights(student, model, note)
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise TrainError(f"the config's model cannot be initialised as an init_cfg in it says: {error}") from error
    return student


def refuse_without_boxes(model: nn.Module) -> None:
    """Refuse a model of mmdet that finds something else than boxes of classes.

    Raises:
        TrainError: its class, and what to take.
    """
    if not getattr(model, "with_bbox", True):
        raise TrainError(
            f"a {type(model).__name__} finds no boxes of classes: take a detector that does, such as FasterRCNN"
        )


def build_distilled(student: nn.Module, cfg: Any, device: str | torch.device) -> DistilledDetector:
    """The student under its distiller, as the config's `distill` block says.

    With `init_student` the student's neck and heads are overwritten with the teacher's.

    Raises:
        PlanError: the block does not fit the schema, or the student's family.
        TrainError: the teacher cannot be had, or does not suit the student.
        TapError: one of them has no pyramid that could be compared.
        ShapeError: strides, towers or predictions of the two cannot be compared.
    """
    plan = DistillPlan.parse(cfg.distill)
    teacher = build_teacher(plan.teacher)
    family, notes = family_of_pair(student, teacher.model, plan)
    classes = getattr(student, "CLASSES", None)
    compares_classes = family.compares_classes(student, plan)
    if compares_classes:
        chosen = match_classes(classes, teacher.classes, plan.teacher.class_map) if classes else None
        if chosen is not None:
            keep_classes(teacher.model, chosen)
    elif plan.teacher.class_map is not None:
        raise TrainError("distill.teacher.class_map is set, but no classes are compared: take it out")
    notes = [*teacher.notes, *notes, *family.check_pair(student, teacher.model, plan)]
    if plan.init_student:
        notes.append(str(inherit(student, teacher.model)))
    normalizations = None
    own, other = Normalization.of_config(cfg), teacher.normalization
    if plan.teacher.normalization == "own" and own != other:
        if own and other:
            normalizations = (own, other)
            notes.append(f"the teacher sees its own normalisation of the images: {other}")
        else:
            notes.append(
                f"the {'teacher' if own else 'student'}'s config has no pipeline, so how it normalises images is not "
                "known: the teacher sees them as the student does"
            )
    distiller = Distiller(student, teacher.model, family, plan)
    notes += distiller.notes
    # After all that is refused, and that goes by the keys of the teacher's own weights.
    teacher = replace(teacher, model=folded(teacher.model, family))
    distiller.teacher = FrozenTeacher(teacher.model, family)
    same_classes = compares_classes or (classes is not None and classes == teacher.classes)
    return DistilledDetector(student, distiller, normalizations, notes, teacher, same_classes).to(device)


class DistilledDetector(nn.Module):
    """A stock student and its distiller, trained together as one mmdet detector is.

    Args:
        student: a stock mmdet detector; it runs its own training forward, watched.
        distiller: built on this very student.
        normalizations: of the student's images and of the teacher's; None gives both the same tensor.
        notes: for the user, on how the two were fitted together.
        teacher: what the distiller's teacher was built from; None where it was not built from files.
        same_classes: whether the teacher's labels mean what the student's do; where no classes are compared they need
            not.
    """

    def __init__(
        self,
        student: nn.Module,
        distiller: Distiller,
        normalizations: tuple[Normalization, Normalization] | None = None,
        notes: Sequence[str] = (),
        teacher: Teacher | None = None,
        same_classes: bool = True,
    ) -> None:
        super().__init__()
        self.student = student
        self.distiller = distiller
        self.notes = tuple(notes)
        self.teacher = teacher
        self.same_classes = same_classes
        self._normalizations = normalizations

    def __getattr__(self, name: str) -> Any:
        """What the pair has not is the student's: hooks that are written for a detector find its parts and methods."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "student":
                raise
            return getattr(self.student, name)

    def under_own_names(self) -> nn.Module:
        """The same parameters in the same order, those of the student by the names that it has alone."""
        return _OwnNames(self.student, self.distiller)

    def taught_by(self) -> TeacherAsDetector:
        """The teacher as a detector of its own, on images as the student's pipeline gives them."""
        return TeacherAsDetector(self.distiller.teacher.detector, self._normalizations)

    def compared_pyramids(self, img: Tensor, img_metas: list[dict[str, Any]]) -> dict[int, tuple[Tensor, Tensor]]:
        """By stride, the adapted student's and the teacher's features (B, C, H, W) of each level that is compared.

        Args:
            img: (B, 3, H, W), in the normalisation of the student's pipeline.
        """
        shapes = [meta["img_shape"][:2] for meta in img_metas]
        seen = renormalize(img, *self._normalizations, shapes) if self._normalizations else img
        return self.distiller.compared_pyramids(img, seen)

    def forward(
        self, img: Tensor, img_metas: list[dict[str, Any]], own_weight: float = 1, **targets: Any
    ) -> dict[str, Any]:
        """The student's own losses, times `own_weight`, and the distillation terms, each named with `loss` in it.

        Under autocast, losses and terms are computed in float32 from what the layers gave in half precision.
        """
        with float32_heads(self.student), self.distiller.watch() as recording:
            losses: dict[str, Any] = self.student(img=img, img_metas=img_metas, return_loss=True, **targets)
        shapes = [meta["img_shape"][:2] for meta in img_metas]
        batch = Batch(
            images=renormalize(img, *self._normalizations, shapes) if self._normalizations else img,
            boxes=targets["gt_bboxes"],
            image_shapes=shapes,
            labels=targets["gt_labels"],
            details=img_metas,
        )
        terms = self.distiller(recording, batch)
        if own_weight != 1:
            losses = weighted(losses, own_weight)
        return {**losses, **{f"loss_{name}": value for name, value in terms.items()}}

    def train_step(self, data: Mapping[str, Any], optimizer: Any) -> dict[str, Any]:
        """As `mmdet.models.detectors.BaseDetector.train_step`: the total loss, its parts, and the batch size."""
        loss, log_vars = self.student._parse_losses(self(**data))  # type: ignore[operator]
        return {"loss": loss, "log_vars": log_vars, "num_samples": len(data["img_metas"])}


def weighted(losses: Mapping[str, Any], weight: float) -> dict[str, Any]:
    """A detector's losses times a weight: tensors or lists of them. What has no `loss` in its name stays as it is."""
    return {
        name: value
        if "loss" not in name
        else value * weight
        if isinstance(value, Tensor)
        else [one * weight for one in value]
        for name, value in losses.items()
    }


class _OwnNames(nn.Module):
    """The parts of a student, and its distiller beside them; what else it is asked for is the student's."""

    def __init__(self, student: nn.Module, distiller: nn.Module) -> None:
        super().__init__()
        for name, parameter in student.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, part in (*student.named_children(), ("distiller", distiller)):
            self.add_module(name, part)
        self.__dict__["_whole"] = student  # last, as names must be free, and no part itself

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_whole" not in self.__dict__:
                raise
            return getattr(self.__dict__["_whole"], name)


class TeacherAsDetector(nn.Module):
    """A teacher as the distiller has it, classes mapped and images normalised for it, in the test form of a detector.

    Args:
        detector: a stock mmdet detector; it stays as it is.
        normalizations: of the images that come in, and of those that the detector is given; None leaves them.
    """

    def __init__(self, detector: nn.Module, normalizations: tuple[Normalization, Normalization] | None = None) -> None:
        super().__init__()
        self.detector = detector
        self._normalizations = normalizations
        self.eval()

    @property
    def can_detect(self) -> bool:
        """Whether the config of the detector says how boxes are made of its outputs: teaching needs no such thing."""
        return bool(getattr(self.detector, "test_cfg", None))

    def forward(self, img: list[Tensor], img_metas: list[list[dict[str, Any]]], **arguments: Any) -> Any:
        """As the forward of `mmdet.models.detectors.BaseDetector` in test mode.

        Args:
            img: (B, 3, H, W) of each view of the images, in the normalisation of the student's pipeline.
            img_metas: of each view, of each image.
        """
        if self._normalizations:
            views = zip(img, img_metas, strict=True)
            img = [
                renormalize(view, *self._normalizations, [m["img_shape"][:2] for m in metas]) for view, metas in views
            ]
        return self.detector(img=img, img_metas=img_metas, **arguments)


METHODS = ("loss", "get_bboxes", "refine_bboxes", "regress_by_class")
_HALF = (torch.float16, torch.bfloat16)


@contextmanager
def float32_heads(detector: nn.Module) -> Iterator[None]:
    """While the context lasts, heads compute losses and boxes outside of autocast, on float32 predictions.

    mmdet's heads are written for float32: under autocast they get predictions in half precision, in which sigmoids,
    normalisers and box coordinates are rounded to 8 bits (bfloat16) or 11 (float16), and the integral of GFL's box
    distributions, a matrix product, is rounded whatever it gets. Convolutions and linear layers stay under autocast.
    Without autocast nothing changes. Afterwards the detector is as it was.

    Args:
        detector: a stock mmdet detector; `METHODS` of its dense, proposal and box heads are covered, and of the stages
            that such a head is made of, which refine boxes one after the other.
    """
    heads = [module for path, module in detector.named_modules() if _is_of_head(path)]
    shadowed = [(head, name, head.__dict__.get(name)) for head in heads for name in METHODS if hasattr(head, name)]
    for head, name, _ in shadowed:
        # An instance attribute shadows the class's method for as long as it is there.
        head.__dict__[name] = _in_float32(getattr(head, name))
    try:
        yield
    finally:
        for head, name, before in shadowed:
            if before is None:
                del head.__dict__[name]
            else:
                head.__dict__[name] = before


def _is_of_head(path: str) -> bool:
    parts = path.split(".")
    return any(head_kind(".".join(parts[: end + 1])) in ("bbox_head", "rpn_head") for end in range(len(parts)))


def _in_float32(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def computed(*arguments: Any, **keywords: Any) -> Any:
        device = _device_of((arguments, keywords))
        if device is None or not torch.is_autocast_enabled(device):
            return method(*arguments, **keywords)
        with torch.autocast(device, enabled=False):
            return method(*_cast(arguments), **_cast(keywords))

    return computed


def _device_of(value: Any) -> str | None:
    """The device type of the first tensor inside nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return value.device.type
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return next((device for item in items if (device := _device_of(item))), None)


def _cast(value: Any) -> Any:
    """Tensors of half precision inside nested lists, tuples and dicts to float32."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in _HALF else value
    if type(value) in (list, tuple):
        return type(value)(_cast(item) for item in value)
    if type(value) is dict:
        return {key: _cast(item) for key, item in value.items()}
    return value
