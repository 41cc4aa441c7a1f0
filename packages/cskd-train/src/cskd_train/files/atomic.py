"""Writing files so that a crash or a full disk leaves the old file and no litter."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from cskd_train.errors import TrainError


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file in the folder of `path`, flush it to disk, then rename it to `path`.

    Raises:
        TrainError: the file cannot be written (disk full, no permission). Whatever goes wrong, an older `path` stays
            whole and the temporary file is gone.
    """
    temporary: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            write(file)  # type: ignore[arg-type]
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
            temporary.unlink(missing_ok=True)


def write_json(path: Path, data: Any, indent: int | None = 2) -> None:
    """Write `data` as JSON, atomically."""
    text = json.dumps(data, indent=indent) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def _umask() -> int:
    """The process's umask: a temporary file is made private, the file it becomes should not be."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
