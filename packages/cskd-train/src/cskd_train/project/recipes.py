"""The configs of a project, as text: a dozen lines each on the configs that this package ships."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cskd_train.project.choices import ANCHORS, DETECTORS

CAFFE = {"mean": [103.53, 116.28, 123.675], "std": [1.0, 1.0, 1.0], "to_rgb": False}
IMAGENET = {
    "pytorch": "torchvision://resnet{depth}",
    "caffe": "open-mmlab://detectron/resnet{depth}_caffe",
}
_LINE = 110


@dataclass(frozen=True)
class Detector:
    """One detector of a project, teacher or student."""

    role: str  # "teacher" or "student"
    family: str
    depth: int
    narrow: bool  # half width, as configs/demo
    init: str  # "imagenet", "none", or a checkpoint
    anchor: int | None  # scale of the smallest anchor, in strides
    epochs: int
    steps: Sequence[int]
    warmup: int
    rate: float
    normalization: Mapping[str, Any] | None = None  # where it is not ImageNet's in RGB
    style: str | None = None  # of the backbone, where it is not the base's

    @property
    def tuned(self) -> bool:
        return self.init != "none"

    @property
    def start(self) -> str:
        """In words."""
        return {"none": "from scratch", "imagenet": "from ImageNet's weights"}.get(self.init, f"from {self.init}")

    def config(self) -> str:
        """The text of its file."""
        base = f"{self.family}_r{18 if self.depth == 18 else 50}{'_half' if self.narrow else ''}"
        bases = [f"cskd::_base_/{base}.py", "dataset.py", "cskd::_base_/adamw.py"]
        width = " of half width" if self.narrow else ""
        lines = [
            f"# The {self.role}: {DETECTORS[self.family]} ResNet-{self.depth}{width}, {self.start}.",
            setting("_base_", bases),
        ]
        if self.init not in ("none", "imagenet"):
            lines.append(setting("load_from", self.init))
        if self.normalization:
            lines.append("# Images as its backbone takes them.")
            lines.append(setting("img_norm_cfg", dict(self.normalization)))
        if self.tuned:
            lines.append("# Fine-tuned: the first stage is frozen, the backbone learns at a tenth of the rate.")
        if model := self._model():
            lines.append(setting("model", model))
        optimizer: dict[str, Any] = {"lr": self.rate}
        if self.tuned:
            optimizer["paramwise_cfg"] = {"custom_keys": {"backbone": {"lr_mult": 0.1}}}
        lines.append(setting("optimizer", optimizer))
        warmup = {"policy": "step", "warmup": "linear", "warmup_iters": self.warmup, "warmup_ratio": 0.1}
        lines.append(setting("lr_config", {**warmup, "step": list(self.steps)}))
        lines.append(setting("runner", {"type": "EpochBasedRunner", "max_epochs": self.epochs}))
        return "\n".join(lines) + "\n"

    def _model(self) -> dict[str, Any]:
        style = self.style or ("caffe" if self.family == "fcos" and self.depth > 18 else "pytorch")
        backbone: dict[str, Any] = {}
        if self.depth == 101:
            backbone["depth"] = 101
        if self.style:
            backbone["style"] = self.style
        if self.init == "imagenet" and self.depth == 101:
            backbone["init_cfg"] = {"type": "Pretrained", "checkpoint": IMAGENET[style].format(depth=101)}
        elif self.init != "imagenet" and not self.narrow:
            backbone["init_cfg"] = None
        if self.tuned:
            backbone["frozen_stages"] = 1
        # The bases of full width are for weights to start from, those of half width are not.
        if self.tuned == self.narrow:
            backbone["norm_eval"] = self.tuned
            if self.family == "fcos":
                backbone["norm_cfg"] = {"type": "BN", "requires_grad": not self.tuned}
        model: dict[str, Any] = {"backbone": backbone} if backbone else {}
        faster = self.family == "faster_rcnn"
        if self.anchor is not None and self.anchor != ANCHORS[self.family][1][0]:
            anchors = {"scales": [self.anchor]} if faster else {"octave_base_scale": self.anchor}
            model["rpn_head" if faster else "bbox_head"] = {"anchor_generator": anchors}
        return model


def dataset_config(
    classes: Sequence[str], scale: Sequence[int], batch: int, workers: int, amp: str | None, test: str
) -> str:
    """The text of the file that the others share: data, classes, size of the images."""
    splits = {
        split: {"ann_file": f"{name}.json", "img_prefix": None}
        for split, name in {"train": "train", "val": "val", "test": test}.items()
    }
    return "\n".join(
        [
            "# The data, for all three: change classes or image_scale here, and every place follows.",
            setting("_base_", ["cskd::_base_/dataset.py", "cskd::_base_/runtime.py"]),
            setting("data_root", "{{ fileDirname }}/data"),
            setting("classes", tuple(classes)),
            setting("image_scale", tuple(scale)),
            "# Without an img_prefix, each annotation file says where its images are.",
            setting("data", {"samples_per_gpu": batch, "workers_per_gpu": workers, **splits}),
            *([f"{setting('amp', amp)}  # mixed precision; without this line float32"] if amp else []),
            "",
        ]
    )


def distilled_config(family: str, unlabeled: str | None = None, batch: int = 2) -> str:
    """The text of the student's config under the teacher.

    Args:
        unlabeled: where pictures without labels are, seen from its folder.
        batch: images a batch.
    """
    pair = (1, 0.5)
    terms: dict[str, Any] = {
        "teacher": {"checkpoint": "{{ fileDirname }}/work_dirs/teacher/best.pth"},
        "pyramid": {"full": pair, "roi": pair, "foreground": pair, "background": pair},
        "tower": {"rpn": pair} if family == "faster_rcnn" else {"cls": pair, "reg": pair},
        "prediction": pair,
        "assistant": True,
    }
    if family == "faster_rcnn":
        terms["roi"] = {"features_student": pair, "features_teacher": pair, "fc": (1, 1), "prediction": (1, 1)}
    return "\n".join(
        [
            "# The student under the teacher. Weights are pairs: guided squared error, cosine.",
            setting("_base_", ["student.py"]),
            setting("distill", terms),
            *([] if unlabeled is None else _unlabeled(unlabeled, batch)),
            "",
        ]
    )


def _unlabeled(way: str, batch: int) -> list[str]:
    """The lines that train on pictures without labels too; a batch has room for one of each kind at least."""
    settings = {
        "ann_file": "unlabeled.json",
        "images": way if os.path.isabs(way) else f"{{{{ fileDirname }}}}/{way}",
        "share": 0.5,
        "weight": 0.5,
    }
    return [
        "# Pictures without labels: their share of a batch, and how much the student's own losses count on what the",
        "# teacher has found there. `cskd-train pseudo-label` makes the file.",
        setting("data", {**({"samples_per_gpu": 2} if batch < 2 else {}), "unlabeled": settings}),
    ]


def setting(name: str, value: Any) -> str:
    """`name = value`, dicts as `dict(...)`, over several lines where one is too short."""
    return f"{name} = {_code(value, '', len(name) + 3)}"


def _code(value: Any, indent: str, used: int) -> str:
    flat = _flat(value)
    if len(indent) + used + len(flat) <= _LINE or not isinstance(value, (Mapping, list, tuple)):
        return flat
    inner = indent + "    "
    if isinstance(value, Mapping):
        items = [f"{inner}{key}={_code(item, inner, len(key) + 2)},\n" for key, item in value.items()]
        return f"dict(\n{''.join(items)}{indent})"
    begin, end = "[]" if isinstance(value, list) else "()"
    items = [f"{inner}{_code(item, inner, 1)},\n" for item in value]
    return f"{begin}\n{''.join(items)}{indent}{end}"


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"dict({', '.join(f'{key}={_flat(item)}' for key, item in value.items())})"
    if isinstance(value, (list, tuple)):
        inside = ", ".join(map(_flat, value))
        if isinstance(value, list):
            return f"[{inside}]"
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if isinstance(value, str):
        text = repr(value)
        return f'"{text[1:-1]}"' if text[0] == "'" and '"' not in text and "\\'" not in text else text
    return repr(value)
