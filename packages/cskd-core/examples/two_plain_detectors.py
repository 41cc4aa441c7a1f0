"""Distil between two plain `nn.Module`s: nothing but cskd-core is needed."""

import torch
from torch import nn

from cskd_core import Batch, Distiller, DistillPlan, Family, Observation, PredictionRule, PyramidSpec


class TinyDetector(nn.Module):
    """Two pyramid levels with strides 4 and 8; one class score a cell."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, width, 3, stride=4, padding=1), nn.ReLU())
        self.coarse = nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU())
        self.score = nn.Conv2d(width, 1, 1)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [self.score(fine := self.fine(images)), self.score(self.coarse(fine))]


class TinyFamily(Family):
    """Where the distiller looks, and what it finds there."""

    prediction_rules = {"cls": PredictionRule("sigmoid", "mean")}  # noqa: RUF012

    def pyramid(self, detector):
        return PyramidSpec(channels=detector.score.in_channels, strides=(4, 8))

    def taps(self, detector):
        return {"fine": "fine", "coarse": "coarse", "score": "score"}

    def read(self, detector, recording):
        return Observation([recording.last("fine"), recording.last("coarse")], {}, {"cls": recording.calls("score")})


def main(steps: int = 60) -> list[float]:
    torch.manual_seed(0)
    student, teacher = TinyDetector(8), TinyDetector(32)
    distiller = Distiller(student, teacher, TinyFamily(), DistillPlan.parse({"teacher": {"checkpoint": "-"}}))
    optimizer = torch.optim.Adam([*student.parameters(), *distiller.parameters()], lr=0.01)
    batch = Batch(torch.randn(2, 3, 32, 32), [torch.tensor([[4.0, 4.0, 20.0, 16.0]])] * 2, [(32, 32)] * 2)
    losses = []
    for _ in range(steps):
        with distiller.watch() as recording:
            student(batch.images)  # a real student adds its own losses here
        total = sum(distiller(recording, batch).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    return losses


if __name__ == "__main__":
    first, *_, last = main()
    print(f"distillation loss: {first:.3f} at first, {last:.3f} at last")
