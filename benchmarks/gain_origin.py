"""Where a run of benchmarks/gain.py comes from and what it cost: `gain.json` in its folder, beside what it trained."""

from __future__ import annotations

import json
import resource
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import machine
import torch
from gain_plan import ROOT, Run

from cskd_data.files import write_json
from cskd_train.engine.device import choose_device, device_name
from cskd_train.files import checkpoints

FILE = "gain.json"


def processor_seconds() -> float:
    """Of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def here() -> dict[str, Any]:
    """The machine that a run would be trained on, as `machine.key_of` reads it."""
    return {**machine.processor(), "device": device_name(choose_device("auto"))}


def origin_of(folder: Path) -> dict[str, Any]:
    """What the folder of a run says of where it was trained and of what that cost; empty where nothing was.

    Gives `command`, `commit` (where several commits trained it, `commits` too), `processor`, `instructions`, `device`,
    `threads`, `versions`, and `processor_seconds` for `steps`: those that were measured.
    """
    file = folder / FILE
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found


def is_through(run: Run, folder: Path) -> bool:
    """Whether a folder has the result of all epochs of a run."""
    result = folder / "result.json"
    return result.exists() and json.loads(result.read_text(encoding="utf-8"))["epochs"] == run.epochs


def machine_of(run: Run, folder: Path) -> str:
    """The machine that trained a run, or will.

    Raises:
        click.UsageError: what is trained is not known to come from anywhere, or another machine has begun it.
    """
    origin, this = origin_of(folder), machine.key_of(here())
    if is_through(run, folder):
        if not origin:
            raise click.UsageError(
                f"{run.name}: {folder} has a run that is through and no {FILE}, which says by what commit and on what "
                "machine: remove that folder, and the run is repeated"
            )
        return machine.key_of(origin)
    if origin and machine.key_of(origin) != this:
        raise click.UsageError(
            f"{run.name}: {folder} was begun on another machine ({machine.key_of(origin)}; this is {this}): end it "
            "there, or remove that folder"
        )
    return this


@contextmanager
def trained(folder: Path, words: Sequence[str]) -> Iterator[None]:
    """Add what is trained inside to the cost that the folder of a run keeps, however it ends.

    A call that takes no step leaves the file as it is: neither the start of a run that is through nor one that fails
    is a cost of it. What a call has used that could not write it down, since it was killed, is not known, nor are its
    steps.

    Args:
        words: the command.
    """
    used, before, origin = processor_seconds(), steps_done(folder), origin_of(folder)
    commit = machine.commit(ROOT)
    try:
        yield
    finally:
        if (steps := steps_done(folder) - before) > 0:
            commits = list(dict.fromkeys([*origin.get("commits", [origin.get("commit", commit)]), commit]))
            content = {
                "command": shlex.join(word.replace(f"{ROOT}/", "") for word in words if word != "--resume"),
                "commit": commit,
                **({"commits": commits} if len(commits) > 1 else {}),
                **here(),
                "threads": torch.get_num_threads(),
                "versions": machine.versions(),
                "steps": origin.get("steps", 0) + steps,
                "processor_seconds": origin.get("processor_seconds", 0.0) + processor_seconds() - used,
            }
            write_json(folder / FILE, content)


def steps_done(folder: Path) -> int:
    """The steps that the last checkpoint of a run holds."""
    last = folder / "last.pth"
    return int(checkpoints.read(last)["meta"]["iter"]) if last.exists() else 0


def minutes_of(origin: Mapping[str, Any], result: Mapping[str, Any]) -> float:
    """Minutes of processor time of a whole run: those that were measured, over their share of its steps.

    Args:
        origin: as `origin_of` gives it.
        result: what the run's result.json has.
    """
    return float(origin["processor_seconds"]) / 60 * result["iterations"] / int(origin["steps"])
