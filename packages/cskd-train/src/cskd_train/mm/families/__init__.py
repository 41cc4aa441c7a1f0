"""The detector families that can be distilled: what is compared of a detector goes by its class and its heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from cskd_core.plan import DistillPlan
from cskd_train.mm.families.atss import ATSSFamily
from cskd_train.mm.families.base import DetectorFamily
from cskd_train.mm.families.faster_rcnn import FasterRCNNFamily
from cskd_train.mm.families.fcos import FCOSFamily
from cskd_train.mm.families.gfl import GFLFamily
from cskd_train.mm.families.pyramid import PyramidFamily
from cskd_train.mm.families.retina_heads import RetinaHeadsFamily
from cskd_train.mm.families.retinanet import RetinaNetFamily

FAMILIES: tuple[type[DetectorFamily], ...] = (
    RetinaNetFamily,
    FCOSFamily,
    GFLFamily,
    FasterRCNNFamily,
    ATSSFamily,
    RetinaHeadsFamily,
)
"""Those of which heads are compared too; a new one is a new file and a place in this list."""


def family_of(detector: nn.Module) -> DetectorFamily:
    """The family of an mmdet detector, for distilling into it or from it.

    Raises:
        TapError: it has no pyramid that could be compared.
    """
    known = next((family for family in FAMILIES if family.reads(detector)), PyramidFamily)
    PyramidFamily.check_pyramid(detector)
    return known(detector)


def family_of_pair(student: nn.Module, teacher: nn.Module, plan: DistillPlan) -> tuple[DetectorFamily, list[str]]:
    """The family by which two detectors are compared, and notes on what is not.

    Of detectors of two kinds, or with heads of which nothing is known here, the pyramids are compared and nothing else;
    so they are where a plan leaves all heads out, and no head is run for it.

    Raises:
        TapError: one of them has no pyramid that could be compared.
        PlanError: the plan sets something of heads that are not compared.
    """
    family, other = family_of(student), family_of(teacher)
    notes = []
    if type(family) is not type(other) or isinstance(family, PyramidFamily):
        pair = f"{_described(student)} under a {_described(teacher)}"
        plan.refuse_unused(pair, frozenset({"init_student"}))
        notes.append(f"a {pair}: the pyramids are compared, nothing of the heads")
    elif family.compared(student, plan):
        return family, []
    return PyramidFamily(student, family.level_reduce), notes


def _described(detector: Any) -> str:
    """`RetinaNet (neck FPN, BFP; FreeAnchorRetinaHead)`: the class, a neck of several parts, and the heads."""
    parts = []
    if isinstance(detector.neck, nn.Sequential):
        parts.append("neck " + ", ".join(type(part).__name__ for part in detector.neck))
    heads = [getattr(detector, name, None) for name in ("bbox_head", "rpn_head", "roi_head")]
    parts.append(", ".join(type(head).__name__ for head in heads if head is not None))
    return f"{type(detector).__name__} ({'; '.join(parts)})"


def exportable() -> dict[str, tuple[str, ...]]:
    """Detector class -> classes of its box head with which `cskd-deploy export` can write a student."""
    found: dict[str, tuple[str, ...]] = {}
    families: tuple[type[DetectorFamily], ...] = (*FAMILIES, PyramidFamily)
    for family in families:
        for detector, heads in family.exported.items():
            found[detector] = (*found.get(detector, ()), *heads)
    return found


_EXPORTED_PARTS = {
    "rpn_head": "RPNHead",
    "roi_head": "StandardRoIHead",
    "roi_head.bbox_roi_extractor": "SingleRoIExtractor",
}
"""Of detectors that are exported, where they have such a part."""


def export_note(model: Mapping[str, Any]) -> str | None:
    """What there is to say of a `model` config that `cskd-deploy export` cannot write; None where it can.

    Its operators are known at export only: a neck or a backbone may have one that ONNX has not.
    """
    name, known = model["type"], exportable()
    head = _type_at(model, "roi_head.bbox_head" if model.get("roi_head") else "bbox_head")
    others = [found for path, kind in _EXPORTED_PARTS.items() if (found := _type_at(model, path)) not in (None, kind)]
    neck = model.get("neck") or ()
    necks = [neck] if isinstance(neck, Mapping) else neck
    others += [part["type"] for part in necks if part["type"] == "DyHead"]  # deformable convolutions
    if head in known.get(name, ()) and not others:
        return None
    part = others[0] if others else head
    return (
        f"a {name}{f' with a {part}' if part else ''} can be trained and distilled, but cskd-deploy cannot export it "
        "yet; it exports: " + "; ".join(f"{detector} ({', '.join(heads)})" for detector, heads in known.items())
    )


def _type_at(model: Any, path: str) -> str | None:
    """The type of a part of a config; None where there is none, or several, as in a cascade."""
    for name in path.split("."):
        model = model.get(name) if isinstance(model, Mapping) else None
    return model.get("type") if isinstance(model, Mapping) else None
