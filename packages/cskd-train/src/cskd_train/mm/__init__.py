"""Everything that touches mmdet or mmcv.

Importing this package makes mmdet 2 and mmcv 1 work on today's torch (`compat`) and gives mmcv its operators
(`ops`). It has to come before the first import of mmdet or mmcv.
"""

from __future__ import annotations

import importlib

from cskd_train import files  # noqa: F401  (checks their versions first)
from cskd_train.errors import NotInstalled
from cskd_train.mm import compat, ops

ops.install()
compat.apply()

try:
    importlib.import_module("mmdet")
except AssertionError as error:  # mmdet names the versions of mmcv that it takes
    raise NotInstalled(
        f"the installed mmdet and mmcv do not go together ({error}): pip install 'mmdet==2.28.2' 'mmcv-full==1.7.2'"
    ) from error
compat.apply_to_mmdet()
