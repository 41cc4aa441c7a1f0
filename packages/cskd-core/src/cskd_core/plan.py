"""The typed recipe of a distillation: a closed schema, checked before anything is built (docs/algorithm.md 8.3, 9)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from cskd_core.errors import PlanError
from cskd_core.regions import PUBLISHED as AS_PUBLISHED
from cskd_core.regions import RegionOptions
from cskd_core.schema import WeightPair, parse_dataclass, settle
from cskd_core.similarity import PUBLISHED, LossOptions


@dataclass(frozen=True)
class TeacherPlan:
    """Where the teacher comes from, and what it sees.

    Attributes:
        checkpoint: a file or a URL.
        config: of the teacher; without one, the one that its checkpoint holds is taken.
        normalization: `own` gives the teacher the image as its own config normalises it; `shared` gives it the
            student's tensor, as published.
        class_map: student's class -> teacher's class, where their class lists differ; a class that is not in it is
            looked for under its own name.
    """

    checkpoint: str
    config: str | None = None
    normalization: Literal["own", "shared"] = "own"
    class_map: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        settle(self, "distill.teacher")


PyramidKind = Literal["cskd", "mse", "pkd", "cwd"]


@dataclass(frozen=True)
class PyramidPlan:
    """The terms of the pyramid: the cosine-guided loss of four parts of it, or another's loss of the whole.

    Attributes:
        full: weights of the cosine-guided loss of the whole map.
        roi: the same of RoIs.
        foreground: the same of what boxes cover.
        background: the same of what they do not.
        kind: `cskd`, which these four are of, or another's loss to compare with (docs/rival_terms.md): `mse`, `pkd`,
            `cwd`.
        weight: of the loss of another kind.
        tau: temperature of `cwd`.

    Raises:
        PlanError: a kind that is none, a weight below zero, a temperature that is not above it, or a key that the kind
            has no use for.
    """

    full: WeightPair = (1.0, 0.5)
    roi: WeightPair = (1.0, 0.5)
    foreground: WeightPair = (1.0, 0.5)
    background: WeightPair = (1.0, 0.5)
    kind: PyramidKind = "cskd"
    weight: float = 1.0
    tau: float = 1.0
    former = {"region": ("foreground", "background")}  # noqa: RUF012

    def __post_init__(self) -> None:
        settle(self, "distill.pyramid")
        if not 0 <= self.weight < math.inf:
            raise PlanError(f"distill.pyramid.weight: expected a number >= 0, got {self.weight}")
        if not 0 < self.tau < math.inf:
            raise PlanError(f"distill.pyramid.tau: expected a number > 0, got {self.tau}")
        used = ["full", "roi", "foreground", "background"] if self.kind == "cskd" else ["weight"]
        used += ["tau"] if self.kind == "cwd" else []
        for field in dataclasses.fields(self):
            if field.name not in ("kind", *used) and getattr(self, field.name) != field.default:
                raise PlanError(
                    f"distill.pyramid.{field.name}: kind {self.kind!r} has no use for it, only for {', '.join(used)}; "
                    f"take it out, or write the block anew: --set \"distill.pyramid={{'kind': {self.kind!r}}}\""
                )


@dataclass(frozen=True)
class TowerPlan:
    """Weights of the head-tower terms: `cls` and `reg` of one-stage heads, `rpn` of a region proposal network.

    Attributes:
        adapter: a 1x1 convolution a level and stage on the student's side. None: where the published code uses it
            (FCOS, RPN; not GFL, RetinaNet: docs/algorithm.md 9.6), and wherever the channels differ.
    """

    cls: WeightPair = (1.0, 0.5)
    reg: WeightPair = (1.0, 0.5)
    rpn: WeightPair = (1.0, 0.5)
    adapter: bool | None = None

    def __post_init__(self) -> None:
        settle(self, "distill.tower")


@dataclass(frozen=True)
class PredictionPlan:
    """Weight of the prediction terms; `prediction=(1, 0.5)` is short for `prediction=dict(weight=(1, 0.5))`.

    Attributes:
        norm: of every map: `mean` over all elements; `foreground`, the sum over all positions divided by the number of
            foreground elements; `masked`, the foreground positions alone. None: as published for each map
            (docs/algorithm.md 4.2, 9.7, 9.8).
    """

    weight: WeightPair = (1.0, 0.5)
    norm: Literal["mean", "foreground", "masked"] | None = None
    shorthand = "weight"

    def __post_init__(self) -> None:
        settle(self, "distill.prediction")


@dataclass(frozen=True)
class AssistantPlan:
    """The assistant predictors; `assistant=True` is short for the defaults, `assistant=None` leaves them out.

    Attributes:
        soft_labels: GFL: the teacher's scores are the target of the assistant's classification, in place of the hard
            labels of the published code (docs/algorithm.md 9.15).
        scores_times_centerness: FCOS: the teacher's centerness is multiplied into its scores (5.3).
    """

    soft_labels: bool = False
    scores_times_centerness: bool = False

    def __post_init__(self) -> None:
        settle(self, "distill.assistant")


@dataclass(frozen=True)
class RoiPlan:
    """The second stage of a two-stage detector (docs/algorithm.md 6.3); no other has one.

    Attributes:
        features_student: weights of the RoI features at the student's RoIs.
        features_teacher: the same at the teacher's RoIs.
        fc: of the fully connected layers at the teacher's RoIs.
        prediction: of class logits and box deltas there.
        activation: of the class logits: `sigmoid` as published, or the `softmax` with which they are trained (9.16).
    """

    features_student: WeightPair = (1.0, 0.5)
    features_teacher: WeightPair = (1.0, 0.5)
    fc: WeightPair = (1.0, 1.0)
    prediction: WeightPair = (1.0, 1.0)
    activation: Literal["sigmoid", "softmax"] = "sigmoid"

    def __post_init__(self) -> None:
        settle(self, "distill.roi")


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "published": {},
    "cskd-fixed": {
        "regions": {"coord_base": "stride", "inclusive_end": False},
        "loss": {"count_outside": False},
        "tower": {"adapter": True},
    },
}
"""What a preset sets; keys that a plan names win. `cskd-fixed`: boxes where they are, no constant in the losses of
masked features, an adapter on every compared feature."""


class _Applied(str):
    """The name of a preset whose settings a plan has: `dataclasses.replace` passes it on, and sets nothing again."""

    __slots__ = ()


@dataclass(frozen=True)
class DistillPlan:
    """What to distil and with which weights, each pair being (guided squared error, cosine).

    A term set to None is left out. The defaults are the published recipe, its oddities included: each of those has an
    option (docs/algorithm.md 9).

    Attributes:
        preset: `published`, which sets nothing, or `cskd-fixed`, see `PRESETS`. What a config names wins; in Python
            what is not at its default.
        init_student: begin with the teacher's neck and head where the shapes agree (7, 9.20): cskd-train copies them
            before it builds the distiller, which copies nothing.
        level_reduce: how the terms of the levels are joined; None: as published, the sum, for an RPN the mean (9.9).

    Raises:
        PlanError: a value that a config could not have.

    Example:
        >>> DistillPlan.parse(dict(teacher=dict(checkpoint="t.pth"), prediction=(2, 1))).prediction.weight
        (2.0, 1.0)
        >>> DistillPlan.parse(dict(teacher=dict(checkpoint="t.pth"), preset="cskd-fixed")).regions.coord_base
        'stride'
        >>> DistillPlan.parse(dict(teacher=dict(checkpoint="t.pth"), tower=dict(rgb=(1, 1))))
        Traceback (most recent call last):
        ...
        cskd_core.errors.PlanError: distill.tower: unknown key 'rgb'; did you mean 'reg'? Known: cls, reg, rpn, adapter
    """

    teacher: TeacherPlan
    preset: Literal["published", "cskd-fixed"] = "published"
    init_student: bool = False
    pyramid: PyramidPlan | None = PyramidPlan()
    tower: TowerPlan | None = TowerPlan()
    prediction: PredictionPlan | None = PredictionPlan()
    assistant: AssistantPlan | None = AssistantPlan()
    roi: RoiPlan | None = RoiPlan()
    loss: LossOptions = PUBLISHED
    regions: RegionOptions = AS_PUBLISHED
    level_reduce: Literal["sum", "mean"] | None = None

    def __post_init__(self) -> None:
        settle(self, "distill")
        if isinstance(self.preset, _Applied):
            return
        for block, settings in PRESETS[self.preset].items():
            options = getattr(self, block)
            if options is not None:
                default = type(options)()
                free = {key: value for key, value in settings.items() if _at(options, key) == _at(default, key)}
                object.__setattr__(self, block, dataclasses.replace(options, **free))
        object.__setattr__(self, "preset", _Applied(self.preset))

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> DistillPlan:
        """Build a plan from the `distill` block of a config.

        Raises:
            PlanError: an unknown key, a missing one, or a value of another kind; the message names the key.
        """
        plan = parse_dataclass(cls, data, "distill")
        assert isinstance(plan, cls)
        # Parsed again with the preset underneath: what is wrong was found above, and so named as it was written.
        merged = {**_with_preset(data, PRESETS[plan.preset]), "preset": _Applied(plan.preset)}
        settled = parse_dataclass(cls, merged, "distill")
        assert isinstance(settled, cls)
        return settled

    def weighed_by(self, term: str) -> tuple[str, WeightPair | float | None] | None:
        """The key of the plan that weighs a term, and the weight it sets: a pair, or a number.

        Args:
            term: a name out of what the distiller returns, such as `pyramid_roi`: that of the key with `_` for `.`,
                and what the key weighs where it is several (`prediction_cls`).

        Returns:
            None for a term that is none of a distiller's; no weight for the assistant's terms, which are in or out.

        Example:
            >>> DistillPlan.parse(dict(teacher=dict(checkpoint="t.pth"))).weighed_by("pyramid_roi")
            ('pyramid.roi', (1.0, 0.5))
        """
        key = next((key for name, key in _WEIGHTS.items() if f"{term}_".startswith(f"{name}_")), None)
        if key is None:
            return None
        found = _at(self, key)
        weight = getattr(found, "weight", found)
        return key, weight if isinstance(weight, (tuple, float)) else None

    def refuse_unused(self, detector: str, used: frozenset[str]) -> None:
        """Refuse a setting that the student's family would silently ignore.

        Args:
            detector: the student's class, for the message, and the teacher's where that is of another family.
            used: the keys out of `SPECIFIC` that this family has a use for.

        Raises:
            PlanError: a key of `SPECIFIC` outside `used` is not at its default, nor as the preset has it.
        """
        for key in self._named(SPECIFIC):
            if key not in used:
                instead = ", and copy the teacher's weights yourself" if key == "init_student" else ""
                raise PlanError(f"distill.{key}: a {detector} has no use for it; take it out{instead}")

    def refuse_unread(self, heads: Sequence[str], norms: Collection[str]) -> None:
        """Refuse a setting of all terms that none of those reads which are built.

        Args:
            heads: those of `tower`, `prediction`, `assistant` and `roi` that are compared; the pyramid is, if it is in
                the plan.
            norms: of the prediction terms that are built.

        Raises:
            PlanError: such a key is not at its default, nor as the preset has it; or no term reads any key of the
                preset.
        """
        pyramid = self.pyramid is not None and self.pyramid.kind == "cskd"
        guided = pyramid or bool({"tower", "prediction", "roi"} & {*heads})
        masked = pyramid or "masked" in norms
        placed = pyramid or "assistant" in heads or bool({"foreground", "masked"} & {*norms})
        read = {
            "loss.detach_guidance": guided,
            "loss.guidance_min": guided,
            "loss.eps_mode": guided,
            "loss.count_outside": masked,
            "regions.coord_base": placed,
            "regions.inclusive_end": placed,
            "level_reduce": self.pyramid is not None or bool({"tower", "prediction"} & {*heads}),
        }
        for key in self._named(read):
            if not read[key]:
                raise PlanError(f"distill.{key}: no term that is compared here reads it; take it out")
        sets = [f"{block}.{key}" for block, keys in PRESETS[self.preset].items() for key in keys]
        if sets and not any(read.get(key, key.split(".")[0] in heads) for key in sets):
            raise PlanError(
                f"distill.preset: no term that is compared here reads what {self.preset!r} sets; take it out, "
                "or set it to 'published'"
            )

    def _named(self, keys: Iterable[str]) -> list[str]:
        """Those that are neither at their default, nor as the preset has them, nor below a term that is left out."""
        teacher = {"checkpoint": self.teacher.checkpoint}
        default = DistillPlan.parse({"teacher": teacher, "preset": str(self.preset)})
        return [key for key in keys if _at(self, key) not in (None, _at(default, key))]


SPECIFIC = (
    "init_student",
    "tower.cls",
    "tower.reg",
    "tower.rpn",
    "tower.adapter",
    "prediction",
    "assistant.soft_labels",
    "assistant.scores_times_centerness",
    "roi",
)
"""Keys that only some families have a use for."""


def _weight_keys(block: str, plan: Any) -> Iterator[tuple[str, str]]:
    """How the names of a block's terms begin, the longer before the shorter, and the key that weighs each."""
    weights = [name for name, kind in get_type_hints(plan).items() if kind == WeightPair or name == "weight"]
    yield from ((f"{block}_{name}", f"{block}.{name}") for name in weights if name != "weight")
    if "weight" in weights or not weights:
        yield block, f"{block}.weight" if "weight" in weights and not hasattr(plan, "shorthand") else block


_TERMS = {
    "pyramid": PyramidPlan,
    "tower": TowerPlan,
    "prediction": PredictionPlan,
    "assistant": AssistantPlan,
    "roi": RoiPlan,
}
_WEIGHTS = {name: key for block, plan in _TERMS.items() for name, key in _weight_keys(block, plan)}


def _with_preset(data: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with the preset's keys where it has none; a term that it leaves out (None) stays out."""
    merged = dict(data)
    for key, value in preset.items():
        given = merged.get(key, True)
        if given is True:  # the defaults, as an empty block has them
            merged[key] = value
        elif isinstance(given, Mapping):
            merged[key] = {**value, **given}
    return merged


def _at(plan: Any, key: str) -> Any:
    """The value at a dotted key; None below a term that is left out."""
    for part in key.split("."):
        plan = getattr(plan, part) if dataclasses.is_dataclass(plan) else None
    return plan
