"""The terms of a distilled run: the share of the loss that each has, and those that do nothing or too much."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cskd_core.plan import DistillPlan

WATCHED = 100
"""Steps from the beginning of a run, or those of its first epoch where it has fewer, over which terms are watched."""

OUTWEIGHS = 10
"""A term of the distillation that is so many times the detector's own loss is named."""

SHARE = "share_"
DISTILLATION = f"{SHARE}distillation"


class DistilledTerms:
    """Watches the terms of a distilled run in its first steps, and says each one's share of the loss throughout.

    Args:
        plan: of the distillation, whose keys are named.
    """

    def __init__(self, plan: DistillPlan) -> None:
        self._plan = plan
        self._steps = 0
        self._sums: dict[str, float] = {}  # of absolute values, until the verdict
        self._judged = False

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

    def step(self, values: Mapping[str, float], step: int, end_of_epoch: bool) -> list[str]:
        """Take in what step `step` of the run reports; gives what there is to say of the terms, once in a run."""
        if self._judged:
            return []
        self._steps += 1
        for name, value in _terms(values).items():
            self._sums[name] = self._sums.get(name, 0.0) + abs(value)
        if step < WATCHED and not end_of_epoch:
            return []
        remarks = self._verdict()
        self._judged, self._steps, self._sums = True, 0, {}
        return remarks

    def state_dict(self) -> dict[str, Any]:
        """What was taken in so far, and whether it was judged."""
        return {"judged": self._judged, "steps": self._steps, "sums": dict(self._sums)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; nothing, of a run that began without it, is not judged in its middle."""
        self._judged = state.get("judged", True)
        self._steps, self._sums = state.get("steps", 0), dict(state.get("sums", {}))

    def _verdict(self) -> list[str]:
        means = {name: total / self._steps for name, total in self._sums.items()}
        distilled = self._distilled(means)
        own = sum(value for name, value in means.items() if name not in distilled)
        span = f"the first {self._steps} steps" if self._steps > 1 else "the first step"
        remarks = []
        for name, (key, pair) in distilled.items():
            option = f"distill.{key}"
            if means[name] == 0 and pair != (0, 0):
                off = f"--set '{option}=(0, 0)'" if pair else f"--set {option}=None"
                remarks.append(
                    f"loss_{name} was exactly zero in all of {span}: {option} teaches nothing. Check that the training "
                    f"images have boxes (cskd-train data check) and that teacher and student differ, or take it out: "
                    f"{off}"
                )
            elif own and means[name] > OUTWEIGHS * own:
                weaker = f"lower {option}, which is {pair}" if pair else f"leave it out: --set {option}=None"
                remarks.append(
                    f"loss_{name} is {means[name] / own:.0f} times the detector's own loss over {span} "
                    f"({means[name]:.3g} and {own:.3g}): the student follows its teacher, hardly the labels; {weaker}"
                )
        return remarks

    def _distilled(self, terms: Iterable[str]) -> dict[str, tuple[str, Any]]:
        """The distiller's terms among these, and by what each is weighed."""
        found = {name: self._plan.weighed_by(name) for name in terms}
        return {name: weighed for name, weighed in found.items() if weighed is not None}


def _terms(values: Mapping[str, float]) -> dict[str, float]:
    """What is added up to the loss, without the `loss_` in its name."""
    return {name.removeprefix("loss_"): value for name, value in values.items() if "loss" in name and name != "loss"}
