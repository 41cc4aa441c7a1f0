"""Checkpoints that other programs wrote: objects in them that are no weights, prefixes of their keys, other layouts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

# What training programs store beside the weights, and no reader of weights needs: numpy's numbers and arrays (the best
# metric, the loss history of mmengine), mmengine's history buffers, and `getattr`, by which a pickle names the methods
# of one. Each stands in the file by this name, and in what is read by an object that holds and does nothing.
_NAMED = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "mmengine.logging.message_hub.MessageHub",
    "builtins.getattr",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy.dtype",
    "numpy.ndarray",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "argparse.Namespace",
)


class Inert:
    """In the place of an object of a checkpoint that is no weight: whatever it was made from is dropped."""

    def __new__(cls, *arguments: Any, **keywords: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _stand_in(path: str) -> type[Inert]:
    module, _, name = path.rpartition(".")
    return type(name, (Inert,), {"__module__": module, "__qualname__": name})


STAND_INS: list[Any] = [_stand_in(path) for path in _NAMED]
"""For `torch.serialization.safe_globals`: classes that bear the names above, and nothing else of what these name."""

_PARTS = ("backbone.", "neck.", "bbox_head.", "rpn_head.", "roi_head.")
# Of wrappers: torch's parallel ones, mmdet's semi-supervised detectors, mmrazor's and mmengine's algorithms, Lightning.
_PREFIXES = ("module.", "student.", "architecture.", "model.", "ema_")
_WRAPPED = re.compile(f"({'|'.join(map(re.escape, _PREFIXES))})+({'|'.join(map(re.escape, _PARTS))})")


def unwrap(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights of the detector inside a wrapper, under the detector's own keys.

    Where the keys have a prefix of a wrapper, and none is a detector's as it stands, the prefix is taken off and what
    stands beside it (a built-in teacher, mostly) is left out. Copies under `ema_` beside the weights that they are the
    average of are left out, too: the hooks that keep them have swapped the two by the time of saving.

    Returns:
        The weights, and what was left out, a line each.
    """
    notes: list[str] = []
    found = _without_averages(dict(weights), notes)
    while prefix := next((one for one in _PREFIXES if _is_wrapped(found, one)), None):
        inside = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
        others = sorted({key.partition(".")[0] for key in found if not key.startswith(prefix)})
        if others:
            beside = len(found) - len(inside)
            notes.append(f"{beside} tensors beside {prefix.rstrip('.')} left out: {', '.join(others[:5])}")
        found = inside
    return found, tuple(notes)


def _without_averages(weights: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    copies = {f"ema_{key.replace('.', '_')}" for key in weights} & weights.keys()
    if copies:
        notes.append(f"{len(copies)} averaged copies left out: ema_...")
    return {key: value for key, value in weights.items() if key not in copies}


def _is_wrapped(weights: Mapping[str, Tensor], prefix: str) -> bool:
    if all(key.startswith(prefix) for key in weights):
        return True
    bare = any(key.startswith(_PARTS) for key in weights)
    return not bare and any(key.startswith(prefix) and _WRAPPED.match(key) for key in weights)


_LAYOUTS = (
    (
        r"(backbone\.bottom_up\.|proposal_generator\.|head\.cls_subnet\.)",
        "a detector of Detectron2, whose layers have other names and another order of channels. Take mmdet's own of "
        "the same kind, for example mmdet::faster_rcnn/faster_rcnn_r50_caffe_fpn_1x_coco.py, trained on the same data",
    ),
    (
        r"(stem\.conv1\.|res[2-5]\.\d+\.)",
        "a backbone of Detectron2. mmdet has it under the name open-mmlab://detectron2/resnet50_caffe (or resnet101): "
        "write it as model.backbone.init_cfg=dict(type='Pretrained', checkpoint=...)",
    ),
    (
        r"(backbone\.body\.|backbone\.fpn\.inner_blocks\.)",
        "a detector of torchvision, whose neck and heads are laid out otherwise. Its ResNet alone can be taken: "
        "model.backbone.init_cfg=dict(type='Pretrained', checkpoint=FILE, prefix='backbone.body'); or take mmdet's "
        "own, for example mmdet::faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py",
    ),
    (
        r"(layer[1-4]\.\d+\.|features\.\d+\.)",
        "a backbone alone, as a classifier has it. Write it as "
        "model.backbone.init_cfg=dict(type='Pretrained', checkpoint=FILE)",
    ),
)


def layout_of(keys: Any) -> str | None:
    """What a state dict of another program is, by its keys, and what to do with it; None where it is not known."""
    for pattern, layout in _LAYOUTS:
        if any(re.match(pattern, key) for key in keys):
            return f"by its keys it is {layout}"
    return None
