"""The errors that every command turns into one message and an exit code."""

from __future__ import annotations

from cskd_data.errors import CskdError


class DeployError(CskdError):
    """Bad usage or bad input (exit code 2)."""


class CheckFailed(DeployError):
    """A check that the user asked for did not hold (exit code 1)."""

    exit_code = 1


class Interrupted(DeployError):
    """A signal ended the command before it was done (exit code 128 + its number)."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class BackendMissing(DeployError):
    """What the command needs is not installed; the message names the command that mends it (exit code 3)."""

    exit_code = 3
