"""Two plain detectors that know no framework, and their family."""

from __future__ import annotations

from torch import nn

from cskd_core.assistant import Assistant, PredictorSpec
from cskd_core.family import Family, Observation, PredictionRule, PyramidSpec, TowerSpec


class PlainDetector(nn.Module):
    """Two pyramid levels, one tower of two stages, one prediction."""

    def __init__(self, channels, tower=4):
        super().__init__()
        self.channels = channels
        self.stem = nn.Conv2d(3, channels, 3, stride=4, padding=1)
        self.down = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.first = nn.Conv2d(channels, tower, 1)
        self.second = nn.Conv2d(tower, tower, 1)
        self.predictor = nn.Conv2d(tower, 2, 1)

    def pyramid(self, images):
        fine = self.norm(self.stem(images))
        return [fine, self.down(fine)]

    def forward(self, images):
        return [self.predictor(self.second(self.first(level).relu()).relu()) for level in self.pyramid(images)]


class PlainFamily(Family):
    has_assistant = True
    prediction_rules = {"cls": PredictionRule("sigmoid", "mean"), "reg": PredictionRule("identity", "foreground")}  # noqa: RUF012

    def pyramid(self, detector):
        return PyramidSpec(detector.channels, (4, 8))

    def towers(self, detector):
        return dict.fromkeys(("cls", "reg"), TowerSpec(detector.second.out_channels, 2))

    def prediction_channels(self, detector):
        return {"cls": 1, "reg": detector.predictor.out_channels - 1}

    def taps(self, detector):
        return {"fine": "norm", "coarse": "down", "first": "first", "second": "second", "predictor": "predictor"}

    def read(self, detector, recording):
        maps = recording.calls("predictor")
        return Observation(
            pyramid=[recording.last("fine"), recording.last("coarse")],
            towers={tower: [recording.calls("first"), recording.calls("second")] for tower in ("cls", "reg")},
            predictions={"cls": [m[:, :1] for m in maps], "reg": [m[:, 1:] for m in maps]},
        )

    def assistant(self, detector):
        return Assistant({"cls": PredictorSpec("cls", detector.second.out_channels, 1, classifies=True)})

    def assistant_losses(self, assisted, student, teacher, regions, plan):
        return {
            "assistant_cls": sum(
                (logits.sigmoid() - scores.sigmoid()).square().mean()
                for logits, scores in zip(assisted["cls"], teacher.predictions["cls"], strict=True)
            )
        }
