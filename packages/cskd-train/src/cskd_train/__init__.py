"""Distilled training of mmdet detectors."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cskd_train.api import evaluate, train
    from cskd_train.project.distill import distill
    from cskd_train.project.new import new

__all__ = ["distill", "evaluate", "new", "train"]
__version__ = "0.2.0"

_FROM = {
    "distill": "cskd_train.project.distill",
    "evaluate": "cskd_train.api",
    "new": "cskd_train.project.new",
    "train": "cskd_train.api",
}


def __getattr__(name: str) -> Any:
    """What the package exports is imported when it is asked for: `import cskd_train` needs neither torch nor mmdet."""
    if name in _FROM:
        return getattr(importlib.import_module(_FROM[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
