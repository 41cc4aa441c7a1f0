"""Writing files so that a crash or a power cut leaves the old file or the new one, whole, and no litter."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from cskd_data.errors import DataError

# What file systems answer that cannot sync a folder, or do not let it be opened for that.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EPERM)


def write_atomically(path: Path, write: Callable[[BinaryIO], object], *, keep_links: bool = True) -> None:
    """Let `write` fill a temporary file beside `path`, then give it that name; the folder is made if it is not there.

    In this order, so that a power cut at any moment leaves the old file or the new one, whole: write, flush, sync the
    file, rename, sync the folder. Of a link all this is done with the file that it points to, and the link stays.

    A pipe, a device of characters (a terminal) and this process's own output get the content once it is whole; no file
    takes their place.

    Args:
        keep_links: False puts the file in the place of a link, for names that the user does not give: what another run
            wrote stays.

    Raises:
        DataError: the file cannot be written (disk full, no permission), or `path` is none that can be. Whatever goes
            wrong, an older `path` stays whole and the temporary file is gone; only what kills the process leaves it
            behind, for `sweep`.
    """
    target = _target(path) if keep_links or not path.is_symlink() else path
    if target is None:
        _write_through(path, write)
        return
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _open_temporary(target) as file:
            temporary = Path(file.name)
            write(file)
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(target)
            temporary = None
    except OSError as error:
        raise _not_writable(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # a disk that became read-only: the reason is on its way already
                temporary.unlink(missing_ok=True)
    _sync_folder_of(target)


def write_json(path: Path, data: Any, indent: int | None = 2) -> None:
    """Write `data` as JSON, atomically."""
    content = (json.dumps(data, indent=indent) + "\n").encode()
    write_atomically(path, lambda file: file.write(content))


def check_writable(path: Path) -> None:
    """Fail before long work, not after it, when `path` could not be written; sweeps leftovers of killed work.

    Raises:
        DataError: as `write_atomically`.
    """
    target = _target(path)
    try:
        if target is None:
            if _own_output(path) is None and not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep([target])
        with _open_temporary(target) as file:
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
        for mark in marks(path):
            read.setdefault(mark, path)
    return next(((output, read[mark]) for output in outputs for mark in marks(output) if mark in read), None)


def marks(path: Path) -> Iterator[object]:
    """What files are told apart by: paths with one of these in common are one file, which need not be there yet."""
    yield os.path.abspath(path)
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # not there, or a name with a null character
        with contextlib.suppress(OSError, ValueError):
            yield os.path.realpath(path)
    else:
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
    for path in map(_followed, paths):
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


def _target(path: Path) -> Path | None:
    """The file that is written for `path`; None where that is a stream of bytes, which no file may replace.

    Raises:
        DataError: it is a folder, or something else that takes no bytes, or a link in a circle of links.
    """
    mode = 0
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DataError(f"output {path} is a link in a circle of links: give another name") from error
        # Not there, or not to be looked at: writing it will tell.
    if stat.S_ISDIR(mode):
        raise DataError(f"output {path} is a folder, expected the name of a file")
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or (mode and _own_output(path) is not None):
        return None
    if mode and not stat.S_ISREG(mode):
        raise DataError(f"output {path} is neither a file nor a pipe: give another name")
    return _followed(path)


def _followed(path: Path) -> Path:
    """Of a link what it points to, whether that is there or not."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _own_output(path: Path) -> int | None:
    """This process's standard output or error, 1 or 2, where `path` is a name of it (`/dev/stdout`), else None."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # closed
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
    return None


def _write_through(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file, and copy it to a stream: some kinds of files are not written front to back.

    Raises:
        DataError: as `write_atomically`.
    """
    try:
        with tempfile.NamedTemporaryFile() as file:
            write(cast(BinaryIO, file))
            file.flush()
            file.seek(0)
            own = _own_output(path)
            with open(path if own is None else os.dup(own), "wb") as stream:  # a name or a descriptor
                shutil.copyfileobj(file, stream)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error}. It is no file: give the name of one") from error


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
