"""The errors of this package: what was given, what was expected, what to do."""

from __future__ import annotations


class CskdError(Exception):
    """Base of the errors that a command turns into one message and an exit code.

    A class of its own beside cskd-core's of the same name and behaviour: neither package may need the other.
    """

    exit_code = 2


class DataError(CskdError):
    """A data set that cannot be used (exit code 2)."""


class NoImages(DataError):
    """A split that is there, and has no image."""


SHOWN = 5

WITHOUT_THEM = (
    "or go on without them: `cskd-train data clean FILE OUT` writes a set that leaves them out, and with "
    "`--skip-broken` `cskd-train run`, `test` and `pseudo-label`, and `cskd-deploy eval` do"
)
"""The ways on from images that cannot be used."""


def refuse(source: object, faults: list[str], way_out: str) -> None:
    """Raise when there are faults: the first few, their count, and the way out.

    Raises:
        DataError: `faults` is not empty.
    """
    if not faults:
        return
    shown = "".join(f"\n  {fault}" for fault in faults[:SHOWN])
    more = f"\n  ... and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    raise DataError(f"{source} cannot be used, {count}:{shown}{more}\n{way_out}")


class ImageFault(DataError):
    """What is wrong with an image file, in a few words that follow its name: `is empty (0 bytes)`."""
