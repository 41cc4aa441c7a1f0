"""The cosine-guided loss against a slow, obvious reference, its gradient, and its extremes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.multiprocessing.reductions import StorageWeakRef

from cskd_core import guided
from cskd_core.errors import ShapeError
from cskd_core.similarity import (
    Comparison,
    CosineGuidedLoss,
    LossOptions,
    Variant,
    compare,
    cosine_guided_loss,
    cosine_guided_losses,
    cosine_guided_vector_loss,
    masked_cosine_guided_loss,
)


def worked_example():
    """The inputs of docs/algorithm.md, appendix B."""
    b, c, y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (2, 3, 4, 5)), indexing="ij")
    student = torch.sin(0.7 * b + 0.3 * c + 0.11 * y + 0.05 * x + 0.2) + 0.1 * c
    teacher = torch.cos(0.5 * b + 0.21 * c - 0.07 * y + 0.13 * x) + 0.05 * c
    return student, teacher


def slow_loss(student, teacher, weight, avg_factor=None):
    """The equations of docs/algorithm.md 1.1, element by element."""

    def cosine(a, b):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / (max(math.hypot(*a), 1e-6) * max(math.hypot(*b), 1e-6))

    images, channels, height, width = student.shape
    s, t = student.flatten(2).tolist(), teacher.flatten(2).tolist()
    positions = height * width
    u = [[1 - cosine(s[b][c], t[b][c]) for c in range(channels)] for b in range(images)]
    column = lambda x, b, p: [x[b][c][p] for c in range(channels)]  # noqa: E731
    v = [[1 - cosine(column(s, b, p), column(t, b, p)) for p in range(positions)] for b in range(images)]
    guided, spatial = 0.0, 0.0
    for b in range(images):
        for p in range(positions):
            spatial += v[b][p]
            guided += sum(abs(u[b][c] * v[b][p]) * (s[b][c][p] - t[b][c][p]) ** 2 for c in range(channels))
    channel = sum(map(sum, u)) / (images * channels)
    guided /= avg_factor or images * channels * positions
    spatial /= avg_factor or images * positions
    return weight[0] * guided + weight[1] * (channel + spatial)


@pytest.mark.parametrize("avg_factor", [None, 7.0])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 2, 2), (2, 4, 1, 1)])
def test_loss_equals_the_equations_element_by_element(shape, avg_factor):
    student, teacher = random_pair(shape)
    loss = cosine_guided_loss(student, teacher, (1.3, 0.7), avg_factor)
    assert loss.item() == pytest.approx(slow_loss(student, teacher, (1.3, 0.7), avg_factor), rel=1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 2, 2)])
def test_masked_losses_equal_the_equations_of_the_masked_features(shape):
    student, teacher = random_pair(shape)
    full = torch.ones(shape[0], *shape[2:], dtype=torch.float64)
    mask = full.clone()
    mask[:, 0] = 0
    variants = [
        Variant((1.3, 0.7), mask),
        Variant((0.2, 2.0)),
        Variant((1.0, 0.5), 1 - mask),
        Variant((1, 0), None, 3.0),
    ]
    losses = cosine_guided_losses(student, teacher, variants)
    expected = []
    for variant in variants:
        area = (full if variant.mask is None else variant.mask).unsqueeze(1)
        elements = variant.avg_factor if variant.mask is None else variant.mask.sum().item() * shape[1]
        expected.append(slow_loss(student * area, teacher * area, variant.weight, elements))
    assert losses.tolist() == pytest.approx(expected, rel=1e-12)


def random_pair(shape):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, *shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("weight", "expected"), [((1, 0), 0.000309746), ((0, 1), 0.071521575), ((1, 0.5), 0.036070534)]
)
def test_worked_example_of_the_whole_map(weight, expected):
    assert cosine_guided_loss(*worked_example(), weight).item() == pytest.approx(expected, abs=5e-10)


def test_guidance_carries_gradient_as_in_the_worked_example():
    student, teacher = worked_example()
    student.requires_grad_()
    cosine_guided_loss(student, teacher, (1.0, 0.0)).backward()
    assert student.grad.norm().item() == pytest.approx(7.98347e-4, rel=1e-5)
    assert student.grad[0, 0, 0, 0].item() == pytest.approx(-3.84528e-4, rel=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_gradient_equals_finite_differences(masked):
    torch.manual_seed(0)
    student = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 2, 3, dtype=torch.float64)
    mask = (torch.rand(2, 2, 3) > 0.5).double()
    loss = (
        (lambda s: masked_cosine_guided_loss(s, teacher, mask))
        if masked
        else (lambda s: cosine_guided_loss(s, teacher))
    )
    assert gradcheck(loss, (student,))


def test_module_equals_function():
    student, teacher = worked_example()
    mask = torch.zeros(2, 4, 5)
    mask[:, 1:3] = 1
    module = CosineGuidedLoss((2.0, 0.3))
    assert torch.equal(module(student, teacher), cosine_guided_loss(student, teacher, (2.0, 0.3)))
    assert torch.equal(module(student, teacher, mask), masked_cosine_guided_loss(student, teacher, mask, (2.0, 0.3)))


@pytest.mark.parametrize("guidance_min", [None, 0.1])
def test_nothing_flows_to_the_teacher(guidance_min):
    student, teacher = (x.requires_grad_() for x in worked_example())
    cosine_guided_loss(student, teacher, options=LossOptions(guidance_min=guidance_min)).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_masked_out_positions_add_a_constant_and_no_gradient():
    student, teacher = worked_example()
    mask = torch.zeros(2, 4, 5, dtype=torch.float64)
    mask[:, :2, :2] = 1
    student.requires_grad_()
    loss = masked_cosine_guided_loss(student, teacher, mask, (0.0, 1.0))
    loss.backward()
    assert student.grad[:, :, 2:].abs().max() == 0
    outside = (40 - 8) / (8 * 3)
    assert loss.item() > outside


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_features_give_finite_loss_and_gradient(value, dtype):
    student = torch.full((1, 4, 2, 2), value, dtype=dtype, requires_grad=True)
    loss = cosine_guided_loss(student, torch.zeros(1, 4, 2, 2, dtype=dtype))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_identical_inputs_cost_nothing():
    student, _ = worked_example()
    assert cosine_guided_loss(student, student.clone()).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("avg_factor", [None, 2.0])
@pytest.mark.parametrize("guidance_min", [None, 0.1])
def test_no_features_give_zeros_that_are_connected_to_the_graph(guidance_min, avg_factor):
    student = torch.zeros(0, 4, 7, 7, requires_grad=True)
    variants = [Variant((1.0, 0.5), None, avg_factor), Variant((2.0, 1.0), torch.zeros(0, 7, 7))]
    options = LossOptions(guidance_min=guidance_min)
    losses = cosine_guided_losses(student, torch.zeros(0, 4, 7, 7), variants, options)
    losses.sum().backward()
    assert losses.tolist() == [0.0, 0.0]
    assert student.grad.shape == student.shape


@pytest.mark.parametrize("avg_factor", [0, 0.0, -1.0, math.nan])
def test_a_normaliser_that_is_not_positive_is_refused(avg_factor):
    student, teacher = random_pair((1, 2, 3, 3))
    with pytest.raises(ValueError, match=f"avg_factor = {avg_factor}: expected a positive number, or None"):
        cosine_guided_loss(student, teacher, avg_factor=avg_factor)


@pytest.mark.parametrize("avg_factor", [5.0, torch.tensor(5.0)])
def test_a_normaliser_beside_a_mask_is_refused(avg_factor):
    student, teacher = random_pair((1, 2, 3, 3))
    with pytest.raises(
        ValueError, match=r"under a mask the number of masked elements normalises\. Leave avg_factor out"
    ):
        CosineGuidedLoss()(student, teacher, torch.ones(1, 3, 3), avg_factor=avg_factor)


def test_a_normaliser_in_a_tensor_divides_as_it_is():
    student, teacher = random_pair((1, 2, 3, 3))
    assert not cosine_guided_loss(student, teacher, avg_factor=torch.tensor(0.0)).isfinite()
    found = cosine_guided_loss(student, teacher, avg_factor=torch.tensor(2.5))
    assert torch.equal(found, cosine_guided_loss(student, teacher, avg_factor=2.5))


def test_a_graph_of_the_gradient_is_an_error_and_not_one_that_lacks_a_part():
    student, teacher = random_pair((1, 2, 3, 3))
    student.requires_grad_()
    total = student.square().sum() + cosine_guided_loss(student, teacher)
    with pytest.raises(RuntimeError, match=r"cosine-guided loss has no second derivative: .* without create_graph"):
        torch.autograd.grad(total, student, create_graph=True)


def test_empty_mask_is_zero_and_connected_to_the_graph():
    student = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = masked_cosine_guided_loss(student, torch.randn(1, 3, 4, 4), torch.zeros(1, 4, 4))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_lower_precision_stays_within_its_tolerance(dtype, tolerance):
    student, teacher = worked_example()
    exact = cosine_guided_loss(student, teacher).item()
    loss = cosine_guided_loss(student.to(dtype), teacher.to(dtype))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=tolerance)


def test_autocast_does_not_lower_the_precision():
    student, teacher = (x.float() for x in worked_example())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = cosine_guided_loss(student, teacher)
    assert torch.equal(inside, cosine_guided_loss(student, teacher))


def test_channels_last_gives_the_same():
    student, teacher = worked_example()
    last = student.contiguous(memory_format=torch.channels_last)
    assert cosine_guided_loss(last, teacher).item() == pytest.approx(
        cosine_guided_loss(student, teacher).item(), rel=1e-12
    )


def test_shapes_are_checked_and_the_way_out_is_named():
    with pytest.raises(
        ShapeError, match=r"student \(2, 4, 2, 2\) and teacher \(2, 3, 2, 2\) differ in channels: give an"
    ):
        cosine_guided_loss(torch.zeros(2, 4, 2, 2), torch.zeros(2, 3, 2, 2))
    with pytest.raises(ShapeError, match="same strides"):
        cosine_guided_loss(torch.zeros(2, 4, 2, 2), torch.zeros(2, 4, 2, 3))
    with pytest.raises(ShapeError, match=r"mask \(2, 3\): expected \(2, 2, 2\)"):
        masked_cosine_guided_loss(torch.zeros(2, 4, 2, 2), torch.zeros(2, 4, 2, 2), torch.zeros(2, 3))
    with pytest.raises(ShapeError, match=r"expected features \(B, C, H, W\)"):
        cosine_guided_loss(torch.zeros(2, 4), torch.zeros(2, 4))


def test_detached_guidance_gives_the_same_loss_and_the_gradient_of_the_worked_example():
    student, teacher = worked_example()
    student.requires_grad_()
    loss = cosine_guided_loss(student, teacher, (1.0, 0.0), options=LossOptions(detach_guidance=True))
    assert loss.item() == pytest.approx(0.000309746, abs=5e-10)
    loss.backward()
    assert student.grad.norm().item() == pytest.approx(1.63274e-4, rel=1e-5)
    assert student.grad[0, 0, 0, 0].item() == pytest.approx(-5.84618e-5, rel=1e-5)


@pytest.mark.parametrize("eps_mode", ["separate", "product"])
@pytest.mark.parametrize(("detach", "count_outside"), [(False, True), (True, True), (False, False)])
def test_the_backward_written_by_hand_is_the_one_that_autograd_finds(detach, count_outside, eps_mode):
    gradients = []
    for bound in (None, 0.0):  # a bound of 0 bounds nothing, and is left to autograd
        student, teacher = random_pair((2, 3, 4, 5))
        student[0, :, 0, 0] = 0  # a position without a norm
        student = student.requires_grad_()
        mask = (torch.arange(20).reshape(4, 5) % 3 > 0).double().repeat(2, 1, 1)
        mask[1] = 0  # nothing in the second image
        variants = [
            Variant((1.3, 0.7)),
            Variant((1, 0.5), mask),
            Variant((2, 0.1), 1 - mask),
            Variant((1, 1), None, 9.0),
        ]
        options = LossOptions(detach, guidance_min=bound, count_outside=count_outside, eps_mode=eps_mode)
        losses = cosine_guided_losses(student, teacher, variants, options)
        (losses * torch.tensor([1.0, -0.3, 2.0, 0.5])).sum().backward()
        gradients.append(torch.cat([student.grad.flatten(), losses.detach()]))
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_a_lower_bound_of_the_guidance_keeps_the_squared_error_alive(masked):
    student, teacher = worked_example()
    mask = torch.ones(2, 4, 5, dtype=torch.float64)
    mask[1] = 0
    squares = (student - teacher).square()
    everywhere = (squares * mask.unsqueeze(1)).sum() if masked else squares.sum()
    options = LossOptions(guidance_min=2.0)  # above every guidance: the squared error is weighted by it alone
    elements = mask.sum().item() * 3 if masked else squares.numel()
    loss = CosineGuidedLoss((1.0, 0.0), options)(student, teacher, mask if masked else None)
    assert loss.item() == pytest.approx(2.0 * everywhere.item() / elements, rel=1e-12)
    zero = cosine_guided_loss(student, teacher, (1.0, 0.0), options=LossOptions(guidance_min=0.0))
    assert zero.item() == pytest.approx(0.000309746, abs=5e-10)


def test_positions_outside_the_mask_can_be_left_uncounted():
    student, teacher = worked_example()
    mask = torch.zeros(2, 4, 5, dtype=torch.float64)
    mask[0, 1:3, 2:4] = 1  # nothing in the second image
    counted = masked_cosine_guided_loss(student, teacher, mask, (0.0, 1.0))
    alone = masked_cosine_guided_loss(student, teacher, mask, (0.0, 1.0), LossOptions(count_outside=False))
    s, t = student[:1, :, 1:3, 2:4], teacher[:1, :, 1:3, 2:4]
    channel = 1 - torch.cosine_similarity(s.flatten(2), t.flatten(2), dim=2)
    spatial = 1 - torch.cosine_similarity(s, t, dim=1)
    assert alone.item() == pytest.approx(channel.mean().item() + spatial.sum().item() / (4 * 3), rel=1e-9)
    # 36 positions at distance 1, over 4 masked positions of 3 channels; an image without any at channel distance 1.
    assert counted.item() == pytest.approx(channel.mean().item() / 2 + 0.5 + (36 + spatial.sum().item()) / 12, rel=1e-9)


def test_uncounted_positions_change_no_gradient_when_every_image_has_a_masked_one():
    student, teacher = worked_example()
    mask = torch.zeros(2, 4, 5, dtype=torch.float64)
    mask[:, 1:3, 2:4] = 1
    gradients = []
    for options in (LossOptions(), LossOptions(count_outside=False)):
        leaf = student.clone().requires_grad_()
        masked_cosine_guided_loss(leaf, teacher, mask, options=options).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def test_the_product_clamp_differs_only_for_vectors_that_are_nearly_zero():
    options = LossOptions(eps_mode="product")
    student, teacher = worked_example()
    product = cosine_guided_loss(student, teacher, options=options)
    assert product.item() == pytest.approx(cosine_guided_loss(student, teacher).item(), rel=1e-12)
    # One position and one channel, 1e-5 and 1e-5: their product is below 1e-6, each norm is above.
    tiny = torch.full((1, 1, 1, 1), 1e-5, dtype=torch.float64)
    assert cosine_guided_loss(tiny, tiny, (0.0, 1.0)).item() == pytest.approx(0, abs=1e-12)
    assert cosine_guided_loss(tiny, tiny, (0.0, 1.0), options=options).item() == pytest.approx(2 * (1 - 1e-4))
    vector = tiny.flatten(1)
    assert cosine_guided_vector_loss(vector, vector, (0.0, 1.0)).item() == pytest.approx(0, abs=1e-12)
    assert cosine_guided_vector_loss(vector, vector, (0.0, 1.0), options).item() == pytest.approx(1 - 1e-4)


def test_vectors_of_the_worked_example():
    student = torch.tensor([[1.0, 2.0, -0.5], [0.2, -1.0, 3.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.5, 1.0, 0.5], [1.0, -1.0, 2.0]], dtype=torch.float64)
    assert cosine_guided_vector_loss(student, teacher, (1, 0)).item() == pytest.approx(0.094103345, abs=5e-10)
    assert cosine_guided_vector_loss(student, teacher, (0, 1)).item() == pytest.approx(0.135276872, abs=5e-10)
    assert cosine_guided_vector_loss(student, teacher).item() == pytest.approx(0.229380217, abs=5e-10)


def test_gradient_of_vectors_equals_finite_differences_and_none_reaches_the_teacher():
    torch.manual_seed(0)
    student = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda s: cosine_guided_vector_loss(s, teacher.detach()), student)
    cosine_guided_vector_loss(student, teacher).backward()
    assert teacher.grad is None


def test_options_of_vectors_act_on_the_guidance():
    student = torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    bounded = cosine_guided_vector_loss(student, teacher, (1, 0), LossOptions(guidance_min=3.0))
    assert bounded.item() == pytest.approx(3.0 * 2 / 2)
    cosine_guided_vector_loss(student, teacher, (1, 0), LossOptions(detach_guidance=True)).backward()
    # With the guidance 1 - 4/5 fixed, the gradient is that of the squared error alone: 0.2 * (S - T).
    assert student.grad.tolist() == [[pytest.approx(-0.2), pytest.approx(0.2)]]


def test_no_vectors_give_a_zero_that_is_connected_to_the_graph():
    student = torch.zeros(0, 4, requires_grad=True)
    loss = cosine_guided_vector_loss(student, torch.zeros(0, 4))
    loss.backward()
    assert loss.item() == 0
    assert student.grad.shape == (0, 4)


def test_vectors_of_other_lengths_are_refused():
    with pytest.raises(ShapeError, match=r"student \(2, 3\) and teacher \(2, 4\): expected vectors"):
        cosine_guided_vector_loss(torch.zeros(2, 3), torch.zeros(2, 4))


def test_compiled_losses_equal_eager_ones():
    mask = torch.zeros(2, 4, 5, dtype=torch.float64)
    mask[:, 1:3] = 1

    def both(student, teacher):
        return cosine_guided_losses(student, teacher, [Variant((1.3, 0.7)), Variant((1, 0.5), mask)]).sum()

    results = []
    # The graph is captured as for any backend; generating code would ask for a C++ compiler.
    for function in (both, torch.compile(both, backend="aot_eager")):
        student, teacher = random_pair((2, 3, 4, 5))
        loss = function(student.requires_grad_(), teacher)
        loss.backward()
        results.append(torch.cat([student.grad.flatten(), loss.detach().reshape(1)]))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


# Many pairs of features at once


SHAPES = [(2, 3, 4, 5), (1, 1, 2, 2), (3, 5, 2, 3), (2, 3, 4, 5), (0, 4, 7, 7)]


def many_comparisons():
    """Maps of several shapes, with and without masks, none empty but one without images and one under an empty mask."""
    comparisons = []
    for place, shape in enumerate(SHAPES):
        student, teacher = random_pair(shape) + place / 10
        mask = (torch.arange(math.prod(shape[2:])).reshape(shape[2:]) % 3 > 0).double().repeat(shape[0], 1, 1)
        if place == 2:  # nothing in its first image
            mask[0] = 0
        variants = [Variant((1.3 + place, 0.7), avg_factor=None if place else 9.0)]
        if place in (0, 2):
            variants += [Variant((0.5, 2.0), mask), Variant((1.0, 0.5), 1 - mask), Variant((1, 1), 0 * mask)]
        if place == 3:
            variants = [Variant((2.0, 0.25), mask), Variant((1.0, 3.0), avg_factor=torch.tensor(7.0))]
        comparisons.append(Comparison(student.requires_grad_(), teacher, variants))
    return comparisons


OPTIONS = [
    {},
    {"eps_mode": "product", "detach_guidance": True},
    {"count_outside": False},
    {"guidance_min": 0.2},
    {"guidance_min": 0.2, "count_outside": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options) or "published")
def test_many_pairs_at_once_are_each_as_it_is_alone(options):
    comparisons, options = many_comparisons(), LossOptions(**options)
    losses = compare(comparisons, options)
    alone = torch.cat([cosine_guided_losses(one.student, one.teacher, one.variants, options) for one in comparisons])
    torch.testing.assert_close(losses, alone, rtol=1e-12, atol=1e-14)
    weights = torch.linspace(-1, 2, len(losses), dtype=torch.float64)
    students = [one.student for one in comparisons]
    for found, expected in zip(
        torch.autograd.grad(losses @ weights, students), torch.autograd.grad(alone @ weights, students), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def test_many_pairs_at_once_equal_the_equations_element_by_element():
    losses = iter(compare(many_comparisons()).tolist())
    for place, (shape, one) in enumerate(zip(SHAPES, many_comparisons(), strict=True)):
        for variant in one.variants:
            found = next(losses)
            mask = torch.ones(shape[0], *shape[2:]) if variant.mask is None else variant.mask
            elements = variant.avg_factor if variant.mask is None else mask.sum().item() * shape[1]
            if not shape[0] or elements == 0:  # no images, or an empty mask
                assert found == 0
                continue
            student, teacher = (side.detach() * mask.unsqueeze(1) for side in (one.student, one.teacher))
            expected = slow_loss(student, teacher, variant.weight, None if elements is None else float(elements))
            assert found == pytest.approx(expected, rel=1e-12), place


def test_the_gradient_of_many_pairs_equals_finite_differences():
    others = many_comparisons()

    def losses(*students):
        return compare([Comparison(s, one.teacher, one.variants) for s, one in zip(students, others, strict=True)])

    assert gradcheck(losses, [one.student for one in others])


@pytest.mark.parametrize("masked", [False, True])
def test_many_images_are_worked_through_in_parts_without_a_difference(monkeypatch, masked):
    student, teacher = random_pair((5, 3, 4, 5))
    mask = (torch.arange(20).reshape(4, 5) % 3 > 0).double().expand(5, 4, 5)
    variants = [Variant((1.3, 0.7)), Variant((1, 0.5), mask)] if masked else [Variant((1.3, 0.7))]
    results = []
    for fewest in (2, 8):
        monkeypatch.setattr(guided, "CACHED_ELEMENTS", 1)
        monkeypatch.setattr(guided, "FEWEST_IMAGES", fewest)
        leaf = student.clone().requires_grad_()
        assert len(guided._parts(leaf)) == (3 if fewest == 2 else 1)
        losses = cosine_guided_losses(leaf, teacher, variants)
        losses.sum().backward()
        results.append(torch.cat([leaf.grad.flatten(), losses.detach()]))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


def test_the_features_of_a_pair_are_freed_as_soon_as_its_gradient_is_there():
    students = [torch.randn(2, 3, 20, requires_grad=True) for _ in range(3)]
    teachers = [torch.randn(2, 3, 20) for _ in students]
    kept, alive = [StorageWeakRef(teacher.untyped_storage()) for teacher in teachers], []
    for student in students:
        student.register_hook(lambda _: alive.append(sum(not one.expired() for one in kept)))
    losses = guided.guided_losses(torch.ones(3, 3), False, "separate", True, students, teachers, [None] * 3)
    del teachers
    losses.sum().backward()
    assert alive == [2, 1, 0]


def test_of_many_pairs_those_that_are_fixed_get_no_gradient():
    comparisons = many_comparisons()
    comparisons[2].student.requires_grad_(False)
    compare(comparisons).sum().backward()
    assert [one.student.grad is None for one in comparisons] == [False, False, True, False, False]


def test_pairs_of_two_precisions_are_compared_in_the_higher_one():
    (low, other), (high, third) = random_pair((2, 3, 4, 5)), random_pair((1, 2, 3, 3))
    low = low.float().requires_grad_()
    losses = compare([Comparison(low, other.float()), Comparison(high, third)])
    assert losses.dtype == torch.float64
    losses.sum().backward()
    assert low.grad.dtype == torch.float32
    assert losses[0].item() == pytest.approx(cosine_guided_loss(low, other.float()).item(), rel=1e-5)
