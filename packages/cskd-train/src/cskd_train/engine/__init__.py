"""Training, resuming and evaluating, on mmcv's runner.

Importing `mm` here mends mmcv before any module of this package imports it.
"""

from __future__ import annotations

from cskd_train import mm  # noqa: F401
