"""Losses to compare the cosine-guided one with: each against its paper's equation in plain Python, and its extremes."""

from __future__ import annotations

import math
from functools import partial
from statistics import fmean, stdev

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from cskd_core.errors import ShapeError
from cskd_core.feature_losses import channel_distribution_loss, mean_squared_loss, pearson_loss
from cskd_core.plan import PyramidPlan
from cskd_core.terms import PyramidTerm

TAU = 2.5


def slow_mean_squared_loss(s, t):
    """FitNets: the squared distance, here a mean over all elements."""
    pairs = [(s[b][c][p], t[b][c][p]) for b in range(len(s)) for c in range(len(s[0])) for p in range(len(s[0][0]))]
    return fmean((x - y) ** 2 for x, y in pairs)


def slow_pearson_loss(s, t):
    """PKD: 1 / 2m times the squared distance of channels that are normalised over batch and positions."""

    def normalised(features, c):
        values = [value for image in features for value in image[c]]
        mean, deviation = fmean(values), stdev(values)
        return [(value - mean) / deviation for value in values]

    def of_channel(c):
        pairs = list(zip(normalised(s, c), normalised(t, c), strict=True))
        return sum((x - y) ** 2 for x, y in pairs) / (2 * len(pairs))

    return fmean(of_channel(c) for c in range(len(s[0])))


def slow_channel_distribution_loss(s, t, tau):
    """CWD: tau^2 / C times the divergence of each channel's softmax over the positions, a mean over the images."""

    def softmax(values):
        exponents = [math.exp(value / tau) for value in values]
        return [exponent / sum(exponents) for exponent in exponents]

    def of_image(of_student, of_teacher):
        total = 0.0
        for student, teacher in zip(of_student, of_teacher, strict=True):
            total += sum(y * math.log(y / x) for x, y in zip(softmax(student), softmax(teacher), strict=True))
        return tau**2 / len(of_student) * total

    return fmean(of_image(*pair) for pair in zip(s, t, strict=True))


LOSSES = {
    "mse": (mean_squared_loss, slow_mean_squared_loss),
    "pkd": (pearson_loss, slow_pearson_loss),
    "cwd": (partial(channel_distribution_loss, tau=TAU), partial(slow_channel_distribution_loss, tau=TAU)),
}


@pytest.fixture(params=LOSSES)
def kind(request):
    return request.param


@pytest.fixture
def loss(kind):
    return LOSSES[kind][0]


def random_pair(shape, seed=1):
    student, teacher = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 3 * student + 0.7, 0.5 * teacher - 2


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 2, 2), (3, 2, 1, 1), (1, 4, 1, 6)])
def test_a_loss_equals_its_papers_equation_element_by_element(kind, shape):
    fast, slow = LOSSES[kind]
    student, teacher = random_pair(shape)
    expected = slow(student.flatten(2).tolist(), teacher.flatten(2).tolist())
    assert fast(student, teacher).item() == pytest.approx(expected, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(LOSSES)),
    st.tuples(*(st.integers(1, 4) for _ in range(3)), st.integers(2, 4)),
    st.integers(0, 10_000),
)
def test_a_loss_equals_its_papers_equation_on_any_shape(kind, shape, seed):
    fast, slow = LOSSES[kind]
    student, teacher = random_pair(shape, seed)
    found = fast(student, teacher).item()
    assert found == pytest.approx(slow(student.flatten(2).tolist(), teacher.flatten(2).tolist()), rel=1e-9, abs=1e-15)
    assert found >= 0


def test_the_gradient_equals_finite_differences(loss):
    student, teacher = random_pair((2, 3, 2, 3))
    assert gradcheck(lambda s: loss(s, teacher), (student.requires_grad_(),))


def test_nothing_flows_to_the_teacher(loss):
    student, teacher = (side.requires_grad_() for side in random_pair((2, 3, 4, 5)))
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_identical_features_cost_nothing(loss):
    student, _ = random_pair((2, 3, 4, 5))
    assert loss(student, student.clone()).item() == pytest.approx(0, abs=1e-12)


def test_what_each_loss_does_not_see():
    student, teacher = random_pair((2, 3, 4, 5))
    scales = torch.tensor([0.1, 2.0, 30.0], dtype=torch.float64).view(1, 3, 1, 1)
    assert pearson_loss(scales * student - 5, teacher).item() == pytest.approx(pearson_loss(student, teacher).item())
    found = channel_distribution_loss(student + scales, teacher)
    assert found.item() == pytest.approx(channel_distribution_loss(student, teacher).item())
    assert channel_distribution_loss(2 * student, teacher).item() != pytest.approx(found.item(), rel=0.01)


def test_half_the_distance_of_normalised_channels_is_one_minus_their_correlation_but_for_the_last_degree():
    student, teacher = random_pair((2, 3, 4, 5))
    channels = zip(student.transpose(0, 1).flatten(1), teacher.transpose(0, 1).flatten(1), strict=True)
    correlations = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in channels]
    expected = (1 - torch.stack(correlations).mean()) * (40 - 1) / 40
    assert pearson_loss(student, teacher).item() == pytest.approx(expected.item(), rel=1e-12)


def test_channels_are_normalised_over_the_whole_batch_and_not_image_by_image():
    student, teacher = random_pair((2, 3, 4, 5))
    apart = fmean(pearson_loss(student[b : b + 1], teacher[b : b + 1]).item() for b in range(2))
    student[1] += 10  # within each image nothing has changed
    teacher[1] += 10
    assert pearson_loss(student, teacher).item() < 0.2 * apart


def test_a_temperature_flattens_what_is_compared_and_its_square_keeps_the_gradient_in_scale():
    student, teacher = random_pair((1, 2, 4, 5))
    hot = channel_distribution_loss(student, teacher, tau=1e4)
    # To the first order softmax is linear: the divergence is half the variance of the difference over the positions.
    difference = (student - teacher).flatten(2)
    assert hot.item() == pytest.approx(difference.var(2, correction=0).mean().item() / 2, rel=1e-2)


@pytest.mark.parametrize("value", [0.0, 1e-30, 3.7, 12345.678])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_constant_channels_give_a_finite_loss_and_no_gradient_where_they_are_normalised(kind, loss, dtype, value):
    student = torch.full((2, 3, 4, 5), value, dtype=dtype, requires_grad=True)
    teacher = random_pair((2, 3, 4, 5))[1].to(dtype)
    found = loss(student, teacher)
    found.backward()
    assert torch.isfinite(found)
    assert torch.isfinite(student.grad).all()
    if kind == "pkd":
        assert found.item() == pytest.approx(39 / 80, rel=0.01)  # the teacher's alone: (m - 1) / 2m
        assert not student.grad.any()


@pytest.mark.parametrize("value", [0.0, 3.7, -12345.678])
def test_what_rounding_leaves_of_a_constant_channel_is_constant(value):
    student = torch.full((2, 3, 4, 5), value)
    student[..., ::2] = torch.nextafter(student[..., ::2], torch.tensor(math.inf))
    pearson_loss(student.requires_grad_(), random_pair((2, 3, 4, 5))[1].float()).backward()
    assert not student.grad.any()


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_small_and_large_features_give_finite_losses_and_gradients_in_float32(loss, scale):
    student, teacher = (side.float() * scale for side in random_pair((2, 3, 4, 5)))
    student.requires_grad_()
    found = loss(student, teacher)
    found.backward()
    assert torch.isfinite(found)
    assert torch.isfinite(student.grad).all()


def test_one_position_of_one_image_has_nothing_to_normalise(kind, loss):
    student, teacher = random_pair((1, 3, 1, 1))
    found = loss(student.requires_grad_(), teacher)
    found.backward()
    assert torch.isfinite(student.grad).all()
    assert found.item() == pytest.approx((student - teacher).square().mean().item() if kind == "mse" else 0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_lower_precision_stays_within_its_tolerance(loss, dtype, tolerance):
    student, teacher = random_pair((2, 3, 4, 5))
    found = loss(student.to(dtype), teacher.to(dtype))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(loss(student, teacher).item(), rel=tolerance)


def test_features_of_two_precisions_are_compared_in_the_higher_one(loss):
    student, teacher = random_pair((2, 3, 4, 5))
    found = loss(student.float().requires_grad_(), teacher)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(loss(student, teacher).item(), rel=1e-5)


def test_autocast_does_not_lower_the_precision(loss):
    student, teacher = (side.float() for side in random_pair((2, 3, 4, 5)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(student, teacher)
    assert torch.equal(inside, loss(student, teacher))


def test_channels_last_gives_the_same(loss):
    student, teacher = random_pair((2, 3, 4, 5))
    last = student.contiguous(memory_format=torch.channels_last)
    assert loss(last, teacher).item() == pytest.approx(loss(student, teacher).item(), rel=1e-12)


def test_shapes_are_checked_and_the_way_out_is_named(loss):
    with pytest.raises(ShapeError, match=r"differ in channels: give an adapter"):
        loss(torch.zeros(2, 4, 2, 2), torch.zeros(2, 3, 2, 2))
    with pytest.raises(ShapeError, match="same strides"):
        loss(torch.zeros(2, 4, 2, 2), torch.zeros(2, 4, 2, 3))
    with pytest.raises(ShapeError, match=r"expected features \(B, C, H, W\)"):
        loss(torch.zeros(2, 4), torch.zeros(2, 4))


def test_a_compiled_loss_equals_the_eager_one(loss):
    results = []
    for function in (loss, torch.compile(loss, backend="aot_eager")):
        student, teacher = random_pair((2, 3, 4, 5))
        found = function(student.requires_grad_(), teacher)
        found.backward()
        results.append(torch.cat([student.grad.flatten(), found.detach().reshape(1)]))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


# As a term of the pyramid


def levels(channels, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, size, size + 1, generator=generator) for size in (6, 3, 1)]


def term_of(kind, reduce="sum", **weights):
    torch.manual_seed(0)
    return PyramidTerm([(4, 5)] * 3, PyramidPlan(kind=kind, **weights), reduce)


@pytest.mark.parametrize(("reduce", "share"), [("sum", 1), ("mean", 1 / 3)])
def test_the_term_is_the_weighted_loss_of_the_adapted_maps_of_all_levels(kind, reduce, share):
    term = term_of(kind, reduce, weight=1.5, **({"tau": TAU} if kind == "cwd" else {}))
    student, teacher = levels(4, 1), levels(5, 2)
    found = term(student, teacher, regions=None)  # no box is asked for
    adapted = [adapter(level) for adapter, level in zip(term.adapters, student, strict=True)]
    expected = sum(LOSSES[kind][0](*pair).item() for pair in zip(adapted, teacher, strict=True))
    assert set(found) == {f"pyramid_{kind}"}
    assert found[f"pyramid_{kind}"].item() == pytest.approx(1.5 * share * expected, rel=1e-5)
    found[f"pyramid_{kind}"].backward()
    assert all(adapter.weight.grad.any() for adapter in list(term.adapters)[:2])


def test_a_kind_has_the_adapters_that_cskd_has(kind):
    assert [p.shape for p in term_of(kind).parameters()] == [p.shape for p in term_of("cskd").parameters()]


def test_another_number_of_levels_is_refused(kind):
    with pytest.raises(ShapeError, match="2 pyramid levels of the student and 3 of the teacher: expected 3 of each"):
        term_of(kind)(levels(4, 1)[:2], levels(5, 2), regions=None)
