"""Writing files so that a crash or a full disk leaves the old file and no litter."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, cast

from cskd_train.errors import TrainError

# What file systems answer that cannot sync a folder, or do not let it be opened for that.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EPERM)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file in the folder of `path`, then give it that name.

    In this order, so that a power cut at any moment leaves the old file or the new one, whole: write, flush, sync the
    file, rename, sync the folder.

    Raises:
        TrainError: the file cannot be written (disk full, no permission). Whatever goes wrong, an older `path` stays
            whole and the temporary file is gone; only what kills the process leaves it behind, for `sweep`.
    """
    temporary: Path | None = None
    try:
        with _open_temporary(path) as file:
            temporary = Path(file.name)
            write(file)
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
            temporary = None
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        kept = f"; the older {path.name} is untouched" if path.exists() else ""
        raise TrainError(
            f"cannot write {path}: {error}{kept}. Free space on that disk, or choose another folder"
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # a disk that became read-only: the reason is on its way already
                temporary.unlink(missing_ok=True)
    _sync_folder_of(path)


def sweep(paths: Iterable[Path]) -> None:
    """Remove the temporary files that killed processes left when they wrote `paths`; not those of a save going on."""
    for path in paths:
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            with contextlib.suppress(OSError), leftover.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its writer lives
                leftover.unlink()


def write_json(path: Path, data: Any, indent: int | None = 2) -> None:
    """Write `data` as JSON, atomically."""
    text = json.dumps(data, indent=indent) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def _open_temporary(path: Path) -> BinaryIO:
    """A new file in the folder of `path`, locked as long as it is open, which keeps `sweep` from it."""
    while True:
        file = tempfile.NamedTemporaryFile(  # noqa: SIM115  (write_atomically closes it)
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False
        )
        with contextlib.suppress(OSError):  # without locks on this file system, `sweep` leaves everything
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return cast(BinaryIO, file)
        file.close()  # a sweep was quicker than the lock


def _sync_folder_of(path: Path) -> None:
    """Have the new name of a file on the disk too, where the file system can.

    Raises:
        TrainError: the disk reports an error.
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise TrainError(f"{path} is written, but a power cut may undo it: its folder gave {error}") from error


def _umask() -> int:
    """The process's umask: a temporary file is made private, the file it becomes should not be."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
