"""What is done already: steps with their settings and results, kept so that work can be taken up again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cskd_data.files import sha256_of_file, write_json
from cskd_deploy.errors import DeployError

SCHEMA = 1


class Record:
    """A JSON file that grows by a step at a time.

    Args:
        path: of the file; made with the first step.

    Raises:
        DeployError: there is a file, and it is no record.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._steps: dict[str, Any] = {}
        if path.exists():
            try:
                data = json.loads(path.read_text())
                valid = data["schema"] == SCHEMA and isinstance(data["steps"], dict)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DeployError(f"{path} cannot be read ({error}): take it away, or give another --output") from error
            if not valid:
                raise DeployError(f"{path} is of another version: take it away, or give another --output")
            self._steps = data["steps"]

    def done(
        self,
        name: str,
        settings: Mapping[str, Any],
        work: Callable[[], Mapping[str, Any]],
        file: Path | None = None,
    ) -> dict[str, Any]:
        """The result of a step, which is taken from the record where it had these settings, and is done where not.

        Args:
            settings: all that the result depends on, as plain data.
            work: gives the result, plain data.
            file: that the step writes: its content must be what it was, too.
        """
        wanted = json.loads(json.dumps(settings))
        there = self._steps.get(name)
        if there is not None and there["settings"] == wanted and there["file_sha256"] == _sha256(file):
            result: dict[str, Any] = there["result"]
            return result
        result = json.loads(json.dumps(work()))
        self._steps[name] = {"settings": wanted, "file_sha256": _sha256(file), "result": result}
        write_json(self._path, {"schema": SCHEMA, "steps": self._steps})
        return result


def _sha256(file: Path | None) -> str | None:
    return sha256_of_file(file) if file is not None and file.is_file() else None
