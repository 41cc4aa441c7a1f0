"""What a detector family tells the distiller: where to tap a detector and what the recorded tensors mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from cskd_core.assistant import Assistant
from cskd_core.regions import Regions
from cskd_core.similarity import at_least_float32
from cskd_core.taps import Recording


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

    def in_float32(self) -> Observation:
        """The same with half-precision features brought to float32, in which all distillation is computed."""
        return Observation(
            [at_least_float32(level) for level in self.pyramid],
            {
                name: [[at_least_float32(level) for level in stage] for stage in tower]
                for name, tower in self.towers.items()
            },
            {name: [at_least_float32(level) for level in levels] for name, levels in self.predictions.items()},
            self.targets,
        )


@dataclass(frozen=True)
class PredictionRule:
    """How one prediction map is compared (docs/algorithm.md 4.2).

    Attributes:
        activation: applied to both sides first.
        normalise: 'mean' over all elements, or by the number of 'foreground' elements (all positions still take part).
    """

    activation: Literal["sigmoid", "identity"]
    normalise: Literal["mean", "foreground"]


@dataclass(frozen=True)
class Channels:
    """Channels of a detector's pyramid, and the number of its levels."""

    pyramid: int
    levels: int


class Family(Protocol):
    """One kind of detector, for example RetinaNet. A new detector is a new family, nothing else."""

    @property
    def prediction_rules(self) -> Mapping[str, PredictionRule]:
        """A rule for each entry of `Observation.predictions`."""

    def channels(self, detector: nn.Module) -> Channels:
        """Read off the detector."""

    def taps(self, detector: nn.Module) -> Mapping[str, str]:
        """Tap name -> path, see `cskd_core.taps.Taps`."""

    def infer(self, detector: nn.Module, images: Tensor) -> None:
        """Run features and head outputs for `images` (B, 3, H, W): no assigner, no loss."""

    def read(self, detector: nn.Module, recording: Recording) -> Observation:
        """Turn what the taps recorded into an `Observation`."""

    def assistant(self, detector: nn.Module) -> Assistant:
        """The assistant predictors that fit this student."""

    def assistant_losses(
        self, assisted: Mapping[str, Sequence[Tensor]], student: Observation, teacher: Observation, regions: Regions
    ) -> dict[str, Tensor]:
        """Losses of the assistant's predictions (name -> level) against the teacher's; scalars by term name."""
