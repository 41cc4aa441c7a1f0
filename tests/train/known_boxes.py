"""Boxes on images that are higher than wide, and a detector that gives the boxes it is made with."""

from __future__ import annotations

import json

import numpy as np
import torch
from mmcv import Config
from torch import nn

CLASSES = ("circle", "ring", "square", "triangle", "star", "cross")


class KnownBoxes(nn.Module):
    """Says of each image what `found` holds: file name -> [(class, x, y, width, height, score)] in its own pixels."""

    def __init__(self, found):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))  # evaluation asks a parameter for the device
        self.found = found

    def forward(self, img, img_metas, return_loss, rescale):
        assert (return_loss, rescale) == (False, True)
        (meta,) = img_metas[0]
        found = self.found.get(meta["filename"].rpartition("/")[2], [])
        by_class = {name: [] for name in CLASSES}
        for name, x, y, width, height, score in found:
            by_class[name].append((x, y, x + width, y + height, score))
        return [[np.array(boxes, dtype=np.float64).reshape(-1, 5) for boxes in by_class.values()]]


def annotations(root, boxes, crowds=()):
    """COCO data of the first two validation images of a generated set.

    Args:
        boxes: (place of the image, class, x, y, width, height).
        crowds: the same, of crowd regions.
    """
    data = json.loads((root / "annotations" / "val.json").read_text())
    ids = {one["name"]: one["id"] for one in data["categories"]}
    data["images"] = data["images"][:2]
    data["annotations"] = [
        {
            "id": number + 1,
            "image_id": data["images"][place]["id"],
            "category_id": ids[name],
            "bbox": [x, y, width, height],
            "area": width * height,
            "iscrowd": int(number >= len(boxes)),
        }
        for number, (place, name, x, y, width, height) in enumerate([*boxes, *crowds])
    ]
    return data


def config_of(tiny_config, root, data, folder):
    """The config of an evaluation on these annotations, and the file names of the images."""
    (ann_file := folder / "known.json").write_text(json.dumps(data))
    cfg = Config.fromfile(tiny_config)
    cfg.data.val.update(data_root=None, ann_file=str(ann_file), img_prefix=str(root / "images"))
    return cfg, [image["file_name"] for image in data["images"]]
