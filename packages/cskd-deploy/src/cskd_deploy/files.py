"""Writing files so that a failure leaves neither half a file nor a lost one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from cskd_deploy.errors import DeployError

# What file systems answer that cannot sync a folder, or do not let it be opened for that.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EPERM)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file beside `path`, then give it that name; the folder is made if it is not there.

    In this order, so that a power cut at any moment leaves the old file or the new one, whole: write, flush, sync the
    file, rename, sync the folder.

    Raises:
        DeployError: the file cannot be written. What `path` held before stays.
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _open_locked(temporary) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
    except OSError as error:
        raise _not_writable(path, error) from error
    finally:
        _remove(temporary)
    _sync_folder_of(path)


def sweep(paths: Iterable[Path]) -> None:
    """Remove the temporary files that killed processes left when they wrote `paths`; not those of a save going on."""
    for path in paths:
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            with contextlib.suppress(OSError), leftover.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its writer lives
                leftover.unlink()


def check_writable(path: Path) -> None:
    """Fail before long work, not after it, when `path` could not be written; sweeps leftovers of killed work.

    Raises:
        DeployError: as `write_atomically`; also when `path` is a folder.
    """
    if path.is_dir():
        raise DeployError(f"output {path} is a folder, expected the name of a file")
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep([path])
        temporary.touch()
    except OSError as error:
        raise _not_writable(path, error) from error
    finally:
        _remove(temporary)


def sha256_of_file(path: Path) -> str:
    """As 64 hexadecimal digits; the file is read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _open_locked(path: Path) -> BinaryIO:
    """An empty file, locked as long as it is open, which keeps `sweep` from it."""
    while True:
        file = path.open("wb")
        with contextlib.suppress(OSError):  # without locks on this file system, `sweep` leaves everything
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # a sweep was quicker than the lock


def _sync_folder_of(path: Path) -> None:
    """Have the new name of a file on the disk too, where the file system can.

    Raises:
        DeployError: the disk reports an error.
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise DeployError(
                f"output {path} is written, but a power cut may undo it: its folder gave {error}"
            ) from error


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # its folder is not one: there is nothing to remove
        path.unlink(missing_ok=True)


def _not_writable(path: Path, error: OSError) -> DeployError:
    return DeployError(f"output {path} cannot be written: {error.strerror or error}. Give another path")
