"""The error that every command turns into one message and an exit code."""

from __future__ import annotations

from cskd_core.errors import CskdError
from cskd_data.errors import CskdError as DataCskdError


class TrainError(CskdError):
    """Bad usage or bad input of a training command (exit code 2)."""


class CheckFailed(TrainError):
    """A check that the user asked for did not hold (exit code 1)."""

    exit_code = 1


class NotInstalled(TrainError):
    """What the command needs is not installed, or of a version that does not work (exit code 3)."""

    exit_code = 3


REFUSALS = (CskdError, DataCskdError)
"""What a user can put right: the errors of cskd-core and cskd-train, and those of cskd-data, which needs neither."""
