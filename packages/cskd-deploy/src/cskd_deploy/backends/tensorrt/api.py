"""TensorRT's module, and the messages that it logs.

Everything here and in `build` and `session` takes the module as an argument, and uses what TensorRT 10 and 11 share.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from cskd_deploy.errors import BackendMissing

MODULE = "tensorrt"
OLDEST = 10
INSTALL = (
    "add NVIDIA's package index to pip as its TensorRT installation guide says, then `pip install tensorrt-cu13` "
    "(`tensorrt-cu12` for a driver of CUDA 12). On a Jetson it comes with JetPack 6"
)
MOST_ERRORS = 5  # in one message
MOST_MESSAGES = 200  # kept of a log; the last ones tell why something failed


@dataclass(frozen=True)
class Message:
    """A line of TensorRT's log."""

    severity: str  # "error" or "warning"
    text: str


def import_tensorrt() -> Any:
    """The module, for use after `driver.find_driver`.

    Raises:
        BackendMissing: it is not installed, is broken, or is older than TensorRT 10.
    """
    try:
        module = importlib.import_module(MODULE)
    except (ImportError, OSError) as error:
        raise BackendMissing(f"TensorRT cannot be imported ({error}). Install it: {INSTALL}") from error
    version = str(getattr(module, "__version__", ""))
    major = version.partition(".")[0]
    if not (major.isdigit() and int(major) >= OLDEST):
        raise BackendMissing(f"TensorRT {version or 'of unknown version'} is too old, expected 10 or newer: {INSTALL}")
    return module


def make_log(trt: Any) -> Any:
    """A logger that keeps warnings and errors as `messages`, for the builder, the parser and the runtime.

    The caller holds it: TensorRT does not.
    """
    severities = {
        trt.ILogger.Severity.INTERNAL_ERROR: "error",
        trt.ILogger.Severity.ERROR: "error",
        trt.ILogger.Severity.WARNING: "warning",
    }

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[Message] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in severities:
                self.messages.append(Message(severities[severity], text.strip()))
                del self.messages[:-MOST_MESSAGES]

    return Log()


def last_errors(log: Any) -> str:
    """The last errors of a log in one line, or that there are none."""
    texts = list(dict.fromkeys(" ".join(one.text.split()) for one in log.messages if one.severity == "error"))
    return "; ".join(texts[-MOST_ERRORS:]) or "it gave no reason"
