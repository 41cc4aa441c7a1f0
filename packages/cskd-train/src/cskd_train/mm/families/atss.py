"""ATSS: towers and predictions compared; nothing is published of an assistant for it, and it has none."""

from __future__ import annotations

from cskd_core.family import PredictionRule
from cskd_train.mm.families.dense import DenseFamily


class ATSSFamily(DenseFamily):
    """A stock mmdet ATSS, or a PAA, which differs in how it assigns targets."""

    detectors = ("ATSS", "PAA")
    heads = {"bbox_head": ("ATSSHead", "PAAHead")}  # noqa: RUF012
    classifier = "bbox_head.atss_cls"
    exported = {"ATSS": ("ATSSHead",)}  # noqa: RUF012
    predictors = {"cls": "atss_cls", "reg": "atss_reg", "centerness": "atss_centerness"}  # noqa: RUF012
    prediction_rules = {  # noqa: RUF012
        "cls": PredictionRule("sigmoid", "mean"),
        "reg": PredictionRule("identity", "foreground"),
        "centerness": PredictionRule("sigmoid", "foreground"),
    }
