"""What is looked at before long work: an output can be written, and its name is not that of something else."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from cskd_data.files import check_not_input, check_writable, marks
from cskd_data.images import SUFFIXES as PICTURES
from cskd_deploy.backends import CHECKPOINT_SUFFIXES, ENGINE_SUFFIXES
from cskd_deploy.errors import DeployError

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
ONNX = (".onnx",)
_KINDS = {
    "an image": PICTURES,
    "a video": VIDEOS,
    "a checkpoint": CHECKPOINT_SUFFIXES,
    "an engine": ENGINE_SUFFIXES,
    "an exported model": ONNX,
}


def check_output(path: Path, inputs: Iterable[Path | None], own: tuple[str, ...] = (), what: str = "output") -> None:
    """Fail before long work when a file could not be written, or would take the place of something else.

    A pattern that the shell resolves gives an option the first file, which is then no input: hence the name counts too,
    and of a link that of the file it points to.

    Args:
        inputs: files that are read; None is none.
        own: endings of names of such files, in lower case. Of images, videos and models no others are taken.
        what: to begin the message with, such as `--json`.

    Raises:
        DeployError: its name ends as that of an image, a video or a model of another kind.
        DataError: it is an input, or cannot be written.
    """
    for name in dict.fromkeys((path, Path(os.path.realpath(path)))):
        suffix = name.suffix.lower()
        kind = next((kind for kind, suffixes in _KINDS.items() if suffix in suffixes and suffix not in own), None)
        if kind is not None and name.name != path.name:
            raise DeployError(f"{what} {path} is a link to {name}, which has the name of {kind}: give another one")
        if kind is not None:
            raise DeployError(
                f"{what} {path} has the name of {kind}: give another one (a pattern such as *{suffix} that the shell "
                "resolves gives an option its first file)"
            )
    check_not_input(path, inputs, what)
    check_writable(path)


def check_apart(outputs: Mapping[str, Iterable[Path]]) -> None:
    """Refuse outputs of one call of which one would take the place of another, or of the folder that this lies in.

    Args:
        outputs: by the option that names them, such as `--json`, all files that are written; those of one option are
            not compared with each other.

    Raises:
        DeployError: names two of them.
    """
    given = [(what, path) for what, paths in outputs.items() for path in paths]
    taken: dict[object, tuple[str, Path]] = {}
    for what, path in given:
        for mark in marks(path):
            other = taken.setdefault(mark, (what, path))
            if other[0] != what:
                raise DeployError(f"{what} {path} would take the place of {other[0]} {other[1]}: give another name")
    folders = {(what, path.parent): path for what, path in reversed(given)}  # of many files in one, the first
    for (what, folder), path in folders.items():
        for place in map(Path, (os.path.abspath(folder), os.path.realpath(folder))):
            for above in (place, *place.parents):
                name, other_path = taken.get(str(above), (what, path))
                if name != what:
                    raise DeployError(
                        f"{name} {other_path} would take the place of the folder of {what} {path}: give another name"
                    )
