"""Everything that touches mmdet or mmcv.

Importing this package makes mmdet 2.28 and mmcv 1.7 work on today's torch (`compat`) and gives mmcv its operators
(`ops`). It has to come before the first import of mmdet or mmcv.
"""

from __future__ import annotations

from cskd_train.files import mm_versions

mm_versions.check_versions()
mm_versions.silence_warnings()

from cskd_train.mm import compat, ops  # noqa: E402

ops.install()
compat.apply()
