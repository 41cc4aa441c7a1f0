"""Cosine-similarity-guided knowledge distillation (CSKD) for object detectors, in plain PyTorch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cskd_core.assistant import PredictorSpec
    from cskd_core.distiller import Distiller
    from cskd_core.errors import CskdError, PlanError, ShapeError, TapError
    from cskd_core.family import Batch, Family, Observation, PredictionRule, PyramidSpec, TowerSpec
    from cskd_core.plan import DistillPlan
    from cskd_core.regions import RegionOptions, Regions
    from cskd_core.roi_terms import RoiObservation, RoiSpec
    from cskd_core.similarity import (
        CosineGuidedLoss,
        LossOptions,
        cosine_guided_loss,
        cosine_guided_vector_loss,
        masked_cosine_guided_loss,
    )
    from cskd_core.taps import Recording, Taps
    from cskd_core.teacher import FrozenTeacher

__all__ = [
    "Batch",
    "CosineGuidedLoss",
    "CskdError",
    "DistillPlan",
    "Distiller",
    "Family",
    "FrozenTeacher",
    "LossOptions",
    "Observation",
    "PlanError",
    "PredictionRule",
    "PredictorSpec",
    "PyramidSpec",
    "Recording",
    "RegionOptions",
    "Regions",
    "RoiObservation",
    "RoiSpec",
    "ShapeError",
    "TapError",
    "Taps",
    "TowerSpec",
    "cosine_guided_loss",
    "cosine_guided_vector_loss",
    "masked_cosine_guided_loss",
]

_FROM = {
    "Batch": "family",
    "CosineGuidedLoss": "similarity",
    "CskdError": "errors",
    "DistillPlan": "plan",
    "Distiller": "distiller",
    "Family": "family",
    "FrozenTeacher": "teacher",
    "LossOptions": "similarity",
    "Observation": "family",
    "PlanError": "errors",
    "PredictionRule": "family",
    "PredictorSpec": "assistant",
    "PyramidSpec": "family",
    "Recording": "taps",
    "RegionOptions": "regions",
    "Regions": "regions",
    "RoiObservation": "roi_terms",
    "RoiSpec": "roi_terms",
    "ShapeError": "errors",
    "TapError": "errors",
    "Taps": "taps",
    "TowerSpec": "family",
    "cosine_guided_loss": "similarity",
    "cosine_guided_vector_loss": "similarity",
    "masked_cosine_guided_loss": "similarity",
}


def __getattr__(name: str) -> Any:
    """What the package exports is imported when it is asked for: its errors need no torch."""
    if name in _FROM:
        return getattr(importlib.import_module(f"cskd_core.{_FROM[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
