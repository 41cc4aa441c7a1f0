"""The addresses behind names of weights: `torchvision://resnet18`, `open-mmlab://darknet53`, `mmdet::FOLDER/FILE.py`.

Backbones are those that configs of mmdet 2.28 use; detectors those whose checkpoints mmdet's own metafiles name. Every
file's name ends in the first digits of its SHA-256.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from cskd_train.errors import TrainError
from cskd_train.files.locate import MMDET_PREFIX, resolve_config_path, shipped_configs

_TORCHVISION = "https://download.pytorch.org/models/"
_OPENMMLAB = "https://download.openmmlab.com/pretrain/third_party/"

_FILES = {
    "torchvision://resnet18": f"{_TORCHVISION}resnet18-f37072fd.pth",
    "torchvision://resnet34": f"{_TORCHVISION}resnet34-b627a593.pth",
    "torchvision://resnet50": f"{_TORCHVISION}resnet50-0676ba61.pth",
    "torchvision://resnet101": f"{_TORCHVISION}resnet101-63fe2227.pth",
    "torchvision://resnet152": f"{_TORCHVISION}resnet152-394f9c45.pth",
    "torchvision://resnext50_32x4d": f"{_TORCHVISION}resnext50_32x4d-7cdf4587.pth",
    "torchvision://resnext101_32x8d": f"{_TORCHVISION}resnext101_32x8d-8ba56ff5.pth",
    "torchvision://wide_resnet50_2": f"{_TORCHVISION}wide_resnet50_2-95faca4d.pth",
    "torchvision://wide_resnet101_2": f"{_TORCHVISION}wide_resnet101_2-32ee1156.pth",
    "open-mmlab://detectron/resnet50_caffe": f"{_OPENMMLAB}resnet50_caffe-788b5fa3.pth",
    "open-mmlab://detectron/resnet101_caffe": f"{_OPENMMLAB}resnet101_caffe-3ad79236.pth",
    "open-mmlab://detectron/resnet50_gn": f"{_OPENMMLAB}resnet50_gn-9186a21c.pth",
    "open-mmlab://detectron/resnet101_gn": f"{_OPENMMLAB}resnet101_gn-cac0ab98.pth",
    "open-mmlab://detectron2/resnet50_caffe": f"{_OPENMMLAB}resnet50_msra-5891d200.pth",
    "open-mmlab://detectron2/resnet101_caffe": f"{_OPENMMLAB}resnet101_msra-6cc46731.pth",
    "open-mmlab://detectron2/resnext101_32x8d": f"{_OPENMMLAB}resnext101_32x8d-1516f1aa.pth",
    "open-mmlab://contrib/resnet50_gn": f"{_OPENMMLAB}resnet50_gn_thangvubk-ad1730dd.pth",
    "open-mmlab://jhu/resnet50_gn_ws": f"{_OPENMMLAB}resnet50_gn_ws-15beedd8.pth",
    "open-mmlab://jhu/resnet101_gn_ws": f"{_OPENMMLAB}resnet101_gn_ws-3e3c308c.pth",
    "open-mmlab://jhu/resnext50_32x4d_gn_ws": f"{_OPENMMLAB}resnext50_32x4d_gn_ws-0d87ac85.pth",
    "open-mmlab://jhu/resnext101_32x4d_gn_ws": f"{_OPENMMLAB}resnext101_32x4d_gn_ws-34ac1a9e.pth",
    "open-mmlab://resnext50_32x4d": f"{_OPENMMLAB}resnext50-32x4d-0ab1a123.pth",
    "open-mmlab://resnext101_32x4d": f"{_OPENMMLAB}resnext101_32x4d-a5af3160.pth",
    "open-mmlab://resnext101_64x4d": f"{_OPENMMLAB}resnext101_64x4d-ee2c6f71.pth",
    "open-mmlab://resnet18_v1c": f"{_OPENMMLAB}resnet18_v1c-b5776b93.pth",
    "open-mmlab://resnet50_v1c": f"{_OPENMMLAB}resnet50_v1c-2cccc1ad.pth",
    "open-mmlab://resnet101_v1c": f"{_OPENMMLAB}resnet101_v1c-e67eebb6.pth",
    "open-mmlab://resnest50": f"{_OPENMMLAB}resnest50_d2-7497a55b.pth",
    "open-mmlab://resnest101": f"{_OPENMMLAB}resnest101_d2-f3b931b2.pth",
    "open-mmlab://res2net101_v1d_26w_4s": f"{_OPENMMLAB}res2net101_v1d_26w_4s_mmdetv2-f0a600f9.pth",
    "open-mmlab://regnetx_400mf": f"{_OPENMMLAB}regnetx_400mf-a5b10d96.pth",
    "open-mmlab://regnetx_800mf": f"{_OPENMMLAB}regnetx_800mf-1f4be4c7.pth",
    "open-mmlab://regnetx_1.6gf": f"{_OPENMMLAB}regnetx_1.6gf-5791c176.pth",
    "open-mmlab://regnetx_3.2gf": f"{_OPENMMLAB}regnetx_3.2gf-c2599b0f.pth",
    "open-mmlab://regnetx_4.0gf": f"{_OPENMMLAB}regnetx_4.0gf-a88f671e.pth",
    "open-mmlab://regnetx_6.4gf": f"{_OPENMMLAB}regnetx_6.4gf-006af45d.pth",
    "open-mmlab://regnetx_8.0gf": f"{_OPENMMLAB}regnetx_8.0gf-3c68abe7.pth",
    "open-mmlab://regnetx_12gf": f"{_OPENMMLAB}regnetx_12gf-4c2a3350.pth",
    "open-mmlab://msra/hrnetv2_w18": f"{_OPENMMLAB}hrnetv2_w18-00eb2006.pth",
    "open-mmlab://msra/hrnetv2_w32": f"{_OPENMMLAB}hrnetv2_w32-dc9eeb4f.pth",
    "open-mmlab://msra/hrnetv2_w40": f"{_OPENMMLAB}hrnetv2_w40-ed0b031c.pth",
    "open-mmlab://vgg16_caffe": f"{_OPENMMLAB}vgg16_caffe-292e1171.pth",
    "open-mmlab://darknet53": f"{_OPENMMLAB}darknet53-a628ea1b.pth",
    "open-mmlab://mmdet/mobilenet_v2": (
        "https://download.openmmlab.com/mmdetection/v2.0/third_party/mobilenet_v2_batch256_imagenet-ff34753d.pth"
    ),
}

# Older spellings that mmcv 1.7 takes too.
_SCHEMES = {"modelzoo://": "torchvision://", "openmmlab://": "open-mmlab://"}
_NAMES = {
    "open-mmlab://resnet50_caffe": "open-mmlab://detectron/resnet50_caffe",
    "open-mmlab://resnet101_caffe": "open-mmlab://detectron/resnet101_caffe",
}


def address_of(name: str) -> str:
    """The URL of a file of pretrained weights.

    Args:
        name: with its scheme, as configs write it; or `mmdet::FOLDER/FILE.py`, for the checkpoint of that config.

    Raises:
        TrainError: a name that is not in the list; the nearest ones are given.
    """
    if name.startswith(MMDET_PREFIX):
        return _published(name)
    current = name
    for old, new in _SCHEMES.items():
        if name.startswith(old):
            current = new + name.removeprefix(old)
    current = _NAMES.get(current, current)
    if current not in _FILES:
        near = difflib.get_close_matches(current, _FILES, n=3, cutoff=0.5)
        nearest = f"; the nearest known names: {', '.join(near)}" if near else ""
        raise TrainError(f"{name} is no known name of pretrained weights{nearest}")
    return _FILES[current]


def _published(name: str) -> str:
    """The URL of the checkpoint that mmdet publishes for one of its configs."""
    file = resolve_config_path(name)
    found = {f"configs/{file.parent.name}/{file.name}": None} | {
        str(model.get("Config")): str(model["Weights"]) for model in _models(file.with_name("metafile.yml"))
    }
    address = found.pop(f"configs/{file.parent.name}/{file.name}")
    if address is None:
        near = difflib.get_close_matches(file.name, [Path(config).name for config in found], n=3, cutoff=0.3)
        nearest = (
            f"; it does for {', '.join(f'{MMDET_PREFIX}{file.parent.name}/{one}' for one in near)}" if near else ""
        )
        raise TrainError(f"{name}: mmdet publishes no checkpoint for this config{nearest}")
    return address


def is_of_coco(checkpoint: Path) -> bool:
    """Whether a file has the name, with its hash, of a detector of mmdet's zoo that was trained on COCO."""
    metafiles = (
        file for file in sorted(shipped_configs().glob("*/metafile.yml")) if checkpoint.name in file.read_text()
    )
    models = (model for file in metafiles for model in _models(file))
    return any(
        str(model["Weights"]).endswith(f"/{checkpoint.name}")
        and {result.get("Dataset") for result in model.get("Results") or []} == {"COCO"}
        for model in models
    )


def _models(metafile: Path) -> Iterator[Mapping[str, Any]]:
    """The models of a metafile that have a checkpoint."""
    content = yaml.safe_load(metafile.read_text(encoding="utf-8")) if metafile.is_file() else None
    models = content.get("Models") if isinstance(content, Mapping) else content
    yield from (model for model in models or [] if isinstance(model, Mapping) and model.get("Weights"))
