"""What a detector family tells the distiller: where to tap a detector and what the recorded tensors mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from cskd_core.assistant import Assistant
from cskd_core.errors import ShapeError
from cskd_core.plan import AssistantPlan, DistillPlan
from cskd_core.regions import Regions
from cskd_core.roi_terms import RoiObservation, RoiSpec
from cskd_core.schema import settle
from cskd_core.similarity import at_least_float32
from cskd_core.taps import Recording


@dataclass(frozen=True)
class Batch:
    """One training batch.

    Attributes:
        images: (B, 3, H, W), the teacher's input.
        boxes: ground truth, one (N, 4) tensor an image: x1, y1, x2, y2 in input pixels.
        image_shapes: (height, width) of each image before padding.
        labels: class indices, one (N,) tensor an image; for families that need them.
        details: of each image, in the detector's own form; for families that need them.
    """

    images: Tensor
    boxes: Sequence[Tensor]
    image_shapes: Sequence[Sequence[int]]
    labels: Sequence[Tensor] | None = None
    details: Sequence[Any] | None = None


@dataclass(frozen=True)
class Observation:
    """One forward of one detector.

    Attributes:
        pyramid: a (B, C, H, W) feature map a level, as the head receives it.
        towers: tower name -> stage -> level -> (B, C, H, W), after convolution, norm and activation.
        predictions: prediction name -> level -> (B, c, H, W), logits or regression values.
        targets: what the detector's own assigner returned, in its own form; None where it did not run.
    """

    pyramid: Sequence[Tensor]
    towers: Mapping[str, Sequence[Sequence[Tensor]]]
    predictions: Mapping[str, Sequence[Tensor]]
    targets: Any = None

    def in_one_precision(self) -> Observation:
        """The same with all features in the pyramid's precision, float32 at least: there distillation is computed."""
        precision = at_least_float32(self.pyramid[0]).dtype
        return replace(
            self,
            pyramid=[level.to(precision) for level in self.pyramid],
            towers={
                name: [[level.to(precision) for level in stage] for stage in tower]
                for name, tower in self.towers.items()
            },
            predictions={name: [level.to(precision) for level in levels] for name, levels in self.predictions.items()},
        )


@dataclass(frozen=True)
class PredictionRule:
    """How one prediction map is compared, as published (docs/algorithm.md 4.2).

    Attributes:
        activation: applied to both sides first.
        normalise: 'mean' over all elements, or by the number of 'foreground' elements (all positions still take part).

    Raises:
        PlanError: one of them is another word.
    """

    activation: Literal["sigmoid", "identity"]
    normalise: Literal["mean", "foreground"]

    def __post_init__(self) -> None:
        settle(self, "PredictionRule")


@dataclass(frozen=True)
class PyramidSpec:
    """The levels of a detector's pyramid.

    Attributes:
        channels: of each level, or one number for all of them.
        strides: of each level, in pixels; they may repeat.

    Raises:
        ShapeError: as many channels as levels are not given.
    """

    channels: int | tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.channels, int) and len(self.channels) != len(self.strides):
            raise ShapeError(
                f"PyramidSpec has {len(self.channels)} channels for {len(self.strides)} strides: expected one of each "
                "a level, or one number for the channels of all"
            )

    def channels_of(self, level: int) -> int:
        """Channels of a level, by its place, counted from 0."""
        return self.channels if isinstance(self.channels, int) else self.channels[level]


@dataclass(frozen=True)
class TowerSpec:
    """Channels and number of stages of one head tower."""

    channels: int
    stages: int


class SecondStage(ABC):
    """What a two-stage family does with the regions that its first stage proposes (docs/algorithm.md 6)."""

    @abstractmethod
    def spec(self, student: nn.Module, teacher: nn.Module) -> RoiSpec:
        """Sizes of both second stages.

        Raises:
            ShapeError: they cannot be compared layer by layer.
        """

    @abstractmethod
    def observe(
        self,
        student: nn.Module,
        teacher: nn.Module,
        recording: Recording,
        observations: tuple[Observation, Observation],
        batch: Batch,
    ) -> RoiObservation:
        """Both detectors at the RoIs of both.

        Args:
            recording: of the student's training forward.
            observations: of student and teacher, both of this batch.
        """

    def assistant_losses(self, assisted: Mapping[str, Tensor], rois: RoiObservation) -> dict[str, Tensor]:
        """Losses of the second stage's assistant (name -> (n, c)); scalars by term name."""
        return {}


class Family(ABC):
    """One kind of detector, for example RetinaNet. A new detector is a new family, nothing else.

    A family must say where a detector's pyramid is found; towers, predictions, assistant and a second stage are there
    for the families that have them.

    Attributes:
        prediction_rules: a rule for each entry of `Observation.predictions`.
        second_stage: of two-stage detectors.
        tower_adapter: whether the published code adapts the towers of this family (docs/algorithm.md 1.6).
        level_reduce: how it joins the terms of the levels.
        has_assistant: whether there is one, see `assistant`.
        assistant_options: keys below `assistant` in a plan that this family has a use for.
        init_student: whether what builds its students copies the teacher's neck and head where a plan asks for it; the
            distiller does not.
    """

    prediction_rules: ClassVar[Mapping[str, PredictionRule]] = {}
    second_stage: ClassVar[SecondStage | None] = None
    tower_adapter: ClassVar[bool] = False
    level_reduce: ClassVar[Literal["sum", "mean"]] = "sum"
    has_assistant: ClassVar[bool] = False
    assistant_options: ClassVar[frozenset[str]] = frozenset()
    init_student: ClassVar[bool] = False

    def check(self, detector: nn.Module) -> None:  # noqa: B027 (most families have nothing to refuse)
        """Refuse a detector that this family cannot read, in one sentence.

        Raises:
            TapError: it lacks a part, or has another in its place.
        """

    @abstractmethod
    def pyramid(self, detector: nn.Module) -> PyramidSpec:
        """Read off the detector."""

    def towers(self, detector: nn.Module) -> Mapping[str, TowerSpec]:
        """The towers in `Observation.towers`."""
        return {}

    def prediction_channels(self, detector: nn.Module) -> Mapping[str, int]:
        """Channels of the maps in `Observation.predictions`; student and teacher must agree in those named here."""
        return {}

    @abstractmethod
    def taps(self, detector: nn.Module) -> Mapping[str, str]:
        """Tap name -> path, see `cskd_core.taps.Taps`."""

    def infer(self, detector: nn.Module, images: Tensor) -> None:
        """Run features and head outputs for `images` (B, 3, H, W): no assigner, no loss."""
        detector(images)

    @abstractmethod
    def read(self, detector: nn.Module, recording: Recording) -> Observation:
        """Turn what the taps recorded into an `Observation`."""

    def assistant(self, detector: nn.Module) -> Assistant:
        """The assistant predictors that fit this student; asked for where `has_assistant` says that there is one."""
        raise TypeError(f"{type(self).__name__} says that it has an assistant, but builds none")

    def assistant_losses(
        self,
        assisted: Mapping[str, Sequence[Tensor]],
        student: Observation,
        teacher: Observation,
        regions: Regions,
        plan: AssistantPlan,
    ) -> dict[str, Tensor]:
        """Losses of the assistant's predictions (name -> level) against the teacher's; scalars by term name."""
        return {}

    def used(self, detector: nn.Module) -> frozenset[str]:
        """The keys out of `cskd_core.plan.SPECIFIC` that this detector has a use for."""
        towers = self.towers(detector)
        used = {f"tower.{name}" for name in (*towers, "adapter")} if towers else set()
        used |= {"init_student"} if self.init_student else set()
        used |= {f"assistant.{option}" for option in self.assistant_options}
        return frozenset(used | {name for name, there in self._heads(detector).items() if there})

    def compared(self, detector: nn.Module, plan: DistillPlan) -> tuple[str, ...]:
        """Those of `tower`, `prediction`, `assistant` and `roi` that a plan has and this detector too."""
        return tuple(name for name, there in self._heads(detector).items() if there and getattr(plan, name))

    def norms(self, plan: DistillPlan) -> set[str]:
        """How the prediction maps are normalised, see `PredictionPlan.norm`."""
        chosen = plan.prediction.norm if plan.prediction else None
        return {chosen or rule.normalise for rule in self.prediction_rules.values()}

    def _heads(self, detector: nn.Module) -> dict[str, bool]:
        return {
            "tower": bool(self.towers(detector)),
            "prediction": bool(self.prediction_rules),
            "assistant": self.has_assistant,
            "roi": self.second_stage is not None,
        }
