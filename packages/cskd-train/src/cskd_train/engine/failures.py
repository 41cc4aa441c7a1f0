"""Errors of torch and of the system that a user can put right, turned into messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cskd_train.engine.open_files import WAYS_OUT, too_many_open_files
from cskd_train.engine.signals import StopRequest
from cskd_train.errors import TrainError

_LOADER_SIGNS = ("DataLoader worker (pid", "</torch_")
"""In torch's words: a worker is gone, or a tensor found no room in shared memory on its way from one."""


@contextmanager
def explained_failures(stop: StopRequest | None = None, *, training: bool = True) -> Iterator[None]:
    """Turn torch's errors that a user can put right into messages.

    Args:
        stop: of what is under way: a signal to the whole process group ends the loader's workers too.
        training: False for an evaluation, which has other ways out.

    Raises:
        TrainError: the GPU has too little memory; no further file can be opened; a worker of the loader died.
        Interrupted: it died of a signal.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        if training:
            raise TrainError(
                f"the GPU has too little memory: {error}. Lower the batch size (--batch-size) and raise --accumulate "
                "by as much, or train with --amp"
            ) from error
        raise TrainError(
            f"the GPU has too little memory: {error}. End other programs on it, or detect with --device cpu"
        ) from error
    except (OSError, RuntimeError) as error:
        if too_many_open_files(error):
            raise TrainError(
                f"no further file can be opened ({error}), and workers that load images need many: {WAYS_OUT}"
            ) from error
        if isinstance(error, OSError) or not any(sign in str(error) for sign in _LOADER_SIGNS):
            raise
        if stop is not None:
            stop.check()
        if training:
            raise TrainError(
                f"a process that loads images died: {error}. Memory or shared memory (/dev/shm) may be too small: "
                "--workers 0 loads images in the training process"
            ) from error
        raise TrainError(
            f"a process that loads images died: {error}. Memory or shared memory (/dev/shm) may be too small: "
            "--set data.workers_per_gpu=0 loads images in the process that detects"
        ) from error
