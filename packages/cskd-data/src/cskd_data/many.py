"""Work on many images and many annotations: in threads, and without Python looking for garbage in between."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from cskd_data.cores import usable_cores

READERS = 8
"""Threads that open files: they wait for the disk, or for the network."""

DECODERS = min(4, usable_cores())
"""Threads that decode images, which OpenCV does outside of Python's lock; each has a picture in memory."""

_CHUNK = 16  # items of one task: a task costs as much as a header
_SLOW = 1e-3  # seconds an item

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(work: Callable[[Item], Result], items: Sequence[Item], threads: int) -> Iterator[Result]:
    """The results of `work`, in the order of the items; in threads from where an item takes a millisecond.

    What takes less (a header out of the system's cache) is slower in threads, which all wait for Python's lock. An
    exception of one item ends all.
    """
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    done, slow = 0, False
    while done < len(chunks) and not (slow and threads > 1):
        begin = time.perf_counter()
        results = [work(item) for item in chunks[done]]
        slow = time.perf_counter() - begin > _SLOW * len(results)
        done += 1
        yield from results
    if done == len(chunks):
        return
    pool = ThreadPoolExecutor(threads)
    try:
        for results in pool.map(lambda chunk: [work(item) for item in chunk], chunks[done:]):
            yield from results
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def paused_garbage_collection() -> Iterator[None]:
    """No search for reference cycles within: among a million new dicts that all stay there is none to be freed."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
