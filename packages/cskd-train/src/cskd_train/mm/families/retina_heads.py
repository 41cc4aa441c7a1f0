"""FSAF, and RetinaNets with the heads of FreeAnchor or PISA: RetinaNet's maps, other losses, no assistant."""

from __future__ import annotations

from cskd_train.mm.families.dense import DenseFamily
from cskd_train.mm.families.retinanet import RetinaNetFamily


class RetinaHeadsFamily(DenseFamily):
    """Detectors whose head has the layers of RetinaNet's and learns by another loss."""

    detectors = ("RetinaNet", "FSAF")
    heads = {"bbox_head": ("FreeAnchorRetinaHead", "PISARetinaHead", "FSAFHead")}  # noqa: RUF012
    classifier = RetinaNetFamily.classifier
    exported = {"RetinaNet": ("FreeAnchorRetinaHead", "PISARetinaHead"), "FSAF": ("FSAFHead",)}  # noqa: RUF012
    predictors = RetinaNetFamily.predictors
    prediction_rules = RetinaNetFamily.prediction_rules
