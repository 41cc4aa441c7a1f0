"""The folder that a run writes into: what lies in it, and when a run may begin there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cskd_data.files import check_utf8_name, sweep, written_over
from cskd_data.json_file import load_json
from cskd_train.errors import TrainError


@dataclass(frozen=True)
class WorkDir:
    """The files of one run."""

    root: Path

    @property
    def last(self) -> Path:
        """The newest checkpoint, with all that `--resume` needs."""
        return self.root / "last.pth"

    @property
    def best(self) -> Path:
        """Checkpoint of the epoch with the highest mAP on the validation split."""
        return self.root / "best.pth"

    @property
    def config(self) -> Path:
        """The whole config of the run, as JSON."""
        return self.root / "config.json"

    @property
    def log(self) -> Path:
        """One JSON object a line: logged iterations and evaluations."""
        return self.root / "log.jsonl"

    @property
    def result(self) -> Path:
        """What the finished run measured, as JSON."""
        return self.root / "result.json"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.root / "tf_logs"

    @property
    def begun(self) -> Path:
        """Empty, and there while a launch is under way that has cleared the folder: its restarts go on from here."""
        return self.root / ".begun"

    @property
    def has_run(self) -> bool:
        """Whether a run has begun here and left something: to go on from, or, where last.pth is gone, its result."""
        return self.last.exists() or (self.result.exists() and self.best.exists())

    def finished(self, epochs: int) -> bool:
        """Whether a run of so many epochs, or of more, is through here.

        Raises:
            DataError: its result is no JSON.
        """
        if not self.result.exists() or not self.has_run:
            return False
        result = load_json(self.result, "result")
        return isinstance(result, dict) and int(result.get("epochs") or 0) >= epochs

    def make(self) -> None:
        """Make the folder. Nothing is removed: `clear` does that once all the input has been found to be right.

        Raises:
            TrainError: it cannot be made, or not be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise self._not_writable(error.strerror) from error

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Check that no older run is lost by starting here, and that the folder can be made; write nothing.

        Raises:
            TrainError: the folder cannot be made, or holds a run and neither `resume` nor `overwrite` is set.
            DataError: its name is not UTF-8.
        """
        check_utf8_name(self.root, "work dir")
        nearest = next((folder for folder in (self.root, *self.root.parents) if folder.exists()), Path())
        if not nearest.is_dir():
            raise self._not_writable(f"{nearest} is not a folder")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise self._not_writable(f"no permission in {nearest}")
        used = [path for path in self.files if path.exists()]
        if used and not resume and not overwrite:
            state = "a finished" if self.result.exists() else "an interrupted"
            raise TrainError(
                f"work dir {self.root} already holds {state} run ({used[0].name}). "
                "Go on with --resume, replace it with --overwrite, or choose another --work-dir"
            )
        if resume and used and not self.last.exists() and self.best.exists():
            raise TrainError(
                f"work dir {self.root} has no last.pth to go on from, though it holds {self.best.name}. "
                "Put last.pth back, or remove that folder to begin anew"
            )

    def refuse_to_replace(self, weights: Iterable[Path]) -> None:
        """Refuse a run that would write over the weights that it begins from, or its teacher's.

        Raises:
            TrainError: names them.
        """
        if found := written_over(self.files, weights):
            raise TrainError(
                f"work dir {self.root}: the run would replace {found[1]}, which it begins from or is taught by. "
                "Choose another --work-dir"
            )

    def _not_writable(self, reason: str | None) -> TrainError:
        return TrainError(f"work dir {self.root} cannot be written: {reason}. Choose another with --work-dir")

    def sweep(self) -> None:
        """Remove what a save that was killed has left."""
        sweep(self.files)

    def clear(self) -> None:
        """Remove the files of an older run; nothing else in the folder is touched."""
        self.sweep()
        for path in self.files:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    @property
    def files(self) -> list[Path]:
        """All that a run writes here."""
        return [self.last, self.best, self.config, self.log, self.result, self.tensorboard]
