"""How many epochs fit into the time that a user has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cskd_data.folders import files_below
from cskd_data.images import SUFFIXES
from cskd_train.engine.timing import Cost
from cskd_train.errors import TrainError

RESERVE = 0.05
"""Share of the time that is left for what was not measured: checkpoints, a machine that slows down as it warms up."""

MANY = 0.5
"""Share of the planned epochs; a budget that holds less is noted."""

REPORT_IMAGES = 100
"""The most validation images on which the detectors of `report.html` are looked at; `cskd-train report` takes more."""

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def parse_duration(text: str) -> float:
    """`2h`, `90m`, `1h30m` or `1.5h` in seconds.

    Raises:
        TrainError: it is none of these, or no time at all.
    """
    parts = re.findall(r"([0-9.]+) *(d|h|m|s)", text)
    try:
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    except ValueError:
        seconds = 0.0
    if re.sub(r"[0-9.]+ *[dhms] *", "", text.strip()) or seconds <= 0:
        raise TrainError(f"budget {text!r}: expected a time such as 2h, 90m or 1h30m")
    return seconds


def written(seconds: float) -> str:
    """Seconds as `parse_duration` reads them, without a loss: `2h`, `1h30m`, `0.5s`."""
    if seconds != int(seconds):
        return f"{seconds!r}s"
    parts = (int(seconds) // 3600, "h"), (int(seconds) // 60 % 60, "m"), (int(seconds) % 60, "s")
    return "".join(f"{number}{unit}" for number, unit in parts if number)


def duration(seconds: float) -> str:
    """Seconds for a person: `1 h 05 min`, `12 min`, `40 s`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def fitting_epochs(planned: Mapping[str, int], costs: Mapping[str, Cost], seconds: float) -> dict[str, int]:
    """The same share of every run's epochs, as large as fits; all of them where they fit.

    Args:
        planned: run -> epochs of its config; runs of equally many keep equally many.
        costs: run -> what its epochs cost.
        seconds: for all runs together.

    Raises:
        TrainError: one epoch of each does not fit.
    """

    def needed(epochs: Mapping[str, int]) -> float:
        return sum(costs[name].seconds(number) for name, number in epochs.items())

    # Only where one of the counts changes does the share matter.
    shares = sorted({number / of for of in planned.values() for number in range(1, of + 1)}, reverse=True)
    for share in shares:
        epochs = {name: max(1, int(share * of + 1e-9)) for name, of in planned.items()}
        if needed(epochs) <= seconds:
            return epochs
    least = needed(dict.fromkeys(planned, 1))
    raise TrainError(
        f"{duration(max(seconds, 0))} are left for training, after tests and export, and one epoch of each of "
        f"{', '.join(planned)} takes {duration(least)}: give a larger budget, smaller images (image_scale in "
        "dataset.py), or leave the student alone out (--no-baseline)"
    )


def lines(
    planned: Mapping[str, int], epochs: Mapping[str, int], costs: Mapping[str, Cost], titles: Mapping[str, str]
) -> list[str]:
    """What is said of runs to come: their epochs, how long they take, and whether these are few.

    Args:
        epochs: that were chosen; of other runs all that were planned.
        titles: what each run is called.
    """
    found = []
    chosen = {name: epochs.get(name, number) for name, number in planned.items()}
    for name, number in chosen.items():
        of = f"{number} of {planned[name]}" if number < planned[name] else f"{number}"
        lasts = duration(costs[name].seconds(number))
        found.append(f"  {titles[name]}: {of} epochs, {costs[name].step:.2g} s a step, about {lasts}")
    share = min(number / planned[name] for name, number in chosen.items())
    return found if share >= MANY else [*found, _few(share)]


def _few(share: float) -> str:
    """What is to be known of a budget that holds less than half of the planned epochs of a run."""
    return (
        f"note: {share:.0%} of the epochs that were planned: far from the best that these detectors can be, most of "
        "all from scratch. What goes further: more time, smaller images (image_scale in dataset.py), a narrower "
        "student (new --width), weights to begin with (new --init)"
    )


def labelling(pictures: Path, val_images: int, costs: Iterable[Cost]) -> float:
    """Seconds in which a teacher labels the pictures of a folder, and the validation images for its threshold.

    Args:
        costs: of all runs; the slowest evaluation is taken for the teacher's.
    """
    each = max(cost.evaluation for cost in costs) / max(val_images, 1)
    return each * (val_images + len(files_below(pictures, SUFFIXES)))


def slowdown(cost: Cost, result: Mapping[str, Any], images: int) -> tuple[float, float]:
    """How many times longer the steps of a finished run took than was expected, and its evaluations.

    The detector that was measured had not learnt anything, and finds little: its evaluations are the faster for it.

    Args:
        result: what `result.json` holds.
        images: of a step, in all processes together.
    """
    evaluations = cost.seconds(result["epochs"]) - cost.steps * cost.step * result["epochs"]
    step = images / result["images_per_second"]
    training = min(result["iterations"] * step, result["seconds"])
    return step / cost.step, (result["seconds"] - training) / evaluations if evaluations else 1.0


def schedule(cfg: Any, epochs: int) -> dict[str, Any]:
    """The settings that make a config's training so many epochs long, its learning rate falling at the same shares."""
    planned = cfg.runner.max_epochs
    if epochs == planned:
        return {}
    settings: dict[str, Any] = {"runner.max_epochs": epochs}
    policy = cfg.get("lr_config") or {}
    if policy.get("policy") == "step" and isinstance(policy.get("step"), Sequence):
        settings["lr_config.step"] = sorted({max(1, round(step * epochs / planned)) for step in policy["step"]})
    return settings
