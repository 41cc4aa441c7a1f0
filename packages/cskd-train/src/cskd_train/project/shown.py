"""What a project shows of its detectors: a picture of what they find, and a report as an HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cskd_train.engine.prepare import say
from cskd_train.engine.signals import Interrupted, stop_on_signals
from cskd_train.errors import REFUSALS
from cskd_train.files.checkpoints import sha256
from cskd_train.project.budget import REPORT_IMAGES
from cskd_train.project.state import State
from cskd_train.report.side_by_side import draw_side_by_side
from cskd_train.report.write import NAME, write_report


def share(images: int) -> float:
    """Of so many validation images, how much the report's detectors look at."""
    return min(1.0, REPORT_IMAGES / max(images, 1))


def picture(
    root: Path, state: State, best: Mapping[str, Path], test: Mapping[str, Any], inputs: Sequence[Any], console: Console
) -> Path:
    """Draw what each detector finds on test images, beside the truth, where that is not done yet.

    Args:
        root: the folder of the project.
        state: of the project.
        best: what a detector is called -> its checkpoint, the distilled student's last.
        test: the config of the test images, as plain data.
        inputs: what decides the picture beside the checkpoints.
        console: takes what becomes of a picture of its name that was not made here.
    """
    out = root / "detections.png"

    def make() -> None:
        draw_side_by_side([*best.values()], out, titles=[*best], split="test", data=test)

    state.make(out.name, out, [_hashes(best), *inputs], make, console)
    return out


def _hashes(best: Mapping[str, Path]) -> list[tuple[str, str]]:
    return [(name, sha256(file)) for name, file in best.items()]


def report(
    root: Path, state: State, best: Mapping[str, Path], inputs: Sequence[Any], device: str, console: Console
) -> Path | None:
    """Write the project's `report.html`, where that is not done yet; a failure is a warning.

    Args:
        root: the folder of the project.
        state: of the project.
        best: what a detector, or the exported file, is called -> its checkpoint, the distilled student's last.
        inputs: what decides the page beside the checkpoints.
        device: auto, cpu or cuda.
        console: takes the warning and the progress.

    Returns:
        The page; None where it could not be written: an older one is not left there in its place.

    Raises:
        Interrupted: a signal.
    """
    out = root / NAME

    def make() -> None:
        try:
            out.unlink(missing_ok=True)
            with stop_on_signals() as stop:
                write_report(root, images=REPORT_IMAGES, device=device, console=console)
                if stop.requested():  # a page names what it could not have, a stopped detection too
                    out.unlink()
                stop.check()
        except Interrupted:
            raise
        except Exception as error:  # what was trained and measured is not lost over the page that shows it
            what = str(error) if isinstance(error, REFUSALS) else f"{type(error).__name__}: {error}"
            say(console, f"warning: no report was written: {what}")

    state.make(out.name, out, [_hashes(best), *inputs], make, console)
    return out if out.exists() else None
