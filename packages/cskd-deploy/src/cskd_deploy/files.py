"""Writing files so that a failure leaves neither half a file nor a lost one."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from cskd_deploy.errors import DeployError


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file beside `path`, then give it that name; the folder is made if it is not there.

    Raises:
        DeployError: the folder cannot be written. What `path` held before stays.
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _not_writable(path, error) from error
    finally:
        _remove(temporary)


def check_writable(path: Path) -> None:
    """Fail before long work, not after it, when `path` could not be written.

    Raises:
        DeployError: as `write_atomically`; also when `path` is a folder.
    """
    if path.is_dir():
        raise DeployError(f"output {path} is a folder, expected the name of a file")
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # its folder is not one: there is nothing to remove
        path.unlink(missing_ok=True)


def _not_writable(path: Path, error: OSError) -> DeployError:
    return DeployError(f"output {path} cannot be written: {error.strerror or error}. Give another path")
