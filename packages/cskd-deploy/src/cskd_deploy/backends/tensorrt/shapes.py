"""The shapes that an engine is built for: fixed ones, or for each dynamic input a profile of min, opt and max."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cskd_deploy.backends.base import INPUT
from cskd_deploy.detect.preprocess import padded_size
from cskd_deploy.errors import DeployError
from cskd_deploy.model.manifest import Manifest

Shape = tuple[int, ...]
LARGEST_BATCH = 8  # of a profile, where no option gives another
_OPTION = re.compile(r"(?P<name>[^:=,\s]+):(?P<shape>\d+(x\d+)*)")


@dataclass(frozen=True)
class ShapeRange:
    """An engine takes an input from `min` to `max`, fastest at `opt`: the three of a profile. All are one if fixed."""

    min: Shape
    opt: Shape
    max: Shape

    def __post_init__(self) -> None:
        lengths = {len(self.min), len(self.opt), len(self.max)}
        triples = zip(self.min, self.opt, self.max, strict=False)
        if len(lengths) > 1 or not all(1 <= low <= middle <= high for low, middle, high in triples):
            raise ValueError(f"{self} is no range: expected min <= opt <= max in every dimension, from 1 on")

    def holds(self, shape: Shape) -> bool:
        """Whether an engine of this range takes `shape`."""
        if len(shape) != len(self.opt):
            return False
        return all(low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True))

    @property
    def is_range(self) -> bool:
        """Whether any dimension is dynamic."""
        return self.min != self.max

    def to_list(self) -> list[list[int]]:
        """Plain data: min, opt, max."""
        return [list(self.min), list(self.opt), list(self.max)]

    def __str__(self) -> str:
        if not self.is_range:
            return written(self.opt)
        return f"min {written(self.min)}, opt {written(self.opt)}, max {written(self.max)}"


@dataclass(frozen=True)
class ProfileShapes:
    """What is given of a profile, by input; `input_ranges` chooses the rest."""

    min: Mapping[str, Shape] = field(default_factory=dict)
    opt: Mapping[str, Shape] = field(default_factory=dict)
    max: Mapping[str, Shape] = field(default_factory=dict)


Profile = dict[str, ShapeRange]  # by input


def profile_for(profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> int | None:
    """The number of the smallest profile that holds these shapes; None where none does.

    The smallest is the one of the smallest largest shapes; among equals, the one that is fastest nearest to `shapes`.
    """

    def key(number: int) -> tuple[int, int, int]:
        profile = profiles[number]
        apart = sum(abs(math.prod(one.opt) - math.prod(shapes[name])) for name, one in profile.items())
        return sum(math.prod(one.max) for one in profile.values()), apart, number

    holding = [
        number
        for number, profile in enumerate(profiles)
        if all(one.holds(shapes[name]) for name, one in profile.items())
    ]
    return min(holding, key=key, default=None)


def range_from_list(data: Sequence[Sequence[int]]) -> ShapeRange:
    """The range that `to_list` gave.

    Raises:
        ValueError: it is no range.
    """
    lowest, optimal, highest = (tuple(int(size) for size in shape) for shape in data)
    return ShapeRange(lowest, optimal, highest)


def profiles_from_lists(data: Sequence[Mapping[str, Any]]) -> tuple[Profile, ...]:
    """The profiles of which each range was written by `to_list`.

    Raises:
        ValueError: one is no range.
    """
    return tuple({str(name): range_from_list(one) for name, one in profile.items()} for profile in data)


def written(shape: Sequence[int]) -> str:
    """A shape as the options have it: 1x3x320x416."""
    return "x".join(map(str, shape))


def parse_shapes(text: str) -> dict[str, Shape]:
    """Read `image:1x3x320x320,image_shape:1x2`, as trtexec writes shapes.

    Raises:
        ValueError: it is written otherwise.
    """
    shapes = {}
    for part in text.split(","):
        match = _OPTION.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is not NAME:SHAPE")
        shapes[match["name"]] = tuple(int(size) for size in match["shape"].split("x"))
    return shapes


def profiles_of(inputs: Mapping[str, Shape], model: Manifest, given: Sequence[ProfileShapes]) -> tuple[Profile, ...]:
    """The optimization profiles of a graph, each as `input_ranges` makes it.

    Raises:
        DeployError: as `input_ranges`; also two that are the same, as all of a graph without dynamic inputs are, or
            none that takes a single image where the batch is not the same in all.
    """
    profiles: list[Profile] = []
    for number, shapes in enumerate(given):
        try:
            profile = input_ranges(inputs, model, shapes)
        except DeployError as error:
            raise DeployError(f"profile {number}: {error}" if len(given) > 1 else str(error)) from error
        if profile in profiles:
            same = f"profile {number} is profile {profiles.index(profile)} again"
            fixed = "" if any(-1 in shape for shape in inputs.values()) else ", for the graph has no dynamic input"
            raise DeployError(f"{same}{fixed}: leave --trt profile={number} out, or give it shapes of its own")
        profiles.append(profile)
    batches = [(profile[INPUT].min[0], profile[INPUT].max[0]) for profile in profiles if INPUT in profile]
    if len({size for ends in batches for size in ends}) > 1 and min(batches)[0] > 1:
        raise DeployError(
            f"no profile takes a single image, with which the engine is compared and `infer` runs; the least batch is "
            f"{min(batches)[0]}: let one begin at 1 (--trt minShapes)"
        )
    return tuple(profiles)


def input_ranges(inputs: Mapping[str, Shape], model: Manifest, shapes: ProfileShapes) -> Profile:
    """The range of each input of a graph in a profile.

    What no option names is chosen. Height and width begin at the padding's divisor, are fastest at the canvas of the
    test scale, and end at a square of its longer edge, so that lying and upright images fit; of a graph that takes no
    sizes but its canvases they go from the least of these to the largest, fastest at the first. A dynamic batch goes
    from 1, where it is fastest, to `LARGEST_BATCH`; other inputs have as many rows as there are images.

    Args:
        inputs: of the graph; -1 where a dimension is dynamic.
        model: whose graph it is.
        shapes: what is given.

    Raises:
        DeployError: an option names no input, changes a fixed dimension, or the three are no range.
    """
    given = {"minShapes": shapes.min, "optShapes": shapes.opt, "maxShapes": shapes.max}
    defaults = _defaults(model)
    for option, chosen in given.items():
        for name, shape in chosen.items():
            _check_given(option, name, shape, inputs)
    ranges = {}
    for name, shape in inputs.items():
        three = [
            chosen.get(name)
            or tuple(size if size >= 0 else default(axis, shape, chosen) for axis, size in enumerate(shape))
            for chosen, default in zip(given.values(), defaults, strict=True)
        ]
        try:
            ranges[name] = ShapeRange(*three)
        except ValueError as error:
            raise DeployError(f"input {name}: {error} (--trt {', '.join(given)})") from error
    return ranges


def _defaults(model: Manifest) -> tuple[Any, Any, Any]:
    """For min, opt and max: the size of a dynamic axis of an input, besides what is given."""
    rule = model.preprocessing
    canvases = rule.canvases or (padded_size((rule.scale[1], rule.scale[0]), rule.pad_divisor),)
    if rule.canvases:
        heights, widths = zip(*canvases, strict=True)
        lowest, highest = (min(heights), min(widths)), (max(heights), max(widths))
    else:
        lowest, highest = (rule.pad_divisor, rule.pad_divisor), (max(canvases[0]), max(canvases[0]))
    first = 1 if model.graph.input == "uint8" else 2  # the axis of the height: NHWC or NCHW

    def chosen(size: tuple[int, int], batch: int) -> Any:
        def default(axis: int, shape: Shape, given: Mapping[str, Shape]) -> int:
            if len(shape) == 4 and axis >= first:
                return size[axis - first]
            return given[INPUT][0] if INPUT in given else batch  # as many sizes of images as images

        return default

    return chosen(lowest, 1), chosen(canvases[0], 1), chosen(highest, LARGEST_BATCH)


def _check_given(option: str, name: str, shape: Shape, inputs: Mapping[str, Shape]) -> None:
    if name not in inputs:
        raise DeployError(f"--trt {option} names {name!r}; the inputs are {', '.join(inputs)}")
    fixed = inputs[name]
    fits = len(shape) == len(fixed) and all(size in (-1, got) for size, got in zip(fixed, shape, strict=True))
    if not fits:
        expected = "x".join("?" if size < 0 else str(size) for size in fixed)
        raise DeployError(
            f"--trt {option} gives {name} as {written(shape)}, the graph has {expected}: only what is ? can be chosen"
            + ("" if -1 in fixed else " (export it without --input-size, or with --batch any, for that)")
        )
