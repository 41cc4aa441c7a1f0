"""The typed recipe of a distillation: a closed schema, checked before anything is built (docs/algorithm.md 8.3)."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from cskd_core.errors import PlanError
from cskd_core.similarity import WeightPair


@dataclass(frozen=True)
class TeacherPlan:
    """Where the teacher comes from. Without a config, the one that its checkpoint holds is taken."""

    checkpoint: str
    config: str | None = None


@dataclass(frozen=True)
class PyramidPlan:
    """Weights of the pyramid terms; `region` serves the foreground and the background term."""

    full: WeightPair = (1.0, 0.5)
    roi: WeightPair = (1.0, 0.5)
    region: WeightPair = (1.0, 0.5)


@dataclass(frozen=True)
class TowerPlan:
    """Weights of the head-tower terms."""

    cls: WeightPair = (1.0, 0.5)
    reg: WeightPair = (1.0, 0.5)


@dataclass(frozen=True)
class DistillPlan:
    """What to distil and with which weights, each pair being (guided squared error, cosine).

    A term set to None is left out. The defaults are the published recipe.

    Example:
        >>> DistillPlan.parse(dict(teacher=dict(checkpoint="t.pth"), prediction=(2, 1))).prediction
        (2.0, 1.0)
        >>> DistillPlan.parse(dict(teacher=dict(checkpoint="t.pth"), tower=dict(clss=(1, 1))))
        Traceback (most recent call last):
        ...
        cskd_core.errors.PlanError: distill.tower: unknown key 'clss'; did you mean 'cls'? Known keys: cls, reg
    """

    teacher: TeacherPlan
    pyramid: PyramidPlan | None = PyramidPlan()
    tower: TowerPlan | None = TowerPlan()
    prediction: WeightPair | None = (1.0, 0.5)
    assistant: bool = True

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> DistillPlan:
        """Build a plan from the `distill` block of a config.

        Raises:
            PlanError: an unknown key, a missing one, or a value of another kind; the message names the key.
        """
        plan = _parse(cls, data, "distill")
        assert isinstance(plan, cls)
        return plan


def _parse(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`: a dataclass of the schema, a weight pair, a bool or a string; None where allowed."""
    if get_origin(kind) in (Union, types.UnionType):
        if value is None:
            return None
        (kind,) = (option for option in get_args(kind) if option is not type(None))
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(kind, value, where)
    if kind == WeightPair:
        return _parse_pair(value, where)
    if not isinstance(value, kind):
        raise PlanError(f"{where}: expected a {kind.__name__}, got {value!r}")
    return value


def _parse_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise PlanError(f"{where}: expected a dict, got {value!r}")
    hints = get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind)]
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else "."
            raise PlanError(f"{where}: unknown key '{key}'{hint} Known keys: {', '.join(known)}")
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING and field.name not in value:
            raise PlanError(f"{where}: missing key '{field.name}'")
    return kind(**{key: _parse(hints[key], item, f"{where}.{key}") for key, item in value.items()})


def _parse_pair(value: Any, where: str) -> WeightPair:
    numbers = isinstance(value, (tuple, list)) and all(
        isinstance(item, (int, float)) and not isinstance(item, bool) and item >= 0 for item in value
    )
    if not numbers or len(value) != 2:
        raise PlanError(f"{where}: expected two weights >= 0 (guided squared error, cosine), got {value!r}")
    return float(value[0]), float(value[1])
