"""The files that benchmarks write: tried before anything is measured, whole at any moment."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import machine

from cskd_data.errors import DataError
from cskd_data.files import check_writable, write_atomically, write_json

Rows = list[dict[str, Any]]


def ready(*files: Path | None) -> None:
    """Make the folders of files that are to be written, and try whether they can be; None is no file.

    Raises:
        SystemExit: one cannot be written; one sentence says why, with exit code 2.
    """
    try:
        for file in files:
            if file is not None:
                check_writable(file)
    except DataError as error:
        refuse(str(error))


def refuse(reason: str) -> None:
    """End with one sentence and exit code 2.

    Raises:
        SystemExit: always.
    """
    print(f"error: {reason}", file=sys.stderr)
    raise SystemExit(2)


def write_lines(file: Path | None, rows: Sequence[Mapping[str, Any]]) -> None:
    """One JSON line a row, in place of what the file has."""
    if file is not None:
        write_text(file, "".join(json.dumps(row) + "\n" for row in rows))


def write_text(file: Path, text: str) -> None:
    """A text, in place of what the file has."""
    write_atomically(file, lambda opened: opened.write(text.encode()))


def rows_of(file: Path | None) -> Rows:
    """The rows of a file `{"rows": [...]}`, each with its origin; none of a file that is not there.

    Raises:
        SystemExit: it is something else.
    """
    if file is None or not file.exists():
        return []
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or set(content) != {"rows"}:
        refuse(f'{file} is not of this benchmark, whose files are {{"rows": [...]}}: give another one')
    rows: Rows = content["rows"]
    return rows


def with_rows(known: Rows, rows: Rows, keys: Sequence[str]) -> Rows:
    """Rows with others added; one of the same machine with the same values of `keys` is replaced where it stands."""

    def what(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return machine.key_of(row), *(row[key] for key in keys)

    return list({what(row): row for row in [*known, *rows]}.values())


def write_rows(file: Path | None, rows: Rows, indent: int = 2) -> None:
    """A file `{"rows": [...]}`."""
    if file is not None:
        write_json(file, {"rows": rows}, indent)
