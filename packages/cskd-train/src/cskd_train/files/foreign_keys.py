"""Names of weights that other programs wrote and a stock detector of mmdet 2.28 does not have."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

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
