"""The open files that a loader's worker processes need: each tensor on its way to this process is one."""

from __future__ import annotations

import errno

from cskd_train.errors import TrainError

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

_PROCESS = 64  # what a process has open without any worker: libraries, logs, the checkpoint
_WORKER = 8  # pipes and events of one worker
WAYS_OUT = "raise the limit (`ulimit -n 4096`), or load images without them (`--set data.workers_per_gpu=0`)"


def too_many_open_files(error: BaseException) -> bool:
    """Whether an exception says that this process, or the system, may open no further file."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return True
    # torch passes tensors between processes as open files, and says it in words.
    return isinstance(error, RuntimeError) and any(words in str(error) for words in ("Too many open files", "ancdata"))


def allow_open_files(workers: int, batch_size: int) -> None:
    """Raise this process's limit of open files as far as `workers` may need, where the system lets it.

    Two batches wait for each worker, with the pictures as one tensor, boxes and labels as two for each image.

    Raises:
        TrainError: the system's limit is too low even for the workers' pipes.
    """
    if resource is None or workers == 0:
        return
    least = _PROCESS + _WORKER * workers
    wanted = least + 2 * workers * (2 * batch_size + 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if allowed < least:
        raise TrainError(
            f"this process may open {hard} files, and {workers} workers that load images need about {wanted}: "
            f"{WAYS_OUT}"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
