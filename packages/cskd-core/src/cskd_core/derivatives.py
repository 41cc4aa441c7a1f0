"""Backwards written by hand: they give the first derivative only."""

from __future__ import annotations

import torch


def refuse_second_derivative(loss: str) -> None:
    """To be called by a backward that is not differentiable itself.

    `torch.autograd.function.once_differentiable` is not enough: where the incoming gradient needs none, as that of a
    sum of losses, it lets the result pass as a constant, and the second derivative lacks a part without any error.

    Raises:
        RuntimeError: the backward is asked for a graph of its own (`create_graph=True`).
    """
    if torch.is_grad_enabled():
        raise RuntimeError(f"{loss} has no second derivative: take its gradient without create_graph=True")
