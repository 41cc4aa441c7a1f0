"""TensorRT's module: found, old enough to be refused, and its messages.

Everything here and in `build` and `session` takes the module as an argument: TensorRT 10, TensorRT 11
and TensorRT-RTX share what is used of them.
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
# Kept of what TensorRT says; the last ones tell why it failed.
MOST_MESSAGES = 200


@dataclass(frozen=True)
class Message:
    """A line of TensorRT's log."""

    severity: str  # "error" or "warning"
    text: str


def import_tensorrt(name: str = MODULE) -> Any:
    """The module, for use after `driver.find_driver`.

    Raises:
        BackendMissing: it is not installed, is broken, or is older than TensorRT 10.
    """
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise BackendMissing(f"TensorRT cannot be imported ({error}). Install it: {INSTALL}") from error
    version = str(getattr(module, "__version__", ""))
    major = version.partition(".")[0]
    if name == MODULE and not (major.isdigit() and int(major) >= OLDEST):
        raise BackendMissing(f"TensorRT {version or 'of unknown version'} is too old, expected 10 or newer: {INSTALL}")
    return module


def version_text(trt: Any) -> str:
    """Its version; `RTX 1.7.1` of TensorRT-RTX, whose engines and figures are not TensorRT's."""
    kind = str(trt.__name__).removeprefix(MODULE).strip("_").upper()
    return f"{kind} {trt.__version__}".strip()


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


def said(log: Any, severity: str = "error", most: int = 5) -> str:
    """The last errors (or warnings) of a log in one line, or that there are none."""
    texts = list(dict.fromkeys(" ".join(one.text.split()) for one in log.messages if one.severity == severity))
    return "; ".join(texts[-most:]) or "it gave no reason"
