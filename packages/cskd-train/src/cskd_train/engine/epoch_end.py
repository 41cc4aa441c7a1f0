"""After each epoch: evaluate, then keep the best and the last checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmcv.runner import Hook
from torch import nn

from cskd_train.engine.guards import check_finite
from cskd_train.engine.records import Recorder
from cskd_train.engine.state import RunState, rng_state
from cskd_train.engine.workdir import WorkDir
from cskd_train.files import checkpoints
from cskd_train.results import CocoResult


class EpochEnd(Hook):
    """Evaluates every `interval` epochs and after the last, and writes `best.pth` and `last.pth`.

    Args:
        student: the plain detector; its keys alone are the checkpoint's `state_dict`.
        distiller: what distillation adds, kept in `last.pth` for `--resume`.
        evaluate: measures the student; None where the config has no validation split.
        meta: what every checkpoint of the run says beside epoch and metrics.
    """

    def __init__(
        self,
        *,
        student: nn.Module,
        distiller: nn.Module | None,
        evaluate: Callable[[], CocoResult] | None,
        interval: int,
        state: RunState,
        recorder: Recorder,
        work_dir: WorkDir,
        meta: dict[str, Any],
    ) -> None:
        self.student = student
        self.distiller = distiller
        self.evaluate = evaluate
        self.interval = interval
        self.state = state
        self.recorder = recorder
        self.work_dir = work_dir
        self.meta = meta

    def after_train_epoch(self, runner: Any) -> None:
        epoch = runner.epoch + 1
        weights = {key: value.detach().cpu() for key, value in self.student.state_dict().items()}
        check_finite(weights, epoch)
        measured = self.evaluate is not None and (epoch % self.interval == 0 or epoch == runner.max_epochs)
        is_best = False
        if measured and self.evaluate is not None:
            result = self.evaluate()
            is_best = self.state.evaluated(result, epoch)
            self.recorder.validation(epoch, runner.iter, result.metrics)
        metrics = self.state.last if measured else {}
        meta = {**self.meta, "epoch": epoch, "iter": runner.iter, "metrics": metrics}
        contents: dict[str, Any] = {"state_dict": weights, "meta": meta}
        # The best first: a run that dies between the two repeats this epoch, and writes the same best again.
        if is_best:
            checkpoints.save(self.work_dir.best, contents)
        contents |= {"optimizer": runner.optimizer.state_dict(), "rng": rng_state(), "run": self.state.to_data()}
        if self.distiller is not None:
            contents["distiller"] = self.distiller.state_dict()
        checkpoints.save(self.work_dir.last, contents)
