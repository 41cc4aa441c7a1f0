"""Assistant: extra predictors on the student's towers that learn from the teacher (docs/algorithm.md 5.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from cskd_core.errors import ShapeError

PRIOR_PROBABILITY = 0.01
"""Of an object at a position, before training: it sets the bias of a classification predictor."""


@dataclass(frozen=True)
class PredictorSpec:
    """One predictor: the tower whose last stage it reads, its channels and kernel.

    Attributes:
        classifies: its outputs are class logits, which start at `PRIOR_PROBABILITY`.
    """

    tower: str
    in_channels: int
    out_channels: int
    classifies: bool = False
    kernel: int = 3


class Assistant(nn.Module):
    """Convolutions shared over the levels, evaluated in training only.

    Args:
        specs: name of the prediction -> predictor.
    """

    def __init__(self, specs: Mapping[str, PredictorSpec]) -> None:
        super().__init__()
        self._towers = {name: spec.tower for name, spec in specs.items()}
        self.predictors = nn.ModuleDict(
            {
                name: nn.Conv2d(spec.in_channels, spec.out_channels, spec.kernel, padding=spec.kernel // 2)
                for name, spec in specs.items()
            }
        )
        for name, spec in specs.items():
            predictor = self.predictors[name]
            assert isinstance(predictor, nn.Conv2d)
            initialise(predictor)
            if spec.classifies and predictor.bias is not None:
                nn.init.constant_(predictor.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))

    def forward(self, towers: Mapping[str, Sequence[Sequence[Tensor]]]) -> dict[str, list[Tensor]]:
        """Predictions by name and level from tower features (tower -> stage -> level).

        Raises:
            ShapeError: a tower that a predictor reads is not there.
        """
        if missing := {*self._towers.values()} - {*towers}:
            raise ShapeError(
                f"the assistant reads the {', '.join(sorted(missing))} tower, but the family reads "
                f"{', '.join(towers) or 'no tower'} of the student"
            )
        return {
            name: [predictor(feature) for feature in towers[self._towers[name]][-1]]
            for name, predictor in self.predictors.items()
        }


def initialise(convolution: nn.Conv2d) -> None:
    """N(0, 0.01^2) weights and zero bias, as the published heads give every convolution in them."""
    nn.init.normal_(convolution.weight, std=0.01)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
