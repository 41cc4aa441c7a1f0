"""One training step: accumulation, mixed precision, clipping, and numbers that are not finite."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from cskd_train.engine import step as step_module
from cskd_train.engine.distributed import World
from cskd_train.engine.loader import Batch, Position
from cskd_train.engine.records import Recorder
from cskd_train.engine.signals import Interrupted
from cskd_train.engine.step import AveragedStudent, NotFinite, TrainStep, summed
from cskd_train.mm.plain import build_without_pretrained

from .runs import STEPS, last, log, narrow, train


class Toy(nn.Module):
    """`loss_a` is the mean of a linear layer's squares, `loss_b` what a test makes of it."""

    def __init__(self, loss_b=None):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)
        self.loss_b = loss_b

    def forward(self, img, img_metas):
        found = self.layer(img)
        losses = {"loss_a": found.float().square().mean(), "acc": torch.tensor(50.0)}
        return losses if self.loss_b is None else {**losses, "loss_b": self.loss_b(self.layer, found)}


def batch(number=0, size=4, value=1.0):
    images = value * torch.randn(size, 3, generator=torch.Generator().manual_seed(number))
    return Batch(
        2, number, {"img": images, "img_metas": [{"ori_filename": f"{number}_{one}.jpg"} for one in range(size)]}
    )


def taking_steps(model, lr=0.1, **options):
    return TrainStep(model, torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9), World(), **options)


def weights(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(model, before):
    return all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# Sums and accumulation


def test_losses_are_added_as_mmdet_adds_them_and_what_is_none_is_shown():
    total, terms = summed(
        {
            "loss_cls": [torch.tensor([1.0, 3.0]), torch.tensor(5.0)],
            "loss_bbox": torch.tensor([2.0, 4.0]),
            "acc": torch.tensor(9.0),
        }
    )
    assert float(total) == 2 + 5 + 3
    assert {name: float(value) for name, value in terms.items()} == {
        "loss_cls": 7,
        "loss_bbox": 3,
        "acc": 9,
        "loss": 10,
    }


def test_the_terms_of_a_step_are_the_means_over_its_batches():
    model = Toy()
    alone = [model(**batch(number).data)["loss_a"].item() for number in range(3)]
    report = taking_steps(model)([batch(number) for number in range(3)])
    assert report.terms["loss_a"] == report.terms["loss"] == pytest.approx(sum(alone) / 3, rel=1e-6)
    assert report.terms["acc"] == 50
    assert not report.stop
    assert not report.skipped
    assert taking_steps(model)([batch()], stop_requested=True).stop


def retinanet():
    """Without statistics of the batch: BatchNorm stays as it was trained."""
    torch.manual_seed(0)
    cfg = narrow("RetinaNet")
    cfg.backbone.norm_eval = True
    return build_without_pretrained(cfg).train()


def test_accumulated_batches_are_one_large_batch_where_the_counts_of_targets_agree():
    # RetinaNet divides by the number of its positive anchors: with the same boxes on all images it is the same.
    boxes, labels = [torch.tensor([[8.0, 4.0, 56.0, 40.0]])] * 2, [torch.tensor([1])] * 2
    meta = {"img_shape": (64, 96, 3), "pad_shape": (64, 96, 3), "scale_factor": 1.0, "ori_filename": "a.jpg"}
    images = torch.randn(4, 3, 64, 96, generator=torch.Generator().manual_seed(3))

    def part(number, some, count):
        return Batch(
            0,
            number,
            {
                "img": some,
                "img_metas": [meta] * count,
                "gt_bboxes": boxes * (count // 2),
                "gt_labels": labels * (count // 2),
            },
        )

    together, apart, other = retinanet(), retinanet(), retinanet()
    reports = [
        taking_steps(together)([part(0, images, 4)]),
        taking_steps(apart)([part(0, images[:2], 2), part(1, images[2:], 2)]),
    ]
    taking_steps(other)([part(0, images[:2], 2)])
    assert reports[0].terms["loss"] == pytest.approx(reports[1].terms["loss"], rel=1e-5)
    for key, value in together.state_dict().items():
        torch.testing.assert_close(apart.state_dict()[key], value, rtol=1e-4, atol=1e-6)
    key = "bbox_head.retina_cls.weight"
    assert (other.state_dict()[key] - together.state_dict()[key]).abs().max() > 1e-5


def test_the_random_draws_of_a_step_come_from_the_place_of_its_batch(monkeypatch):
    drawn = []
    monkeypatch.setattr(step_module, "seed_generators", lambda *place: drawn.append(place))
    taking_steps(Toy(), seed=5)([batch(3), batch(4)])
    assert drawn == [(5, 2, 3, 1), (5, 2, 4, 1)]


# Clipping


@pytest.mark.parametrize("amp", [None, "bf16", "fp16"])
def test_the_norm_in_the_log_is_that_of_the_gradient_and_the_step_is_clipped_by_it(amp):
    model, reference = Toy(), Toy()
    before = weights(model)
    report = taking_steps(model, amp=amp, clip={"max_norm": 0.01, "norm_type": 2})([batch()])
    reference(**batch().data)["loss_a"].backward()
    norm = torch.cat([p.grad.flatten() for p in reference.parameters()]).norm().item()
    tolerance = 1e-6 if amp is None else 2e-2
    assert norm > 0.1
    assert report.terms["grad_norm"] == pytest.approx(norm, rel=tolerance)
    moved = torch.cat([(before[key] - value).flatten() for key, value in model.state_dict().items()]).norm().item()
    assert moved == pytest.approx(0.1 * 0.01, rel=1e-3)


def root_of_nothing(layer, found):
    """A finite loss of an infinite gradient."""
    return ((layer.weight - layer.weight.detach()).square().sum()).sqrt()


@pytest.mark.parametrize("amp", [None, "bf16"])
def test_a_gradient_that_is_not_finite_is_not_clipped_but_ends_the_run(amp):
    model = Toy(root_of_nothing)
    before = weights(model)
    with pytest.raises(NotFinite, match=r"the gradient is not finite \(norm nan\) at epoch 3, in .* 7_0.jpg, 7_1.jpg"):
        taking_steps(model, amp=amp, clip={"max_norm": 1})([batch(7)])
    assert same(model, before)


# Losses that are not finite


@pytest.mark.parametrize("amp", [None, "bf16", "fp16"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_with_the_images_and_the_weights_as_they_were(amp, value):
    model = Toy(lambda layer, found: found.sum() * value)
    before = weights(model)
    with pytest.raises(NotFinite) as error:
        taking_steps(model, amp=amp)([batch(1, 2), batch(2, 2)])
    assert "the loss is not finite: loss_b = " in str(error.value)
    assert "loss_a" not in str(error.value)
    assert str(error.value).endswith("at epoch 3, in the step on images 1_0.jpg, 1_1.jpg, 2_0.jpg, 2_1.jpg")
    assert same(model, before)


# float16


def test_a_step_that_overflows_is_skipped_and_lowers_the_scale():
    model = Toy()
    average = AveragedStudent(model, decay=0.5, warmup=1)
    step = taking_steps(model, amp="fp16", clip={"max_norm": 10}, average=average)
    step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    before = weights(model)
    report = step([batch()])
    assert report.skipped
    assert "grad_norm" not in report.terms
    assert same(model, before)
    assert same(average.model, before)
    assert average.state_dict() == {"updates": 1}
    assert not step.optimizer.state
    assert step.scaler.get_scale() == 2.0**29
    while report.skipped:
        report = step([batch()])
    assert not same(model, before)
    assert not same(average.model, before)
    assert average.state_dict() == {"updates": 2}
    assert step.scaler.get_scale() < 2.0**20


@pytest.mark.parametrize("clip", [None, {"max_norm": 1}])
def test_a_gradient_that_no_scale_helps_ends_the_run(clip):
    model = Toy(root_of_nothing)
    before = weights(model)
    step = taking_steps(model, amp="fp16", clip=clip)
    step.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    assert [step([batch()]).skipped for _ in range(2)] == [True, True]
    with pytest.raises(NotFinite, match="not finite in float16, even without a scale at epoch 3"):
        step([batch()])
    assert same(model, before)


def test_an_average_of_the_log_counts_the_steps_that_had_the_value():
    records = []
    sink = type("Sink", (), {"train": lambda self, record: records.append(record)})()
    recorder = Recorder(4, [sink])
    for inner, values in enumerate(
        [{"loss": 1.0, "grad_norm": 4.0}, {"loss": 2.0}, {"loss": 3.0}, {"loss": 6.0, "grad_norm": 8.0}], 1
    ):
        recorder.step(Position(0, inner, inner, inner), values, 0.1, end_of_epoch=False)
    assert records == [{"mode": "train", "epoch": 1, "iter": 4, "lr": 0.1, "loss": 3.0, "grad_norm": 6.0}]


def test_a_run_counts_its_skipped_steps_and_a_resumed_one_keeps_count_and_scale(small_runs, tmp_path, monkeypatch):
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *a, **options: scaler(*a, init_scale=2.0**20, **options))
    for folder in (tmp_path / "whole", tmp_path / "parts"):
        options = {"settings": {"amp": "fp16", "ema": {}}}
        if folder.name == "parts":
            assert isinstance(train(small_runs.options(folder, **options), stop_after=6)[0], Interrupted)
            # Without the scale of the file the run would skip again.
            assert last(folder)["scaler"]["scale"] < 2.0**20
            options["resume"] = True
        outcome, _ = train(small_runs.options(folder, **options))
        skipped = outcome.skipped_steps
        assert 2 <= skipped < STEPS
        assert json.loads((folder / "result.json").read_text())["skipped_steps"] == skipped
        contents = last(folder)
        assert contents["scaler"]["scale"] == 2.0 ** (20 - skipped)
        assert contents["average"] == {"updates": 1 + STEPS - skipped}
        assert sum("grad_norm" not in record for record in log(folder) if record["mode"] == "train") == skipped
        assert f"{skipped} steps skipped" in str(outcome)
    assert log(tmp_path / "parts") == log(tmp_path / "whole")
