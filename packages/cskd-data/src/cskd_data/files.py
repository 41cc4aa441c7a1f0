"""Writing files so that a crash or a power cut leaves the old file or the new one, whole, and no litter."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from cskd_data.errors import DataError

# What file systems answer that cannot sync a folder, or do not let it be opened for that.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EPERM)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then give it that name; the folder is made if it is not there.

    In this order, so that a power cut at any moment leaves the old file or the new one, whole: write, flush, sync the
    file, rename, sync the folder.

    Raises:
        DataError: the file cannot be written (disk full, no permission). Whatever goes wrong, an older `path` stays
            whole and the temporary file is gone; only what kills the process leaves it behind, for `sweep`.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _open_temporary(path) as file:
            temporary = Path(file.name)
            write(file)
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
            temporary = None
    except OSError as error:
        raise _not_writable(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # a disk that became read-only: the reason is on its way already
                temporary.unlink(missing_ok=True)
    _sync_folder_of(path)


def write_json(path: Path, data: Any, indent: int | None = 2) -> None:
    """Write `data` as JSON, atomically."""
    content = (json.dumps(data, indent=indent) + "\n").encode()
    write_atomically(path, lambda file: file.write(content))


def check_writable(path: Path) -> None:
    """Fail before long work, not after it, when `path` could not be written; sweeps leftovers of killed work.

    Raises:
        DataError: as `write_atomically`; also when `path` is a folder.
    """
    if path.is_dir():
        raise DataError(f"output {path} is a folder, expected the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep([path])
        with _open_temporary(path) as file:
            Path(file.name).unlink()
    except OSError as error:
        raise _not_writable(path, error) from error


def check_not_input(output: Path, inputs: Iterable[Path | None], what: str = "output") -> None:
    """Refuse an output that would be written over what is read.

    Args:
        inputs: files; None is none.
        what: to begin the message with, such as `--plot`.

    Raises:
        DataError: as `written_over`.
    """
    found = written_over([output], inputs)
    if found is not None:
        raise DataError(f"{what} {output} would replace {found[1]}, which is read: give another name")


def written_over(outputs: Iterable[Path], inputs: Iterable[Path | None]) -> tuple[Path, Path] | None:
    """The first output that is an input too, and that input: by name, or one file under two names (links)."""
    read: dict[object, Path] = {}
    for path in filter(None, inputs):
        for mark in _marks(path):
            read.setdefault(mark, path)
    return next(((output, read[mark]) for output in outputs for mark in _marks(output) if mark in read), None)


def _marks(path: Path) -> Iterator[object]:
    """What files are told apart by."""
    yield os.path.abspath(path)
    with contextlib.suppress(OSError, ValueError):  # not there, or a name with a null character
        status = os.stat(path)
        yield status.st_dev, status.st_ino


def check_utf8_name(path: Path, what: str) -> None:
    """Refuse a path for libraries that take names as UTF-8 only (TensorBoard, ONNX Runtime).

    Args:
        what: to begin the message with, such as `work dir`.

    Raises:
        DataError: its bytes are no UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{what} {path} has a name whose bytes are not UTF-8 text, which TensorBoard and ONNX Runtime cannot open: "
            "rename it, or give another one"
        ) from error


def sweep(paths: Iterable[Path]) -> None:
    """Remove the temporary files that killed processes left when they wrote `paths`; not those of a save going on."""
    for path in paths:
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            with contextlib.suppress(OSError), leftover.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its writer lives
                leftover.unlink()


def sha256_of_file(path: Path) -> str:
    """As 64 hexadecimal digits; the file is read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _open_temporary(path: Path) -> BinaryIO:
    """A new file in the folder of `path`, locked as long as it is open, which keeps `sweep` from it."""
    while True:
        file = tempfile.NamedTemporaryFile(  # noqa: SIM115  (the caller closes it)
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
        DataError: the disk reports an error.
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise DataError(f"{path} is written, but a power cut may undo it: its folder gave {error}") from error


def _not_writable(path: Path, error: OSError) -> DataError:
    kept = f"; the older {path.name} is untouched" if path.is_file() else ""
    return DataError(f"cannot write {path}: {error}{kept}. Free space on that disk, or choose another folder")


def _umask() -> int:
    """The process's umask: a temporary file is made private, the file it becomes should not be."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
