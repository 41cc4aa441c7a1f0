"""A frozen teacher without its BatchNorms: each is a scale and a shift, which the convolution before it takes in."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cskd_core.family import Family, Observation
from cskd_core.teacher import FrozenTeacher

IMAGES = (1, 3, 256, 256)
"""Whole cells at every stride, as NAS-FPN wants, and several on the coarsest level: of a single one, group norms leave
nothing but rounding."""
TOLERANCE = 1e-4
"""Of a feature map, relative to its largest value: rounding leaves a hundredth of it."""


def folded(teacher: nn.Module, family: Family) -> nn.Module:
    """The teacher in eval mode, each BatchNorm folded into the convolution whose output it alone takes.

    One forward shows which these are. What is not that simple stays as it is: a convolution that feeds several norms
    (levels that share a head but not its norms), a norm that several convolutions feed, an operation between the two.
    Where the features are not the same afterwards, because something else reads the output of a convolution too, the
    teacher itself comes back.

    Args:
        teacher: a detector with its weights loaded, on the processor; it stays as it is.
        family: of the student.
    """
    if not any(isinstance(module, _BatchNorm) for module in teacher.modules()):
        return teacher
    images = torch.randn(IMAGES, generator=torch.Generator().manual_seed(0))
    plain = FrozenTeacher(teacher, family)
    pairs, before = _watch(plain, images)
    if not pairs:
        return teacher
    lighter: nn.Module = copy.deepcopy(teacher)
    modules = dict(lighter.named_modules())
    for convolution, norm in pairs.items():
        _fold(modules[convolution], modules[norm])
        parent, _, name = norm.rpartition(".")
        setattr(modules[parent], name, nn.Identity())
    after = FrozenTeacher(lighter, family).observe(images)
    same = all(_close(*pair) for pair in zip(_maps(before), _maps(after), strict=True))
    return lighter if same else teacher


def _watch(teacher: FrozenTeacher, images: Tensor) -> tuple[dict[str, str], Observation]:
    """Names of convolutions and of the norm that each feeds, both of one only; and what the teacher shows meanwhile."""
    outputs: dict[int, tuple[str, Tensor, int]] = {}  # held, so that no other tensor gets its id
    norms_of, sources_of = defaultdict(set), defaultdict(set)
    handles = []

    def convolved(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Tensor) -> None:
            outputs[id(output)] = name, output, output._version

        return hook

    def normalises(name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            source, _, version = outputs.get(id(arguments[0]), ("", None, -1))
            if version != arguments[0]._version:  # of something else, or changed in place
                source = ""
            norms_of[source].add(name)
            sources_of[name].add(source)

        return hook

    for name, module in teacher.detector.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(convolved(name)))
        elif isinstance(module, _BatchNorm):
            handles.append(module.register_forward_pre_hook(normalises(name)))
    try:
        observation = teacher.observe(images)
    finally:
        for handle in handles:
            handle.remove()
    modules = dict(teacher.detector.named_modules())
    pairs = {
        source: norm
        for norm, (source, *others) in sources_of.items()
        if source and not others and len(norms_of[source]) == 1 and _can_fold(modules[source], modules[norm])
    }
    return pairs, observation


def _can_fold(convolution: nn.Module, norm: nn.Module) -> bool:
    """Whether the one multiplies by its weight as it is, and the other goes by what it has seen in training."""
    plain = type(convolution) is nn.Conv2d and isinstance(convolution._parameters.get("weight"), nn.Parameter)
    return plain and getattr(norm, "running_mean", None) is not None


@torch.no_grad()
def _fold(convolution: Any, norm: Any) -> None:
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale *= norm.weight.double()
    bias = -norm.running_mean.double() if convolution.bias is None else convolution.bias - norm.running_mean.double()
    bias *= scale
    if norm.bias is not None:
        bias += norm.bias.double()
    weight = convolution.weight
    convolution.bias = nn.Parameter(bias.to(weight))
    weight.copy_(weight.double() * scale.view(-1, 1, 1, 1))


def _maps(observation: Observation) -> Iterator[Tensor]:
    yield from observation.pyramid
    for tower in observation.towers.values():
        for stage in tower:
            yield from stage
    for levels in observation.predictions.values():
        yield from levels


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= TOLERANCE * one.abs().max())
