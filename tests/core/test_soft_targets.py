"""The soft focal loss against its equation, its gradient, and its extremes."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from cskd_core.errors import ShapeError
from cskd_core.soft_targets import soft_focal_loss


def test_worked_example():
    """docs/algorithm.md, appendix B."""
    elements = zip(torch.tensor([0.3, -1.2, 2.0]), torch.tensor([0.2, 0.9, 0.0]), strict=True)
    losses = [soft_focal_loss(logit, target).item() for logit, target in elements]
    assert losses == pytest.approx([0.15317499, 0.20591206, 1.23755863], abs=5e-8)


def test_loss_equals_its_equation():
    torch.manual_seed(0)
    logits, targets = 4 * torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.rand(2, 3, 4, 5, dtype=torch.float64)
    p = logits.sigmoid()
    q = (1 - p) * targets + p * (1 - targets)
    entropy = -(targets * p.log() + (1 - targets) * (1 - p).log())
    expected = (0.25 * targets + 0.75 * (1 - targets)) * q**2 * entropy
    torch.testing.assert_close(soft_focal_loss(logits, targets), expected.sum(), rtol=1e-12, atol=0)
    weights = torch.rand(2, 1, 4, 5, dtype=torch.float64)
    weighted = (expected * weights).sum()
    torch.testing.assert_close(soft_focal_loss(logits, targets, weights), weighted, rtol=1e-12, atol=0)


def test_gradient_equals_finite_differences():
    torch.manual_seed(0)
    logits = (3 * torch.randn(6, 4, dtype=torch.float64)).requires_grad_()
    targets = torch.rand(6, 4, dtype=torch.float64)
    assert gradcheck(lambda x: 3 * soft_focal_loss(x, targets), logits)
    weights = torch.rand(6, 1, dtype=torch.float64)
    assert gradcheck(lambda x: soft_focal_loss(x, targets, weights), logits)


def test_large_logits_stay_finite():
    logits = torch.tensor([100.0, -100.0, 100.0, -100.0], requires_grad=True)
    loss = soft_focal_loss(logits, torch.tensor([0.0, 1.0, 1.0, 0.0]))
    loss.backward()
    assert loss.item() == pytest.approx(100.0)
    assert logits.grad.tolist() == pytest.approx([0.75, -0.25, 0.0, 0.0])


def test_shapes_that_differ_are_refused():
    with pytest.raises(ShapeError, match=r"logits \(2,\) and targets \(3,\) differ"):
        soft_focal_loss(torch.zeros(2), torch.zeros(3))


def test_a_graph_of_the_gradient_is_an_error_and_not_one_that_lacks_a_part():
    logits = torch.randn(4, requires_grad=True)
    total = logits.square().sum() + soft_focal_loss(logits, torch.rand(4))
    with pytest.raises(RuntimeError, match=r"soft focal loss has no second derivative: .* without create_graph"):
        torch.autograd.grad(total, logits, create_graph=True)


def test_no_elements_give_a_zero_that_is_connected_to_the_graph():
    logits = torch.zeros(0, 3, requires_grad=True)
    loss = soft_focal_loss(logits, torch.zeros(0, 3))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.shape == (0, 3)
