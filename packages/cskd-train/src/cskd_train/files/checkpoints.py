"""Checkpoints: a plain student that stock mmdet loads, with its config as data beside it.

Nothing in a checkpoint is ever executed: files are read with `weights_only=True`, and a stored config is plain data.
Every file of weights comes in through here, whoever wrote it and whatever it is for: see `foreign`.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from cskd_data.files import write_atomically
from cskd_train.errors import TrainError
from cskd_train.files.foreign import STAND_INS, layout_of, unwrap
from cskd_train.files.tensors import is_tensors, read_tensors
from cskd_train.stored import current_config

FORMAT = "cskd"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A trained student as it was found on disk."""

    state_dict: Mapping[str, Tensor]  # the plain student's keys only
    config: dict[str, Any]  # plain data, see files.config
    classes: tuple[str, ...]
    metrics: Mapping[str, float]  # COCO box metrics in [0, 1]
    meta: Mapping[str, Any]
    path: Path
    notes: tuple[str, ...] = ()  # what of the file's weights was left out, beside the published distillation

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the file, in hexadecimal."""
        return sha256(self.path)


def save(path: str | Path, contents: Mapping[str, Any]) -> None:
    """Write `contents` to `path`, atomically (see `cskd_data.files.write_atomically`).

    Raises:
        DataError: the file cannot be written.
    """

    def write(file: BinaryIO) -> None:
        try:
            torch.save(dict(contents), file)
        except RuntimeError as error:  # torch's writer makes one of a full disk
            raise OSError(str(error)) from error

    write_atomically(Path(path), write, keep_links=False)


def load_checkpoint(path: str | Path, require_config: bool = True) -> Checkpoint:
    """Read a detector's checkpoint: cskd-train's, mmdet's of either line, the published research code's (its
    distillation is dropped), or the detector inside a wrapper.

    Args:
        require_config: False also takes a plain mmdet checkpoint or a bare state dict; `config`, `meta` and `metrics`
            are then empty, `classes` are those that mmdet has stored, if any.

    Raises:
        TrainError: no such file; not a checkpoint; cut short; a pickle that asks for code; no config inside.
    """
    file = Path(path).expanduser()
    return parse(read(file), file, require_config)


def parse(contents: Mapping[str, Any], file: Path, require_config: bool = True) -> Checkpoint:
    """The detector in the contents of a checkpoint file that was read before: see `load_checkpoint`."""
    found = contents.get("meta")
    is_own = isinstance(found, Mapping) and found.get("format") == FORMAT
    meta: Mapping[str, Any] = found if isinstance(found, Mapping) and is_own else {}
    if require_config and not is_own:
        raise TrainError(
            f"checkpoint {file}: it holds no config of cskd-train (a plain mmdet checkpoint, perhaps). "
            "Give its config beside it (--config), or train it with cskd-train run"
        )
    if is_own and meta.get("version") != FORMAT_VERSION:
        raise TrainError(
            f"checkpoint {file}: format version {meta.get('version')!r}, this program reads {FORMAT_VERSION}: "
            "install the cskd-train that wrote it"
        )
    weights, notes = _weights(contents, file)
    return Checkpoint(
        state_dict=weights,
        config=current_config(meta.get("config", {})),
        classes=_classes_of(found),
        metrics=meta.get("metrics", {}),
        meta=meta,
        path=file,
        notes=notes,
    )


def read(path: str | Path) -> dict[str, Any]:
    """The raw contents of a checkpoint file, whoever wrote it, without running anything in it.

    Objects that training programs store beside the weights come as `foreign.Inert`, which is none of them.

    Raises:
        TrainError: as `load_checkpoint`, apart from the config.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise TrainError(f"checkpoint {file}: no such file (looked in {Path.cwd()})")
    if is_tensors(file):
        return read_tensors(file)
    try:
        with torch.serialization.safe_globals(STAND_INS):
            contents = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise TrainError(f"checkpoint {file}: {_why_unreadable(file, error)}") from error
    if not isinstance(contents, dict):
        raise TrainError(f"checkpoint {file}: holds {type(contents).__name__}, expected a dict with a state_dict")
    return contents


def _why_unreadable(file: Path, error: Exception) -> str:
    """What is wrong with a file that torch.load refused, and what to do."""
    text = str(error)
    try:
        with file.open("rb") as opened:
            head = opened.read(4)
    except OSError as unreadable:
        return f"cannot be read: {unreadable.strerror}"
    if blocked := re.search(r"GLOBAL (\S+) (?:was not an allowed global|whose module)", text):
        return (
            f"refused: its pickle asks for code ({blocked[1]}), which loading would run. "
            "Weights alone need none: save them again as a plain state_dict, from a source you trust"
        )
    if more := re.search(r"(?:Trying to call|Can only) .+", text):
        return f"refused: its pickle asks for more than data ({more[0]}). Save its weights again as a plain state_dict"
    if head == b"PK\x03\x04" and not zipfile.is_zipfile(file):
        return f"cut short ({file.stat().st_size} bytes; the end of the archive is missing). Copy or download it again"
    if file.suffix == ".pkl":
        return (
            "is no PyTorch checkpoint: a .pkl as Detectron2's model zoo has it, perhaps. Take mmdet's own detector of "
            "the same kind, mmdet::FOLDER/FILE.py"
        )
    if isinstance(error, pickle.UnpicklingError) and head[:1] == b"\x80":
        return f"refused: {text.splitlines()[0]}"
    return "is not a PyTorch checkpoint, or is damaged. Expected a .pth file of cskd-train or mmdet, or .safetensors"


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def weights_of(contents: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The weights inside any checkpoint: under `state_dict` (mmdet's and cskd-train's) or `model`, or the whole file.

    Their keys are a stock detector's, or those of a part of one: see `foreign.unwrap` and `to_stock_keys`.

    Raises:
        TrainError: there are none.
    """
    return _weights(contents, path)[0]


def _weights(contents: Mapping[str, Any], path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    weights = contents.get("state_dict", contents.get("model", contents))
    if not isinstance(weights, Mapping) or not weights or not all(isinstance(v, Tensor) for v in weights.values()):
        keys = ", ".join(map(str, list(contents)[:5])) or "none"
        raise TrainError(f"checkpoint {path}: holds no weights (keys: {keys}); expected a state_dict of tensors")
    found, notes = unwrap({str(key): value for key, value in weights.items()})
    return to_stock_keys(found), notes


def _classes_of(meta: Any) -> tuple[str, ...]:
    """The class names that cskd-train and mmdet 2 store alike, or mmdet 3's; () where there are none."""
    names = meta.get("CLASSES") if isinstance(meta, Mapping) else None
    data = meta.get("dataset_meta") if isinstance(meta, Mapping) else None
    if names is None and isinstance(data, Mapping):
        names = data.get("classes", data.get("CLASSES"))
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names)


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Load a checkpoint's weights into a detector of the same architecture, student or teacher.

    Raises:
        TrainError: it is of another architecture (up to five keys that are missing, unexpected or of another shape are
            named). The model is then unchanged.
    """
    weights = checkpoint.state_dict
    expected = model.state_dict()
    faults = [f"{key} is missing" for key in expected if key not in weights]
    faults += [f"{key} is unexpected" for key in weights if key not in expected]
    faults += [
        f"{key} has shape {tuple(value.shape)}, the config's model {tuple(expected[key].shape)}"
        for key, value in weights.items()
        if key in expected and value.shape != expected[key].shape
    ]
    if faults:
        shown = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
        raise TrainError(
            f"checkpoint {checkpoint.path} is of another architecture than this {type(model).__name__}: {shown}. "
            f"{_advice(weights)}"
        )
    model.load_state_dict(dict(weights))


def _advice(weights: Mapping[str, Tensor]) -> str:
    layout = layout_of(weights)
    return "Give the config that it was trained with" if layout is None else f"{layout[0].upper()}{layout[1:]}"


# What the published research code trains beside the student and drops for inference (docs/algorithm.md 7.2).
_PUBLISHED_DISTILLATION = re.compile(
    r"""
    (
      bbox_head\. (                                # one-stage
          distill_neck\.\d+\.mimic_conv
        | distill_brnch_(cls|reg)\.\d+\.mimic_conv\.\d+
        | assis_conv_(cls|reg|centerness)          # FCOS
        | assis_gfl_(cls|reg)
        | assis_retina_(cls|reg)
      )
    | rpn_head\. (
          distill_neck\.\d+\.mimic_conv
        | distill_head\.\d+\.mimic_conv
        | assist_rpn_(cls|reg)
      )
    | roi_head\.bbox_head\. (
          distill_roi\.mimic_conv_(st|tch)_rois
        | distill_head\.\d+\.mimic_linear
        | assist_fc_(cls|reg)
      )
    ) \.(weight|bias)
    | bbox_head\.assis_scales\.\d+\.scale          # FCOS, GFL
    """,
    re.VERBOSE,
)

# The predictors of mmdet's first FCOS, as checkpoints of that time name them.
_FIRST_FCOS = re.compile(r"bbox_head\.fcos_(cls|reg|centerness)\.(weight|bias)")


def is_published_distillation(key: str) -> bool:
    """Whether a key belongs to the distillation of the published research code, which no detector needs."""
    return _PUBLISHED_DISTILLATION.fullmatch(key) is not None


def to_stock_keys(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a stock detector, under the names that it has today.

    The distillation of the published code is dropped. It has to be gone before mmdet sees the weights: its FCOS takes a
    state dict without metadata for one of its first version and renames every key of the head that ends in `cls`, `reg`
    or `centerness`, whereupon `assis_conv_cls` would overwrite `conv_cls`. Keys that are not known here stay.
    """
    return {
        _FIRST_FCOS.sub(r"bbox_head.conv_\1.\2", key) if _FIRST_FCOS.fullmatch(key) else key: value
        for key, value in weights.items()
        if not is_published_distillation(key)
    }
