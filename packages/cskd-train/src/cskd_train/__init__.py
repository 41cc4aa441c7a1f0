"""Distilled training of mmdet detectors."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cskd_train.api import evaluate, train
    from cskd_train.project.distill import distill
    from cskd_train.project.new import new
    from cskd_train.report.card import write_card
    from cskd_train.report.write import write_report

__all__ = ["distill", "evaluate", "new", "train", "write_card", "write_report"]
__version__ = "0.2.0"

_FROM = {
    "distill": "cskd_train.project.distill",
    "evaluate": "cskd_train.api",
    "new": "cskd_train.project.new",
    "train": "cskd_train.api",
    "write_card": "cskd_train.report.card",
    "write_report": "cskd_train.report.write",
}


def __getattr__(name: str) -> Any:
    """What the package exports is imported when it is asked for: `import cskd_train` needs neither torch nor mmdet."""
    if name in _FROM:
        return getattr(importlib.import_module(_FROM[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
