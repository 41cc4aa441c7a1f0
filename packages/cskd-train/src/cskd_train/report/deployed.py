"""The exported forms of a student, from what cskd-deploy has written beside the run.

`cskd-deploy report` writes `report.json`: a list of rows, or an object with such a list. A row has `form`, `backend`,
`device`, `size_bytes` or `MB`, `mean_average_precision` (points) or `mAP` (in [0, 1]), `drop` (points), `p50_ms`,
`p90_ms`, `images_per_second`, `agreement`, `fault`; any other key with a number or text is shown too, and one that is
not there is a dash. A project has `eval.json` and `bench.json` instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cskd_train.errors import TrainError
from cskd_train.report.charts import tick
from cskd_train.report.markup import Html, element, note, table
from cskd_train.report.runs import Subject
from cskd_train.tables.measured import UnreadableError, read_json

REPORT = "report.json"
_KNOWN = ("form", "backend", "device", "MB", "mAP", "drop", "agreement", "p50", "p90", "images/s", "speedup")
_LEFT_OUT = ("file", "file_sha256", "sha256")
_TITLES = {"p50": "p50 ms", "p90": "p90 ms", "drop": "drop, points"}
_DIGITS = {"mAP": 3, "drop": 2, "MB": 1, "p50": 1, "p90": 1, "images/s": 1, "agreement": 3, "speedup": 2}
_SAME = {
    "name": "form", "size_mb": "MB", "mb": "MB", "megabytes": "MB", "map": "mAP", "bbox_map": "mAP",
    "drop_points": "drop", "images_per_second": "images/s", "p50_ms": "p50", "p90_ms": "p90",
}  # fmt: skip

Row = dict[str, Any]


def read(subject: Subject, given: Path | None) -> tuple[Path | None, list[Row]]:
    """The rows, and the file that they are from; neither where nothing was deployed.

    Args:
        given: a `report.json`, or the folder that holds it; None looks beside the run.

    Raises:
        TrainError: `given` is not there, or no report.
    """
    if given is not None:
        file = given / REPORT if given.is_dir() else given
        if not file.is_file():
            raise TrainError(f"--deploy {given}: there is no {REPORT} of cskd-deploy report")
        rows = _rows(file)
        if not rows:
            raise TrainError(f"--deploy {file}: no row in it names a form: this is not what cskd-deploy report writes")
        return file, rows
    folders = (subject.folder, subject.run.folder)
    files = [file for folder in folders for file in (folder / REPORT, *sorted(folder.glob(f"*/{REPORT}")))]
    for file in files:
        try:
            if file.is_file() and (rows := _rows(file)):
                return file, rows
        except TrainError:
            continue  # a report of something else
    return _of_project(subject.run.folder)


def _rows(file: Path) -> list[Row]:
    try:
        content = read_json(file)
    except UnreadableError as error:
        raise TrainError(str(error)) from error
    lists = [content, *content.values()] if isinstance(content, Mapping) else [content]
    for one in lists:
        if isinstance(one, list):
            rows = [_named(row) for row in one if isinstance(row, Mapping)]
            if found := [row for row in rows if row.get("form") is not None]:
                return found
    return []


def _named(row: Mapping[str, Any]) -> Row:
    named = {_SAME.get(str(key).lower(), str(key)): value for key, value in row.items() if key not in _LEFT_OUT}
    for key, title, unit in (("size_bytes", "MB", 1e-6), ("mean_average_precision", "mAP", 0.01)):
        if _is_number(value := named.pop(key, None)):
            named.setdefault(title, value * unit)
    return named


def _of_project(folder: Path) -> tuple[Path | None, list[Row]]:
    files = folder / "eval.json", folder / "bench.json"
    if not all(file.is_file() for file in files):
        return None, []
    try:
        evaluated, timed = map(read_json, files)
        rows = [
            {
                "form": one.get("precision") or "fp32",
                "backend": one["backend"],
                "MB": one["size_bytes"] / 1e6,
                "mAP": evaluated["metrics"]["bbox_mAP"] if one["backend"] != "pytorch" else None,
                "drop": evaluated.get("drop_points") if one["backend"] != "pytorch" else None,
                "p50": one["milliseconds"]["total"]["p50"],
                "p90": one["milliseconds"]["total"]["p90"],
                "images/s": one["images_per_second"],
                "device": one.get("device"),
            }
            for one in timed["results"]
        ]
    except (UnreadableError, KeyError, TypeError):
        return None, []
    return files[1], rows


def section(file: Path | None, rows: Sequence[Row]) -> list[Html]:
    """The table of all forms."""
    if file is None:
        return [note("Nothing was deployed yet: cskd-deploy report writes this table's figures beside the run.")]
    shown = [key for key in _KNOWN if any(row.get(key) is not None for row in rows)]
    shown += [key for row in rows for key, value in row.items() if key not in (*_KNOWN, *shown) and _is_plain(value)]
    shown = list(dict.fromkeys(shown))
    body = [[_said(key, row.get(key)) for key in shown] for row in rows]
    text = sum(key in _KNOWN[:3] for key in shown)
    return [
        table([_TITLES.get(key, key) for key in shown], body, text_columns=text),
        element("p", f"From {file}.", class_="pale"),
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_plain(value: Any) -> bool:
    return isinstance(value, str) or _is_number(value)


def _said(key: str, value: Any) -> str:
    if not _is_plain(value):
        return "-" if value is None else str(value)
    if isinstance(value, (int, float)):
        return f"{value:.{_DIGITS[key]}f}" if key in _DIGITS else tick(value)
    return str(value)
