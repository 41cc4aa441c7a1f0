"""The error that every command turns into one message and an exit code."""

from __future__ import annotations

from cskd_core.errors import CskdError


class TrainError(CskdError):
    """Bad usage or bad input of a training command (exit code 2)."""


class CheckFailed(TrainError):
    """A check that the user asked for did not hold (exit code 1)."""

    exit_code = 1
