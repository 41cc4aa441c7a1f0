"""Stops a run that has lost its numbers, before they reach the weights or a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mmcv.runner import Hook
from torch import Tensor

from cskd_train.engine.loader import image_names
from cskd_train.errors import TrainError

_ADVICE = (
    "Lower the learning rate (--set optimizer.lr=...), clip gradients "
    "(--set \"optimizer_config.grad_clip={'max_norm': 35, 'norm_type': 2}\") or check the annotations "
    "(cskd-train data check); then go on with --resume"
)


class FiniteLossGuard(Hook):
    """Raises at the first loss that is not finite, before its gradient is taken (priority above the optimizer's)."""

    def after_train_iter(self, runner: Any) -> None:
        terms: Mapping[str, float] = runner.outputs["log_vars"]
        lost = [f"{name} = {value}" for name, value in terms.items() if not math.isfinite(value)]
        if lost:
            raise TrainError(
                f"the loss is not finite: {', '.join(lost)} at epoch {runner.epoch + 1}, "
                f"iteration {runner.inner_iter + 1} of {len(runner.data_loader)}, "
                f"images {', '.join(image_names(runner.data_batch))}. {_kept(runner.epoch)}. {_ADVICE}"
            )


def check_finite(weights: Mapping[str, Tensor], epoch: int) -> None:
    """Refuse weights that are not finite (a gradient can overflow under a finite loss).

    Raises:
        TrainError: names the first such key.
    """
    for key, value in weights.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise TrainError(f"{key} is not finite after epoch {epoch}. {_kept(epoch - 1)}. {_ADVICE}")


def _kept(epoch: int) -> str:
    return f"last.pth still holds epoch {epoch}" if epoch > 0 else "No epoch had been finished, so nothing was saved"
