"""Start a detector from another's checkpoint: what fits is taken, a classifier's rows by the names of their classes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from mmdet.datasets import CocoDataset
from torch import Tensor, nn

from cskd_train.errors import TrainError
from cskd_train.files.checkpoints import Checkpoint, load_checkpoint
from cskd_train.files.config import load_config
from cskd_train.files.downloads import local_file
from cskd_train.files.foreign import layout_of
from cskd_train.files.heads import tells_classes
from cskd_train.files.locate import MMDET_PREFIX
from cskd_train.files.model_zoo import is_of_coco
from cskd_train.mm.detector import build_student
from cskd_train.mm.families import FAMILIES
from cskd_train.mm.normalization import Normalization
from cskd_train.mm.plain import build_without_pretrained, without_pretrained_backbone

_SHOWN = 4  # groups, classes or keys in a line
_CLASSIFIERS = tuple(family.classifier.rpartition(".")[2] for family in FAMILIES if family.classifier)


@dataclass
class Start:
    """What a detector starts from; `result.json` holds `to_dict()`.

    Attributes:
        source: the file, as it was found on disk.
        taken: how many of the detector's tensors were taken, whole or in part.
        tensors: how many it has, counts of batches apart.
        fresh: part of the detector -> why it begins as it was initialised.
        left_out: part of the file -> why it was not taken.
        classes_kept: classes whose rows of the classifier were taken, by name.
        classes_fresh: the other classes of the run.
        rows: what became of the classifier, for a person.
    """

    source: str
    taken: int = 0
    tensors: int = 0
    fresh: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    classes_kept: list[str] = field(default_factory=list)
    classes_fresh: list[str] = field(default_factory=list)
    rows: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        parts = [f"{self.taken} of {self.tensors} tensors taken", self.rows]
        for name, found in (("fresh", self.fresh), ("left out", self.left_out)):
            if found:
                reasons = _some(f"{part} ({why})" if why else part for part, why in found.items())
                parts.append(f"{len(found)} part{'s' if len(found) > 1 else ''} {name}: {reasons}")
        return f"starts from {self.source}: {'; '.join(part for part in parts if part)}"


def started_student(
    cfg: Any, classes: Sequence[str], note: Callable[[str], None] = lambda line: None
) -> tuple[nn.Module, Start | None]:
    """The student of a run that begins, from the weights of the config's `load_from` where it names some.

    Pretrained weights of a backbone that `load_from` has whole are not fetched.

    Args:
        classes: of the run; without any, no rows of a classifier are taken.
        note: as of `build_student`.

    Raises:
        TrainError: the file cannot be had or read, or nothing of the backbone fits; as `build_student`.
    """
    if not cfg.get("load_from"):
        return build_student(cfg, note), None
    checkpoint = load_checkpoint(local_file(cfg.load_from, "load_from"), require_config=False)
    fit = Fit(build_without_pretrained(cfg.model), checkpoint, classes, known_classes(checkpoint))
    model = without_pretrained_backbone(cfg.model) if fit.backbone_is_whole else cfg.model
    student = build_student({"model": model}, note)
    if warning := _other_images(cfg, checkpoint):
        note(f"warning: {warning}")
    return student, fit.load(student)


def _other_images(cfg: Any, checkpoint: Checkpoint) -> str | None:
    """Whether the weights were trained on images that are normalised otherwise, where their config is at hand."""
    trained_with: Any = checkpoint.config
    if cfg.load_from.startswith(MMDET_PREFIX):
        trained_with = load_config(cfg.load_from)
    before, now = Normalization.of_config(trained_with), Normalization.of_config(cfg)
    if before is None or now is None or before == now:
        return None
    return f"load_from was trained on other images than this run gives it: write {before.as_step()} in the pipelines"


def known_classes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """COCO's classes for a file of mmdet's zoo that was trained on it and does not say so; () for any other."""
    if checkpoint.classes or not is_of_coco(checkpoint.path):
        return ()
    promised = checkpoint.path.stem.rpartition("-")[2]  # a zoo's name ends in the first digits of its file's SHA-256
    return tuple(CocoDataset.CLASSES) if checkpoint.sha256.startswith(promised) else ()


class Fit:
    """How a checkpoint fits a detector, found without a change to either.

    A part of a detector is what stands under one name: a block of the backbone, one convolution with its normalisation.
    It is taken whole or not at all: of a block with other layers, the tensors whose shapes agree mean something else.

    Args:
        model: a detector as its config builds it.
        checkpoint: of whatever detector.
        classes: of the run, in the order of its labels.
        known: the checkpoint's classes, where it does not name them itself.

    Raises:
        TrainError: nothing of the backbone fits.
    """

    def __init__(
        self, model: nn.Module, checkpoint: Checkpoint, classes: Sequence[str], known: Sequence[str] = ()
    ) -> None:
        self._expected = {key: value for key, value in model.state_dict().items() if not _is_count(key)}
        self._weights = checkpoint.state_dict
        self._path, self._notes = checkpoint.path, checkpoint.notes
        self.classes, self.stored_classes = tuple(classes), checkpoint.classes or tuple(known)
        self._assumed = not checkpoint.classes and bool(known)
        self._heads = _class_heads(model)
        self._knows_classifier = any(self._head_of(key) is not None for key in self._expected)
        self.faults: dict[str, str] = {}
        self.whole: list[str] = []
        by_part = _by_part(self._expected), _by_part(key for key in self._weights if not _is_count(key))
        self._unknown = {part: keys for part, keys in by_part[1].items() if part not in by_part[0]}
        for part, keys in by_part[0].items():
            fault = self._fault(keys, by_part[1].get(part, []))
            if fault is not None:
                self.faults[part] = fault
            else:
                self.whole += keys
        self._check_backbone(model, by_part[0])

    @property
    def backbone_is_whole(self) -> bool:
        """Whether nothing of the backbone needs weights from elsewhere."""
        return not any(part.startswith("backbone.") for part in self.faults)

    def _fault(self, expected: list[str], stored: list[str]) -> str | None:
        """Why a part cannot be taken, by its keys in the detector and in the file."""
        if not stored:
            return "not in the file"
        for key in expected:
            if key not in self._weights:
                return f"{key} is not in the file"
            # The rows of a classifier are compared one by one, later on.
            inner = slice(1, None) if self._head_of(key) is not None else slice(None)
            shapes = self._weights[key].shape, self._expected[key].shape
            if len(shapes[0]) != len(shapes[1]) or shapes[0][inner] != shapes[1][inner]:
                return f"{key.rpartition('.')[2]} {_size(shapes[0])} in the file, {_size(shapes[1])} here"
        extra = [key for key in stored if key not in self._expected]
        return f"the file has {extra[0]} too" if extra else None

    def _check_backbone(self, model: nn.Module, parts: Mapping[str, list[str]]) -> None:
        own = [part for part in parts if part.startswith("backbone.")]
        blocks = [part for part in own if re.search(r"\.\d+$", part)] or own
        if not own or any(part not in self.faults for part in blocks):
            return
        layout = layout_of(self._weights)
        faults = _some(f"{part}: {self.faults[part]}" for part in blocks)
        raise TrainError(
            f"load_from {self._path}: nothing of the backbone of this {type(model).__name__} fits ({faults}). "
            + (
                layout[0].upper() + layout[1:]
                if layout
                else "Name a checkpoint with a backbone of the same kind, depth"
            )
            + ("" if layout else " and width, or take load_from out (--set load_from=None)")
        )

    def _head_of(self, key: str) -> Any:
        """The head whose classes the rows of a tensor stand for; None for all other tensors."""
        layer, _, _ = key.rpartition(".")
        path, _, name = layer.rpartition(".")
        head = self._heads.get(path)
        if head is None:
            return None
        by_class = name == "fc_reg" and not getattr(head, "reg_class_agnostic", True)
        return head if name in _CLASSIFIERS or by_class else None

    def load(self, model: nn.Module) -> Start:
        """Take what fits into the detector, which has been initialised by now."""
        start = Start(str(self._path), tensors=len(self._expected), fresh=dict(self.faults))
        start.left_out = dict.fromkeys(self._notes, "")
        start.left_out |= dict.fromkeys(self._unknown, "not in this detector")
        own = model.state_dict()  # shares memory with the model
        stored = self.stored_classes
        pairs = [(index, stored.index(name)) for index, name in enumerate(self.classes) if name in stored]
        kept = False
        refused = next((f"{part}: {why}" for part, why in self.faults.items() if self._head_of(f"{part}.weight")), "")
        for key in self.whole:
            head = self._head_of(key)
            part = key.rpartition(".")[0]
            if head is not None:
                why = self._rows_refused(key, head)
                if why is None and pairs:
                    _take_rows(own[key], self._weights[key], _rows(head, part, pairs, len(self.stored_classes)))
                    kept = True
                else:
                    refused = why or refused
                    start.fresh[part] = why or "no class of this run"
                    continue
            elif self._foreign_classes(part):
                start.fresh[part] = "a layer of another kind of head, for other classes"
                continue
            else:
                with torch.no_grad():
                    own[key].copy_(self._weights[key])
            start.taken += 1
        for key in self._counts(own):
            own[key].copy_(self._weights[key])
        kept = kept or (not self._knows_classifier and self.classes == self.stored_classes)
        names = [self.classes[index] for index, _ in pairs] if kept else []
        start.classes_kept, start.classes_fresh = names, [name for name in self.classes if name not in names]
        start.rows = self._rows_summary(start, refused)
        return start

    def _counts(self, own: Mapping[str, Tensor]) -> list[str]:
        layers = {key.rpartition(".")[0] for key in self.whole}
        return [key for key in own if _is_count(key) and key in self._weights and key.rpartition(".")[0] in layers]

    def _rows_refused(self, key: str, head: Any) -> str | None:
        if not self.stored_classes:
            return "the file names no classes"
        if head.num_classes != len(self.classes):
            return f"the head has {head.num_classes} classes, the data {len(self.classes)}"
        layer = key.rpartition(".")[0].rpartition(".")[2]
        rows, width = self._weights[key].shape[0], _width(head, layer, len(self.stored_classes))
        groups = self._expected[key].shape[0] // _width(head, layer, len(self.classes))
        if rows != groups * width:
            return f"{rows} rows in the file, expected {groups} x {width} for its {len(self.stored_classes)} classes"
        return None

    def _foreign_classes(self, part: str) -> bool:
        """Whether a part is of a head whose classifier is not known here, and classes differ."""
        path = next((path for path in self._heads if part.startswith(f"{path}.")), None)
        if path is None or self.classes == self.stored_classes:
            return False
        return not any(f"{path}.{name}.weight" in self._expected for name in _CLASSIFIERS)

    def _rows_summary(self, start: Start, refused: str) -> str:
        if not self._knows_classifier:
            return ""  # taken whole or not at all
        total = f"of {len(self.classes)} classes"
        assumed = " (the file names none; mmdet's zoo says COCO)" if self._assumed else ""
        if start.classes_kept:
            fresh = f", fresh for {_some(start.classes_fresh)}" if start.classes_fresh else ""
            return (
                f"rows of {len(start.classes_kept)} {total} kept by name ({_some(start.classes_kept)}){fresh}{assumed}"
            )
        why = refused or f"the file's are {_some(self.stored_classes)}"
        return f"rows of 0 {total} kept: {why}{assumed}"


def _class_heads(model: nn.Module) -> dict[str, Any]:
    """Path -> head, of those that tell classes apart."""
    return {
        path: module
        for path, module in model.named_modules()
        if tells_classes(path) and isinstance(getattr(module, "num_classes", None), int)
    }


def _width(head: Any, layer: str, classes: int) -> int:
    """Rows that belong together: one a class, and perhaps the background's, the last; four a class of `fc_reg`."""
    if layer == "fc_reg":
        return 4 * classes
    # One-stage heads with a sigmoid have no background class; all others have one.
    return classes if getattr(head, "use_sigmoid_cls", False) else classes + 1


def _rows(head: Any, part: str, pairs: Sequence[tuple[int, int]], stored: int) -> tuple[Tensor, Tensor, int, int]:
    """Rows of the model and of the file that stand for the same, within one group, and how many a group has in each.

    Args:
        stored: classes of the file.
    """
    layer = part.rpartition(".")[2]
    widths = _width(head, layer, head.num_classes), _width(head, layer, stored)
    indices = torch.tensor(pairs)
    if layer == "fc_reg":
        rows = (indices.unsqueeze(2) * 4 + torch.arange(4)).transpose(1, 2).reshape(-1, 2)
    elif widths[0] > head.num_classes:
        rows = torch.cat([indices, torch.tensor([[head.num_classes, stored]])])
    else:
        rows = indices
    return rows[:, 0], rows[:, 1], *widths


def _take_rows(target: Tensor, source: Tensor, rows: tuple[Tensor, Tensor, int, int]) -> None:
    """Copy rows of every group; a group is an anchor: mmdet's channels go anchor by anchor, in each class by class."""
    model_rows, file_rows, width, file_width = rows
    groups = target.shape[0] // width
    with torch.no_grad():
        grouped = source.reshape(groups, file_width, *source.shape[1:])
        target.view(groups, width, *target.shape[1:])[:, model_rows] = grouped[:, file_rows].to(target)


def _by_part(keys: Iterable[str]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {}
    for key in keys:
        numbered = re.match(r"(.*?\.\d+)\.", key)
        parts.setdefault(numbered[1] if numbered else key.rpartition(".")[0] or key, []).append(key)
    return parts


def _is_count(key: str) -> bool:
    return key.endswith("num_batches_tracked")  # older files have none


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a number"


def _some(items: Iterable[str]) -> str:
    listed = list(items)
    return ", ".join(listed[:_SHOWN]) + (f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else "")
