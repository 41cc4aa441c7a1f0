"""What the commands of `cskd-train data` share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cskd_data.dataset import Dataset
from cskd_data.errors import DataError
from cskd_data.formats import reader_of

A_PATH = click.Path(path_type=Path)

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
images_option = click.option(
    "--images", type=A_PATH, help="Folder that the image names start from. [default: looked for beside the file]"
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace files that are there.")


class Result(Protocol):
    """What a command prints."""

    def to_dict(self) -> dict[str, Any]: ...


def show(result: Result, as_json: bool) -> None:
    """Print a result as text or as JSON."""
    click.echo(json.dumps(result.to_dict(), indent=2) if as_json else str(result))


def names(classes: str | None) -> list[str] | None:
    """`a, b` as a list; None stays None."""
    return None if classes is None else [name.strip() for name in classes.split(",") if name.strip()]


def read(path: Path, images: Path | None, classes: str | None = None, **settings: Any) -> Dataset:
    """The data set at a path, with the classes that were asked for.

    Raises:
        DataError: as `cskd_data.read`; it lacks one of the classes.
    """
    dataset = reader_of(path)(path, images, **settings)
    wanted = names(classes)
    return dataset if wanted is None else dataset.select(wanted)


def config_lines(written: Mapping[str, tuple[Path, Dataset]]) -> list[str]:
    """What to print of a config that trains on files that were written; nothing where none is for training.

    Args:
        written: by split; those that a config has no name for are left out.
    """
    splits = [name for name in ("train", "val", "test") if name in written]
    if "train" not in splits:
        return []
    classes = written["train"][1].classes
    sources = [
        f"{name}=dict(ann_file={os.path.abspath(path)!r}, img_prefix={os.path.abspath(dataset.image_root or '')!r}),"
        for name in splits
        for path, dataset in [written[name]]
    ]
    return [
        "  a config that trains on them:",
        '    _base_ = "CONFIG.py"  # of a detector, such as configs/bccd/retinanet_r18_bccd.py',
        f"    classes = {classes!r}",
        "    data = dict(",
        *(f"        {source}" for source in sources),
        "    )",
    ]


def refuse_existing(paths: Sequence[Path], overwrite: bool) -> None:
    """Refuse to write over files, before any work.

    Raises:
        DataError: one of them exists and may not be replaced.
    """
    there = [str(path) for path in paths if path.exists()]
    if there and not overwrite:
        exist = "exists" if len(there) == 1 else "exist"
        raise DataError(f"{', '.join(there)} {exist}: nothing was changed. Give another name, or --overwrite")


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, gone when done; nothing is drawn where no person looks at it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
