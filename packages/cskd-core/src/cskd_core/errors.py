"""The errors that a user can mend: each message says what was given, what was expected and what to do."""

from __future__ import annotations


class CskdError(Exception):
    """Base of every error that a command prints as one message, without a traceback."""

    exit_code = 2


class PlanError(CskdError):
    """The `distill` block of a config cannot be meant: an unknown key, a wrong arity, a missing teacher."""


class TapError(CskdError):
    """A tap names a module or method that the detector does not have, or that did not run."""


class ShapeError(CskdError, ValueError):
    """Student and teacher tensors do not fit together."""
