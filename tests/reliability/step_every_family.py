"""Two distilled steps of every family with whatever mmdet and mmcv are imported: run by test_old_versions.py.

Prints {"versions": [mmdet's, mmcv's], FAMILY: [losses of the first step, of the second]} as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main():
    import cskd_train.mm  # noqa: F401  (before mmdet and mmcv)

    sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
    import mmcv
    import mmdet
    import torch
    from narrow import NARROW, narrow
    from pairs import BOXES, IMAGES, LABELS, METAS, pair, trained

    found = {"versions": [mmdet.__version__, mmcv.__version__]}
    data = {"img": IMAGES, "img_metas": METAS, "gt_bboxes": BOXES, "gt_labels": LABELS}
    for family in NARROW:
        model = pair(narrow, family)
        optimizer = torch.optim.SGD(trained(model).values(), lr=1e-4)
        found[family] = []
        for _ in range(2):
            torch.manual_seed(0)  # mmdet samples anchors and RoIs at random
            loss, values = model.student._parse_losses(model(**data))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found[family].append(dict(values))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
