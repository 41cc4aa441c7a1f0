"""Faster training on a processor: memory that is freed is kept for the next tensor."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # the names of <malloc.h>
_TOP_PAD_BYTES = 64 << 20


def keep_freed_memory() -> None:
    """Ask glibc to keep what is freed, instead of giving every large tensor back to the kernel.

    A training step allocates and frees the same large tensors again and again; by default each of them is mapped anew,
    and the kernel clears every page on first use. The process keeps its peak of memory until it ends. Without glibc
    (macOS, Alpine) nothing is done.

    Source: the figures are in docs/performance.md.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)
    mallopt(_M_TOP_PAD, _TOP_PAD_BYTES)
