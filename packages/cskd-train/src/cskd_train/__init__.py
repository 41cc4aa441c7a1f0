"""Distilled training of mmdet detectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cskd_train.project.new import new

__all__ = ["new"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """What the package exports is imported when it is asked for: `import cskd_train` needs neither torch nor mmdet."""
    if name == "new":
        from cskd_train.project.new import new

        return new
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
