"""The shapes that an engine is built for: fixed ones, or for each dynamic input a smallest, a usual and a largest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cskd_deploy.backends.base import INPUT
from cskd_deploy.errors import DeployError
from cskd_deploy.model.manifest import Manifest

Shape = tuple[int, ...]
_OPTION = re.compile(r"(?P<name>[^:=,\s]+):(?P<shape>\d+(x\d+)*)")


@dataclass(frozen=True)
class ShapeRange:
    """An engine takes an input from `smallest` to `largest`, fastest at `usual`. All three are one of a fixed input."""

    smallest: Shape
    usual: Shape
    largest: Shape

    def __post_init__(self) -> None:
        lengths = {len(self.smallest), len(self.usual), len(self.largest)}
        triples = zip(self.smallest, self.usual, self.largest, strict=False)
        if len(lengths) > 1 or not all(1 <= low <= middle <= high for low, middle, high in triples):
            raise ValueError(f"{self} is no range: expected smallest <= usual <= largest in every dimension, from 1 on")

    def holds(self, shape: Shape) -> bool:
        """Whether an engine of this range takes `shape`."""
        if len(shape) != len(self.usual):
            return False
        return all(low <= size <= high for low, size, high in zip(self.smallest, shape, self.largest, strict=True))

    def to_list(self) -> list[list[int]]:
        """Plain data, smallest first."""
        return [list(self.smallest), list(self.usual), list(self.largest)]

    def __str__(self) -> str:
        if self.smallest == self.largest:
            return written(self.usual)
        return f"{written(self.smallest)} .. {written(self.usual)} .. {written(self.largest)}"


def range_from_list(data: Sequence[Sequence[int]]) -> ShapeRange:
    """What `to_list` gave.

    Raises:
        ValueError: it is no range.
    """
    smallest, usual, largest = (tuple(int(size) for size in shape) for shape in data)
    return ShapeRange(smallest, usual, largest)


def written(shape: Sequence[int]) -> str:
    """A shape as the options have it: 1x3x320x416."""
    return "x".join(map(str, shape))


def parse_shapes(text: str | None, option: str) -> dict[str, Shape]:
    """Read `image:1x3x320x320,image_shape:1x2`, as trtexec writes shapes.

    Raises:
        DeployError: names the option.
    """
    found = {}
    for part in filter(None, (text or "").split(",")):
        match = _OPTION.fullmatch(part)
        if match is None:
            raise DeployError(f"{option} has {part!r}, expected NAME:SHAPE as in image:1x3x320x320")
        found[match["name"]] = tuple(int(size) for size in match["shape"].split("x"))
    return found


def input_ranges(
    inputs: Mapping[str, Shape],
    model: Manifest,
    smallest: Mapping[str, Shape],
    usual: Mapping[str, Shape],
    largest: Mapping[str, Shape],
) -> dict[str, ShapeRange]:
    """The range of each input of a graph.

    What no option names is chosen: one image, and of other inputs as many rows as there are images; a height and width
    from the padding's divisor over the input size to a square of its longer edge, so that lying and upright images fit.

    Args:
        inputs: of the graph; -1 where a dimension is dynamic.
        model: whose graph it is.
        smallest: by option, as `usual` and `largest`.

    Raises:
        DeployError: an option names no input, changes a fixed dimension, or the three are no range.
    """
    given = {"--min-shapes": smallest, "--opt-shapes": usual, "--max-shapes": largest}
    defaults = _defaults(model)
    for option, shapes in given.items():
        for name, shape in shapes.items():
            _check_given(option, name, shape, inputs)
    ranges = {}
    for name, shape in inputs.items():
        three = [
            shapes.get(name)
            or tuple(size if size >= 0 else default(axis, shape, shapes) for axis, size in enumerate(shape))
            for shapes, default in zip(given.values(), defaults, strict=True)
        ]
        try:
            ranges[name] = ShapeRange(*three)
        except ValueError as error:
            raise DeployError(f"input {name}: {error} (--min-shapes, --opt-shapes, --max-shapes)") from error
    return ranges


def _defaults(model: Manifest) -> tuple[Any, Any, Any]:
    """For each of smallest, usual, largest: the size of a dynamic axis of an input, besides what is given."""
    rule = model.preprocessing
    long = max(rule.input_size)
    first = 1 if model.graph.input == "uint8" else 2  # the axis of the height: NHWC or NCHW

    def chosen(*size: int) -> Any:
        def default(axis: int, shape: Shape, given: Mapping[str, Shape]) -> int:
            if len(shape) == 4 and axis >= first:
                return size[axis - first]
            return given.get(INPUT, (1,))[0]  # the batch: as many sizes of images as images

        return default

    return chosen(rule.pad_divisor, rule.pad_divisor), chosen(*rule.input_size), chosen(long, long)


def _check_given(option: str, name: str, shape: Shape, inputs: Mapping[str, Shape]) -> None:
    if name not in inputs:
        raise DeployError(f"{option} names {name!r}; the inputs are {', '.join(inputs)}")
    fixed = inputs[name]
    fits = len(shape) == len(fixed) and all(size in (-1, got) for size, got in zip(fixed, shape, strict=True))
    if not fits:
        expected = "x".join("?" if size < 0 else str(size) for size in fixed)
        raise DeployError(
            f"{option} gives {name} as {written(shape)}, the graph has {expected}: only what is ? can be chosen"
            + ("" if -1 in fixed else " (export it without --input-size, or with --batch any, for that)")
        )
