"""What a detector family tells the distiller: where to tap a detector and what the recorded tensors mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from cskd_core.assistant import Assistant
from cskd_core.plan import AssistantPlan
from cskd_core.regions import Regions
from cskd_core.roi_terms import RoiObservation, RoiSpec
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
    """

    activation: Literal["sigmoid", "identity"]
    normalise: Literal["mean", "foreground"]


@dataclass(frozen=True)
class PyramidSpec:
    """Channels of a detector's pyramid, and the stride of each of its levels in pixels."""

    channels: int
    strides: tuple[int, ...]


@dataclass(frozen=True)
class TowerSpec:
    """Channels and number of stages of one head tower."""

    channels: int
    stages: int


class Family(ABC):
    """One kind of detector, for example RetinaNet. A new detector is a new family, nothing else.

    A family must say where a detector's pyramid is found; towers, predictions, assistant and a second stage are there
    for the families that have them.

    Attributes:
        prediction_rules: a rule for each entry of `Observation.predictions`.
        tower_adapter: whether the published code adapts the towers of this family (docs/algorithm.md 1.6).
        level_reduce: how it joins the terms of the levels.
        options: keys of `cskd_core.plan.SPECIFIC` that this family has a use for.
    """

    prediction_rules: ClassVar[Mapping[str, PredictionRule]] = {}
    tower_adapter: ClassVar[bool] = False
    level_reduce: ClassVar[Literal["sum", "mean"]] = "sum"
    options: ClassVar[frozenset[str]] = frozenset()

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

    def assistant(self, detector: nn.Module) -> Assistant | None:
        """The assistant predictors that fit this student."""
        return None

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

    def rois(self, student: nn.Module, teacher: nn.Module) -> RoiSpec | None:
        """The second stage of both detectors; None for one-stage detectors."""
        return None

    def observe_rois(
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
        raise TypeError(f"{type(self).__name__} says that it has a second stage, but does not observe it")

    def roi_assistant_losses(self, assisted: Mapping[str, Tensor], rois: RoiObservation) -> dict[str, Tensor]:
        """Losses of the second stage's assistant (name -> (n, c)); scalars by term name."""
        return {}
