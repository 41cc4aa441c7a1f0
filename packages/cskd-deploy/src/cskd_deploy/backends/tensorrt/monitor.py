"""How far a build is, from TensorRT's own reports of nested phases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def make_monitor(trt: Any, progress: Callable[[float], None]) -> Any:
    """TensorRT's progress monitor, as one rising number from 0 to 1."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases = Phases()

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._phases.start(phase, parent, steps)

        def phase_finish(self, phase: str) -> None:
            self._phases.finish(phase)
            progress(self._phases.done)

        def step_complete(self, phase: str, step: int) -> bool:
            self._phases.step(phase, step)
            progress(self._phases.done)
            return True  # False would end the build

    return Monitor()


class Phases:
    """TensorRT's nested phases as one number: a phase is a part of the current step of its parent."""

    def __init__(self) -> None:
        self._steps: dict[str, int] = {}
        self._parents: dict[str, str | None] = {}
        self._counts: dict[str, int] = {}
        self.done = 0.0  # of the whole; never falls

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        self._parents[phase], self._steps[phase], self._counts[phase] = parent, max(steps, 1), 0

    def step(self, phase: str, step: int) -> None:
        self._counts[phase] = step + 1
        self.done = max(self.done, self._place(phase, self._counts[phase] / self._steps[phase]))

    def finish(self, phase: str) -> None:
        self.done = max(self.done, self._place(phase, 1.0))
        for known in (self._steps, self._parents, self._counts):
            known.pop(phase)

    def _place(self, phase: str, part: float) -> float:
        """Where in the whole a place within a phase is."""
        parent = self._parents[phase]
        while parent in self._steps:
            part = min((self._counts[parent] + part) / self._steps[parent], 1.0)
            parent = self._parents[parent]
        return min(part, 1.0)
