"""Where the files and folders are that a run has named: relative paths, and a run that may have been moved since."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_ANYWHERE = "/-" * 16  # relative paths of one run begin at one folder, whichever it was


def ways(path: str, work_dir: Path, stated: str = "") -> Iterator[Path]:
    """Where a path of a run may lead, the likeliest first.

    It lies to the work dir as it lay when the run was made; or in a folder of its name beside the work dir; or it is
    the path as it stands. A relative one begins at the folder of the call then, where another run may have one like it.

    Args:
        path: as the run named it; a URL leads nowhere.
        work_dir: where the run is.
        stated: where the run said that it was; empty where it does not say.
    """
    if "://" in path or not (named := Path(path).expanduser()).name:
        return
    folder = work_dir.resolve()
    if stated and Path(stated).is_absolute() == named.is_absolute():
        between = os.path.relpath(os.path.join(_ANYWHERE, named), os.path.join(_ANYWHERE, stated))
        yield Path(os.path.normpath(folder / between))
    if named.is_absolute():
        yield named
    if named.parent.name:
        yield folder.parent / named.parent.name / named.name
    yield folder.parent / named.name
    yield named


def located(path: str, work_dir: Path, stated: str = "") -> Path | None:
    """The first of `ways` at which there is a file or a folder."""
    return next((way for way in ways(path, work_dir, stated) if way.exists()), None)


def started_in(work_dir: Path, stated: str) -> Path | None:
    """The folder that a run was started in, which its relative paths begin at; None where that is not known.

    Args:
        work_dir: where the run is.
        stated: where the run said that it was, a relative path.
    """
    parts, whole = Path(os.path.normpath(stated)).parts, work_dir.resolve().parts
    known = stated and not Path(stated).is_absolute() and ".." not in parts and whole[-len(parts) :] == parts
    return Path(*whole[: -len(parts)]) if known else None
