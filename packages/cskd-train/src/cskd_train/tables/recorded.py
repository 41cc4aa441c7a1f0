"""Measurements that are kept in the repository, as JSON files under docs/results/.

A file holds one record, or a list of records (one for each family, say). A record:

    {"data": "shapes, 320 train, 80 val images",     short name, a comma or a bracket, then whatever else is to be said
     "seed": 0,                                      of the runs that state none themselves; may be left out
     "runs": {"teacher": RUN, "student_alone": RUN, "student_distilled": RUN}}

RUN is one run or a list of runs with different seeds; a role that was not run is left out. A run:

    {"config": "configs/demo/....py", "seed": 0, "val": {"bbox_mAP": 0.268, ...}, "test": {...}}

`val` holds COCO metrics in [0, 1], the epoch being the best on that split; `test`, where it is given, those of the same
checkpoint on another split, shown as a row of its own. Any other key is free and is not read here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cskd_train.tables import measured
from cskd_train.tables.measured import Measurement, Spread, UnreadableError

ROLES = ("teacher", "student_alone", "student_distilled")
SPLITS = ("val", "test")


def find_recorded(folder: Path, warn: Callable[[str], None]) -> list[Measurement]:
    """The measurements in the `*.json` files of a folder, by file name; a file that cannot be read gives a warning.

    A record without `runs` is of another kind (latency, parity), and passed over.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found += _read(path)
        except UnreadableError as error:
            warn(str(error))
    return found


def _read(path: Path) -> list[Measurement]:
    content = measured.read_json(path)
    if not isinstance(content, list):
        return _measurements(content, str(path), str(path))
    return [
        measurement
        for place, record in enumerate(content)
        for measurement in _measurements(record, f"{path}, record {place}", str(path))
    ]


def _measurements(content: Any, where: str, source: str) -> list[Measurement]:
    record = measured.mapping(content, where)
    if "runs" not in record:
        return []
    data = measured.text(record, "data", where)
    named = measured.mapping(record["runs"], f"{where}, runs")
    unknown = [role for role in named if role not in ROLES]
    if unknown:
        raise UnreadableError(f"{where}, runs: {unknown[0]!r} is none of {', '.join(ROLES)}")
    runs = {role: _runs(named[role], record, f"{where}, {role}") for role in ROLES if role in named}
    student = runs.get("student_distilled") or runs.get("student_alone")
    if not student:
        raise UnreadableError(f"{where}: neither 'student_alone' nor 'student_distilled' has a run")
    found = []
    for split in SPLITS:
        spreads = {role: _spread(by_seed, split, f"{where}, {role}") for role, by_seed in runs.items()}
        if spreads.get("student_distilled") or spreads.get("student_alone"):
            found.append(
                Measurement(
                    recipe=measured.text(next(iter(student.values())), "config", where),
                    data=re.split(r",| \(", data, maxsplit=1)[0],
                    details=data,
                    split=split,
                    sources=(source,),
                    teacher=spreads.get("teacher"),
                    alone=spreads.get("student_alone"),
                    distilled=spreads.get("student_distilled"),
                )
            )
    if not found:
        raise UnreadableError(f"{where}: no student has metrics under {' or '.join(map(repr, SPLITS))}")
    return found


def _runs(value: Any, record: Mapping[str, Any], where: str) -> dict[int, Mapping[str, Any]]:
    """The runs of one role by seed."""
    by_seed: dict[int, Mapping[str, Any]] = {}
    for item in value if isinstance(value, list) else [value]:
        run = measured.mapping(item, where)
        seed = measured.seed(run if "seed" in run else record, where)
        if seed in by_seed:
            raise UnreadableError(f"{where}: two runs with seed {seed}")
        by_seed[seed] = run
    return by_seed


def _spread(by_seed: Mapping[int, Mapping[str, Any]], split: str, where: str) -> Spread | None:
    values = {seed: measured.points(run[split], f"{where}, {split}") for seed, run in by_seed.items() if split in run}
    return Spread(values) if values else None
