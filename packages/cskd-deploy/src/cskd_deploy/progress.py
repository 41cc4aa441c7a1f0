"""Progress of long work on stderr, so that stdout holds the result alone: one line that redraws itself on a terminal,
a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time


class Progress:
    """Counts `unit`s of a piece of work and says how long it still takes."""

    def __init__(self, title: str, unit: str, *, show_rate: bool = True, seconds_between_lines: float = 5.0) -> None:
        self._title = title
        self._unit = unit
        self._show_rate = show_rate
        self._terminal = sys.stderr.isatty()
        self._pause = 0.1 if self._terminal else seconds_between_lines
        self._begin = self._shown = time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        """Say that `done` of `total` are done; shows it when it is time to."""
        now = time.perf_counter()
        if done < total and now - self._shown < self._pause:
            return
        self._shown = now
        seconds = max(now - self._begin, 1e-9)
        rate = done / seconds
        left = f"{(total - done) / rate:.0f} s left" if done < total and rate else f"{seconds:.1f} s"
        speed = f"{rate:.1f}/s, " if self._show_rate else ""
        line = f"{self._title} {done}/{total} {self._unit}, {speed}{left}"
        if self._terminal:
            sys.stderr.write(f"\r\x1b[K{line}" + ("\n" if done >= total else ""))
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()
