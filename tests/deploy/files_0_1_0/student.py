"""Write a checkpoint of a tiny student with the helpers of a checkout's own tests; `make.py` runs it in the checkout.

`python student.py CHECKPOINT FAMILY CLASS...`
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

SCALE = (96, 64)
STRIDES = [8, 16]
WIDTH = 4


def main(checkpoint: Path, family: str, classes: tuple[str, ...]) -> None:
    importlib.import_module("cskd_train.mm")  # before mmcv is imported
    sys.path.insert(0, ".")
    if Path("tests/deploy/students.py").is_file():
        students = importlib.import_module("tests.deploy.students")
        config = students.student_config(classes, SCALE, family=family, width=WIDTH, candidates=60)
    else:  # the first commit that exports knows one family
        students = importlib.import_module("tests.deploy.conftest")
        config = students.student_config(classes, SCALE)
        config["model"]["neck"]["out_channels"] = WIDTH
        config["model"]["bbox_head"].update(in_channels=WIDTH, feat_channels=WIDTH)
        config["model"]["test_cfg"]["nms_pre"] = 60
    students.write_checkpoint(checkpoint, classes, narrowed(config))


def narrowed(config: dict[str, Any]) -> dict[str, Any]:
    """The student with two stages of two and four channels, two levels, and at most 20 detections an image."""
    model = config["model"]
    stages = {"num_stages": 2, "strides": (2, 2), "dilations": (1, 1), "out_indices": (0, 1)}
    model["backbone"].update(base_channels=2, **stages)
    model["neck"].update(in_channels=[2, 4], num_outs=2, start_level=0)
    for head in (model[name] for name in ("bbox_head", "rpn_head") if name in model):
        if "anchor_generator" in head:
            head["anchor_generator"]["strides"] = STRIDES
        if "strides" in head:
            head["strides"] = STRIDES
        if "norm_cfg" in head:
            head["norm_cfg"] = {"type": "GN", "num_groups": 2}
    if "roi_head" in model:
        model["roi_head"]["bbox_roi_extractor"]["featmap_strides"] = STRIDES
    test = model["test_cfg"]
    test.get("rcnn", test)["max_per_img"] = 20
    return config


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], tuple(sys.argv[3:]))
