"""Where the files and folders are that a run has named: relative paths, and a run that may have been moved since."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from cskd_data.files import sha256_of_file
from cskd_train.tables.measured import UnreadableError, mapping, read_json

RESULT = "result.json"
_ANYWHERE = "/-" * 16  # relative paths of one run begin at one folder, whichever it was


def ways(path: str, work_dir: Path, stated: str = "") -> Iterator[Path]:
    """Where a path of a run may lead, the likeliest first.

    It lies to the work dir as it lay when the run was made; or in a folder of its name beside the work dir; or it is
    the path as it stands. A relative one begins at the folder of the call then, where another run may have one like it.
    An absolute one comes first of all, unless the run is a copy of one that is still where it was: a run that was moved
    alone has left behind what it names, and may lie beside files of the same names.

    Args:
        path: as the run named it; a URL leads nowhere.
        work_dir: where the run is.
        stated: where the run said that it was; empty where it does not say.
    """
    if "://" in path or not (named := Path(path).expanduser()).name:
        return
    folder = work_dir.resolve()
    beside = []
    if stated and Path(stated).is_absolute() == named.is_absolute():
        between = os.path.relpath(os.path.join(_ANYWHERE, named), os.path.join(_ANYWHERE, stated))
        beside.append(Path(os.path.normpath(folder / between)))
    if named.is_absolute():
        beside.insert(len(beside) if _is_copy(folder, stated) else 0, named)
    yield from beside
    if named.parent.name:
        yield folder.parent / named.parent.name / named.name
    yield folder.parent / named.name
    yield named


def _is_copy(work_dir: Path, stated: str) -> bool:
    """Whether a run that said where it was is there too, with the same result."""
    try:
        results = [(folder / RESULT).read_bytes() for folder in (work_dir, Path(stated))] if stated else []
    except OSError:
        return False
    return len(results) == 2 and results[0] == results[1]


def located(
    path: str, work_dir: Path, stated: str = "", fits: Callable[[Path], bool] = lambda way: True
) -> Path | None:
    """The first of `ways` at which there is a file or a folder.

    Args:
        fits: asked whether that can be what the run had; where none is, the first is taken.
    """
    return likeliest([way for way in ways(path, work_dir, stated) if way.exists()], fits)


def likeliest(found: Sequence[Path], fits: Callable[[Path], bool]) -> Path | None:
    """The first that fits, else the first; None of none."""
    return next((way for way in found if fits(way)), found[0] if found else None)


def may_have_taught(work_dir: Path) -> Callable[[Path], bool]:
    """Whether a checkpoint can be that of a run's teacher: by the hash that its project keeps, else by the times.

    A training whose last session began after the student's has another checkpoint since than the one that taught.

    Args:
        work_dir: where the student's run is.
    """
    kept = content(work_dir.resolve().parent / "distill.json").get("made")
    digest = kept.get(work_dir.resolve().name) if isinstance(kept, Mapping) else None
    ended = _started(work_dir)

    def fits(checkpoint: Path) -> bool:
        if isinstance(digest, str) and checkpoint.is_file():
            return sha256_of_file(checkpoint) == digest
        began = _started(checkpoint.parent)
        return ended is None or began is None or began <= ended

    return fits


def _started(work_dir: Path) -> float | None:
    """When the session began that finished a run, in seconds; None where that is not known."""
    try:
        return datetime.fromisoformat(content(work_dir / RESULT)["started"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return None


def content(file: Path) -> Mapping[str, Any]:
    """The object in a JSON file; empty where there is none."""
    try:
        return mapping(read_json(file), str(file))
    except UnreadableError:
        return {}


def started_in(work_dir: Path, stated: str) -> Path | None:
    """The folder that a run was started in, which its relative paths begin at; None where that is not known.

    Args:
        work_dir: where the run is.
        stated: where the run said that it was, a relative path.
    """
    parts, whole = Path(os.path.normpath(stated)).parts, work_dir.resolve().parts
    known = stated and not Path(stated).is_absolute() and ".." not in parts and whole[-len(parts) :] == parts
    return Path(*whole[: -len(parts)]) if known else None
