"""Which layers should stay in float: those whose quantisation costs most, until the rest costs little enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from cskd_deploy.errors import CheckFailed


@dataclass(frozen=True)
class Search:
    """How a search ended. Drops are points of mAP, below zero where the quantised model is better."""

    reference: float  # points of mAP in float
    first_drop: float  # with no further layer in float
    ranking: tuple[tuple[str, float], ...]  # layer, drop when it alone is quantised; worst first, () if not needed
    kept: tuple[str, ...]  # in float
    drop: float  # of the model with them

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "reference_mAP_points": self.reference,
            "first_drop_points": self.first_drop,
            "ranking": [{"layer": name, "drop_points": drop} for name, drop in self.ranking],
            "kept_in_float": list(self.kept),
            "drop_points": self.drop,
        }

    def __str__(self) -> str:
        lines = [
            f"search: mAP {self.reference:.2f} in FP32, drop {self.first_drop:+.2f} points"
            + (f", {self.drop:+.2f} with {len(self.kept)} layers in float" if self.ranking else "")
        ]
        lines += [f"  {name:<44} {drop:+.2f} alone" for name, drop in self.ranking if name in self.kept]
        return "\n".join(lines)


def search(
    layers: Sequence[str],
    drop_with: Callable[[Collection[str]], float],
    reference: float,
    max_drop: float,
    progress: Callable[[str], None],
    keep: Collection[str] = (),
) -> Search:
    """Find layers to keep in float so that the drop is within `max_drop`.

    Where it is not without them, every layer is quantised alone, and the layers are put back to float in the order of
    the drops that this causes, one more at a time.

    Args:
        layers: all that can be quantised.
        drop_with: points of mAP that the model loses with these layers in float.
        reference: points of mAP in float, for the report.
        max_drop: points.
        progress: called with a line for each measurement.
        keep: layers that stay in float in any case.

    Raises:
        CheckFailed: the drop is too large even with a single layer quantised.
    """
    free = [name for name in layers if name not in keep]
    progress(f"search: measuring with {len(free)} layers quantised")
    first = drop = drop_with(keep)
    progress(f"search: drop {drop:+.2f} points")
    if drop <= max_drop:
        return Search(reference, first, (), tuple(keep), drop)
    drops: dict[str, float] = {}
    begin = time.perf_counter()
    for done, name in enumerate(free, start=1):
        drops[name] = drop_with({*layers} - {name})
        left = (time.perf_counter() - begin) / done * (len(free) - done)
        progress(f"search: {done}/{len(free)} {name} alone: drop {drops[name]:+.2f} points, {left:.0f} s left")
    ranking = tuple(sorted(drops.items(), key=lambda item: -item[1]))
    kept = [name for name in layers if name in keep]
    for name, _ in ranking[:-1]:
        kept.append(name)
        drop = drop_with(kept)
        progress(f"search: {name} in float too: drop {drop:+.2f} points")
        if drop <= max_drop:
            return Search(reference, first, ranking, tuple(kept), drop)
    raise CheckFailed(
        f"mAP drops by {drop:.2f} points with {ranking[-1][0]} alone in INT8, more than the {max_drop:g} allowed "
        "(--max-drop). No file was written. Allow more, or take --precision fp16"
    )
