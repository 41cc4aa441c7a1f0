"""What the one-stage detectors of mmdet share: a neck, a head with a cls and a reg tower, and maps by level."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmcv.cnn import Scale
from mmdet.core import reduce_mean
from torch import Tensor, nn

from cskd_core.assistant import Assistant, PredictorSpec
from cskd_core.errors import TapError
from cskd_core.family import Observation, PyramidSpec, TowerSpec
from cskd_core.taps import Recording, submodule
from cskd_train.mm.families.base import DetectorFamily, strides_of

TOWERS = ("cls", "reg")


class DenseFamily(DetectorFamily):
    """A stock mmdet one-stage detector: a head with a tower for classes and one for boxes.

    Attributes:
        predictors: prediction name -> name of the head's convolution that makes it.
        targets: what the head's `get_targets` returns, in order; () where nothing asks for it.
    """

    predictors: ClassVar[Mapping[str, str]]
    targets: ClassVar[tuple[str, ...]] = ()

    def check(self, detector: Any) -> None:
        super().check(detector)
        head = detector.bbox_head
        for name in ("stacked_convs", "feat_channels", "prior_generator"):
            if not hasattr(head, name):
                raise TapError(
                    f"the bbox_head of this {type(detector).__name__}, a {type(head).__name__}, has no {name}"
                )
        for name in self.predictors.values():
            submodule(detector, f"bbox_head.{name}")

    def pyramid(self, detector: Any) -> PyramidSpec:
        return PyramidSpec(detector.neck.out_channels, strides_of(detector.bbox_head))

    def towers(self, detector: Any) -> dict[str, TowerSpec]:
        head = detector.bbox_head
        return {tower: TowerSpec(head.feat_channels, head.stacked_convs) for tower in TOWERS}

    def prediction_channels(self, detector: Any) -> dict[str, int]:
        layers: dict[str, Any] = {
            name: submodule(detector, f"bbox_head.{path}") for name, path in self.predictors.items()
        }
        return {name: layer.out_channels for name, layer in layers.items()}

    def taps(self, detector: Any) -> dict[str, str]:
        stages = range(detector.bbox_head.stacked_convs)
        return {
            "pyramid": "neck",
            "predictions": "bbox_head",
            **({"targets": "bbox_head.get_targets()"} if self.targets else {}),
            **{f"{tower}{stage}": f"bbox_head.{tower}_convs.{stage}" for tower in TOWERS for stage in stages},
        }

    def infer(self, detector: Any, images: Tensor) -> None:
        detector.bbox_head(detector.extract_feat(images))

    def read(self, detector: Any, recording: Recording) -> Observation:
        stages = range(detector.bbox_head.stacked_convs)
        return Observation(
            pyramid=recording.last("pyramid"),
            towers={tower: [recording.calls(f"{tower}{stage}") for stage in stages] for tower in TOWERS},
            predictions=dict(zip(self.predictors, recording.last("predictions"), strict=True)),
            targets=self._targets(detector, recording),
        )

    def _targets(self, detector: Any, recording: Recording) -> dict[str, Any] | None:
        """What the student's assigner gave, by the names in `targets`; None of a teacher, which assigns nothing.

        Raises:
            TapError: it gave another number of things than mmdet 2.22 to 2.28 do.
        """
        if not self.targets or not recording.ran("targets"):
            return None
        found = recording.last("targets")
        if len(found) != len(self.targets):
            raise TapError(
                f"{type(detector.bbox_head).__name__}.get_targets gives {len(found)} things, expected "
                f"{len(self.targets)} ({', '.join(self.targets)}): leave the assistant out with distill.assistant=None"
            )
        return dict(zip(self.targets, found, strict=True))

    def assistant(self, detector: Any) -> Assistant:
        return Assistant(self.predictor_specs(detector))

    def predictor_specs(self, detector: Any) -> dict[str, PredictorSpec]:
        """A predictor beside each of the student's own, on the same tower."""
        channels = detector.bbox_head.feat_channels
        return {
            name: PredictorSpec(self.tower_of(detector, name), channels, outputs, classifies=name == "cls")
            for name, outputs in self.prediction_channels(detector).items()
        }

    def tower_of(self, detector: Any, prediction: str) -> str:
        """The tower that feeds a prediction."""
        return prediction


class ScaledAssistant(Assistant):
    """An assistant whose box predictions have a learnable scale on each level, 1 at first, as FCOS's and GFL's have.

    As in those heads, scaled predictions are float32 whatever goes in.

    Args:
        specs: name of the prediction -> predictor; `reg` is scaled.
        levels: of the pyramid.
    """

    def __init__(self, specs: Mapping[str, PredictorSpec], levels: int) -> None:
        super().__init__(specs)
        self.scales = nn.ModuleList(Scale(1.0) for _ in range(levels))

    def forward(self, towers: Mapping[str, Sequence[Sequence[Tensor]]]) -> dict[str, list[Tensor]]:
        predictions = super().forward(towers)
        boxes = zip(self.scales, predictions["reg"], strict=True)
        return {**predictions, "reg": [scale(level).float() for scale, level in boxes]}


def by_prior(levels: Sequence[Tensor], channels: int) -> Tensor:
    """(B, A * c, H, W) a level to (B, priors, c), in mmdet's order within an image: level, row, column, anchor."""
    cells = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)
    return cells.unflatten(2, (-1, channels)).flatten(1, 2)


def finest_and_others(levels: Sequence[Tensor]) -> Iterator[Tensor]:
    """(B, c, H, W) a level to (B, c, positions), once of the finest level and once of all others together.

    What follows runs twice then, not once a level. A copy of the finest level would cost memory, and so would one of
    the others while the finest is worked on.
    """
    finest, *others = [level.flatten(2) for level in levels]
    yield finest
    if others:
        yield torch.cat(others, 2)


def at_least_one(count: Tensor) -> Tensor:
    """`count` as mmdet's heads normalise by it: averaged over the processes of a distributed run, 1 at least."""
    mean: Tensor = reduce_mean(count)
    return mean.clamp(min=1)
