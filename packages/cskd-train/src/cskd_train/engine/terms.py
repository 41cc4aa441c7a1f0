"""The terms of a distilled run: the share of the loss that each has, and those that do nothing or too much."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cskd_core.plan import DistillPlan
from cskd_train.stored import current_terms

WATCHED = 100
"""Steps from the beginning of a run, or those of an epoch where it has fewer, over which terms are watched."""

OUTWEIGHS = 30
"""A term of the distillation that is so many times the detector's own loss is named. Means of the second half of the
steps are compared: in the first, adapters of random weights make the terms of the features far larger than they stay.
Default weights gave 11 times at step 79 of runs that gained 14.7 points (docs/results/gain.md).
"""

SHARE = "share_"
DISTILLATION = f"{SHARE}distillation"


class DistilledTerms:
    """Watches the terms of a distilled run in its first steps, and says each one's share of the loss throughout.

    Args:
        plan: of the distillation, whose keys are named.
        steps: of an epoch.
    """

    def __init__(self, plan: DistillPlan, steps: int) -> None:
        self._plan = plan
        self._watched = min(WATCHED, steps)
        self._seen: set[str] = set()  # terms that were not zero, until the verdict
        self._sums: dict[str, float] = {}  # of the second half
        self._decided = False

    def shares(self, values: Mapping[str, float]) -> dict[str, float]:
        """`share_TERM` of every loss term, and `share_distillation` of all that the distiller adds; 1 in all.

        Args:
            values: what a step reports, or averages of that. Empty where the loss is zero.
        """
        total = values.get("loss")
        if not total:
            return {}
        terms = _terms(values)
        found = {f"{SHARE}{name}": value / total for name, value in terms.items()}
        return {**found, DISTILLATION: sum(terms[name] / total for name in self._distilled(terms))}

    def step(self, values: Mapping[str, float], step: int) -> list[str]:
        """Take in what step `step` of the run reports; gives what there is to say of the terms, once in a run."""
        if self._decided:
            return []
        terms = _terms(values)
        self._seen |= {name for name, value in terms.items() if value}
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + (abs(value) if step > self._watched // 2 else 0.0)
        if step < self._watched:
            return []
        warnings = [*self._idle(), *self._outweighing()]
        self._decided, self._seen, self._sums = True, set(), {}
        return warnings

    def state_dict(self) -> dict[str, Any]:
        """What was taken in so far, and whether it has been decided on."""
        return {"decided": self._decided, "seen": sorted(self._seen), "sums": dict(self._sums)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; a run that began without it is not warned of in its middle."""
        self._decided = state.get("decided", True)
        self._seen = set(current_terms(dict.fromkeys(state.get("seen", ()))))
        self._sums = current_terms(state.get("sums", {}))

    def _idle(self) -> list[str]:
        span = f"the first {self._watched} steps" if self._watched > 1 else "the first step"
        return [
            f"loss_{name} was exactly zero in {span}: distill.{key} teaches nothing. Check that the training images "
            "have boxes (cskd-train data check) and that teacher and student differ, or take it out: "
            + _left_out(key, weight)
            for name, (key, weight) in self._distilled(self._sums).items()
            if name not in self._seen and weight not in ((0, 0), 0)
        ]

    def _outweighing(self) -> list[str]:
        distilled, steps = self._distilled(self._sums), self._watched - self._watched // 2
        own = sum(value for name, value in self._sums.items() if name not in distilled)
        return [
            f"loss_{name} is {self._sums[name] / own:.0f} times the detector's own loss "
            f"({self._sums[name] / steps:.3g} and {own / steps:.3g}, up to step {self._watched}): the student follows "
            "its teacher, hardly the labels; "
            + (
                f"leave it out: {_left_out(key, weight)}"
                if weight is None
                else f"lower distill.{key}, which is {weight}"
            )
            for name, (key, weight) in distilled.items()
            if own and self._sums[name] > OUTWEIGHS * own
        ]

    def _distilled(self, terms: Iterable[str]) -> dict[str, tuple[str, Any]]:
        """The distiller's terms among these, and by what each is weighed."""
        found = {name: self._plan.weighed_by(name) for name in terms}
        return {name: weighed for name, weighed in found.items() if weighed is not None}


def _left_out(key: str, weight: Any) -> str:
    """The option that leaves a term out."""
    if isinstance(weight, tuple):
        return f"--set 'distill.{key}=(0, 0)'"
    return f"--set distill.{key}={'None' if weight is None else 0}"


def _terms(values: Mapping[str, float]) -> dict[str, float]:
    """What is added up to the loss, without the `loss_` in its name."""
    return {name.removeprefix("loss_"): value for name, value in values.items() if "loss" in name and name != "loss"}
