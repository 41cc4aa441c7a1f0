"""What a project's `work_dirs/distill.json` holds from one call of `distill` to the next, and what may not change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from cskd_data.files import write_json
from cskd_data.folders import files_below, walk
from cskd_data.json_file import load_json
from cskd_train.engine.prepare import say
from cskd_train.engine.resume import flat
from cskd_train.errors import TrainError
from cskd_train.files.checkpoints import sha256

MAY_CHANGE = (
    "runner.max_epochs",
    "lr_config.step",
    "data.workers_per_gpu",
    "log_config",
    "checkpoint_config",
    "tuples_as_lists",  # of the file alone
)
"""Settings that a run may have other than its config has now."""


def data_hashes(root: Path, product: Path) -> dict[str, str]:
    """The annotation files of a project with their hashes.

    Args:
        product: one that the project's own teacher writes, and is left out.
    """
    files = [file for file in sorted((root / "data").glob("*.json")) if file.absolute() != product.absolute()]
    return {str(file.relative_to(root)): sha256(file) for file in files}


@dataclass
class State:
    """What was chosen, measured and made so far."""

    file: Path
    data: dict[str, str]  # annotation file -> its hash when the first run began
    epochs: dict[str, int]  # role -> epochs that were chosen for it
    costs: dict[str, dict[str, Any]]  # role -> `Cost`
    made: dict[str, str]  # product -> `mark` of what it was made from; "distilled" and "labels": hash of what taught it
    budget: float | None = None
    root: str = ""  # where the project was when its first run began: it may have been moved
    measured: dict[str, str] = field(default_factory=dict)  # role -> `mark` of what its cost was measured on
    labelling: float = 0.0  # seconds that the pictures without labels took
    planned: dict[str, int] = field(default_factory=dict)  # role -> max_epochs that its epochs were chosen from
    files: dict[str, str] = field(default_factory=dict)  # product -> hash of the file as it was made

    @classmethod
    def read(cls, file: Path) -> State:
        """The state in a file, or that of a project on which nothing was done."""
        if not file.exists():
            return cls(file, {}, {}, {}, {})
        return cls(file, **{key: value for key, value in read_json(file).items() if key != "file"})

    def write(self) -> None:
        """Write the file."""
        self.file.parent.mkdir(exist_ok=True)
        write_json(self.file, {key: value for key, value in vars(self).items() if key != "file"})

    def make(self, name: str, file: Path, inputs: Sequence[Any], make: Callable[[], None], console: Console) -> None:
        """Make a file, where it is not there or was made from other inputs.

        One of its name that was not made here is kept under another name.

        Args:
            name: of the product.
            inputs: all that decides what is in it, as plain data.
            make: writes it.
            console: takes the other name.
        """
        if file.exists() and self.is_made(name, inputs):
            return
        if file.exists() and not self.is_own(name, file):
            aside = _free(file)
            file.rename(aside)
            say(
                console,
                f"note: {file} was not made by this command, or has changed since: it is {aside.name} from here on",
            )
        make()
        self.made[name] = mark(*inputs)
        self.files.pop(name, None)
        if file.exists():
            self.files[name] = sha256(file)
        self.write()

    def forget_epochs(self, planned: Mapping[str, int]) -> dict[str, int]:
        """Chosen epochs hold only for the max_epochs that they were chosen from: gives those that hold no more.

        Args:
            planned: role -> max_epochs of its config now.
        """
        found = {
            role: self.epochs[role] for role, number in planned.items() if self.planned.get(role, number) != number
        }
        for role in found:
            del self.epochs[role], self.planned[role]
        return found

    def is_made(self, name: str, inputs: Sequence[Any]) -> bool:
        """Whether a product was last made from these inputs."""
        return self.made.get(name) == mark(*inputs)

    def is_own(self, name: str, file: Path) -> bool:
        """Whether a file was made here, and is as it was then."""
        return name in self.made and self.files.get(name) in (None, sha256(file))


def _free(file: Path) -> Path:
    """A name beside a file that no other has."""
    numbers = ("", *range(2, 1000))
    names = (file.with_name(f"{file.stem}.before{number}{file.suffix}") for number in numbers)
    return next(name for name in names if not name.exists())


def content_of(path: str | Path, suffixes: tuple[str, ...] = ()) -> Any:
    """Equal for a file of the same content, or for a folder with the same files, by their names and sizes.

    Args:
        suffixes: of the files of a folder that count; without any all do.
    """
    path = Path(path)
    if path.is_file():
        return sha256(path)
    found = files_below(path, suffixes) if suffixes else sorted(walk(path))
    return [(str(file.relative_to(path)), file.stat().st_size) for file in found]


def mark(*parts: Any) -> str:
    """Equal for equal plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def refuse_other_settings(work_dir: Path, config: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a run of other settings than its config has now: its result would not be that config's.

    Args:
        work_dir: of the run.
        config: name of its config, for the message.
        before: the config that the run stored.
        now: as plain data.

    Raises:
        TrainError: names the first setting, and the folder to remove.
    """
    was, is_now = dict(flat(before)), dict(flat(json.loads(json.dumps(now))))
    for key in {**was, **is_now}:
        if was.get(key) != is_now.get(key) and not key.startswith(MAY_CHANGE):
            raise TrainError(
                f"{work_dir} was trained with other settings than {config} has now: {key} was "
                f"{was.get(key, 'not set')} and is {is_now.get(key, 'not set')}. Remove {work_dir} to train it anew, "
                "or set the setting back"
            )


def read_json(file: Path) -> Any:
    """A file that this package wrote.

    Raises:
        DataError: it is no JSON.
    """
    return load_json(file, "result")
