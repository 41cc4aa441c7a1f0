"""How far a build is, from TensorRT's own reports of nested phases."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def make_monitor(trt: Any, progress: Callable[[float], None]) -> Any:
    """TensorRT's progress monitor, as one rising number from 0 to 1.

    TensorRT calls it from threads of its own. No exception passes through it: how far a build is, is no reason to end
    it, unless nobody reads the reports any more.
    """

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases = Phases()
            self._lock = threading.Lock()
            self._read = True

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._report(lambda: self._phases.start(phase, parent, steps))

        def phase_finish(self, phase: str) -> None:
            self._report(lambda: self._phases.finish(phase))

        def step_complete(self, phase: str, step: int) -> bool:
            self._report(lambda: self._phases.step(phase, step))
            return self._read  # False ends the build

        def _report(self, change: Callable[[], None]) -> None:
            try:
                with self._lock:
                    change()
                    progress(self._phases.done)
            except BrokenPipeError:
                self._read = False
            except Exception:
                pass

    return Monitor()


@dataclass
class _Phase:
    parent: str | None
    steps: int
    completed: int = 0


class Phases:
    """TensorRT's nested phases as one number: a phase is a part of the current step of its parent.

    A phase that was never started, or has finished, changes nothing; one whose parent has finished counts as a part of
    the whole no more.
    """

    def __init__(self) -> None:
        self._phases: dict[str, _Phase] = {}
        self.done = 0.0  # of the whole; never falls

    def start(self, name: str, parent: str | None, steps: int) -> None:
        self._phases[name] = _Phase(parent, max(steps, 1))

    def step(self, name: str, step: int) -> None:
        phase = self._phases.get(name)
        if phase is not None:
            phase.completed = step + 1
            self._advance(phase, phase.completed / phase.steps)

    def finish(self, name: str) -> None:
        phase = self._phases.pop(name, None)
        if phase is not None:
            self._advance(phase, 1.0)

    def _advance(self, phase: _Phase, share: float) -> None:
        """Take in that a share of a phase is done."""
        while phase.parent is not None:
            parent = self._phases.get(phase.parent)
            if parent is None:
                return
            share = min((parent.completed + share) / parent.steps, 1.0)
            phase = parent
        self.done = max(self.done, min(share, 1.0))
