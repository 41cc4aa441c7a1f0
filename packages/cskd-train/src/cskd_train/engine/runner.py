"""What mmcv's hooks see of a run: learning rate, momentum, the user's own hooks and loggers work on it unchanged."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv import Config
from mmcv.runner import EpochBasedRunner, Hook, LoggerHook
from torch import nn
from torch.optim import Optimizer

from cskd_train.engine.loader import Position, TrainLoader
from cskd_train.errors import TrainError
from cskd_train.files.settings import kept_hooks
from cskd_train.mm.datasets import leave_out
from cskd_train.mm.detector import DistilledDetector


class HookRunner(EpochBasedRunner):
    """mmcv's runner without its loop: `engine.run` trains, and calls the hooks through this."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, max_epochs: int, work_dir: str) -> None:
        logger = logging.getLogger("cskd_train.runner")
        logger.setLevel(logging.WARNING)  # mmcv lists every hook at INFO
        super().__init__(model, optimizer=optimizer, logger=logger, max_epochs=max_epochs, meta={})
        self.work_dir = work_dir
        self.mode = "train"

    def drop_loggers(self) -> None:
        """Take the loggers out: they write files."""
        self._hooks: list[Any] = [hook for hook in self.hooks if not isinstance(hook, LoggerHook)]

    def begin(self, loader: TrainLoader, position: Position) -> None:
        """The run begins, or goes on from `position`."""
        self.data_loader = loader
        self._max_iters = self.max_epochs * len(loader)
        self._has_loggers = any(isinstance(hook, LoggerHook) for hook in self.hooks)
        self._stand_at(position)
        self.call_hook("before_run")

    def begin_epoch(self, position: Position) -> None:
        """An epoch begins, or goes on from `position`."""
        self._stand_at(position)
        self.call_hook("before_train_epoch")

    def _stand_at(self, position: Position) -> None:
        """Hooks count epochs and iterations from 0, one iteration a step, all steps as long as those to come: schedules
        by iteration go by the place in the epochs, whatever number of steps earlier sessions took to it."""
        self._epoch = position.epoch
        self._inner_iter, self._iter = self.data_loader.steps_done(position)
        self._done = self._inner_iter  # steps of the epoch

    def before_step(self, data: Mapping[str, Any]) -> None:
        """A step on these data follows."""
        self.data_batch = data
        self._inner_iter = self._done
        self.call_hook("before_train_iter")

    def after_step(self, values: Mapping[str, float], images: int) -> None:
        """The step is done, with these loss terms and times."""
        self.outputs = {"loss": torch.tensor(values["loss"]), "log_vars": dict(values), "num_samples": images}
        if self._has_loggers:
            self.log_buffer.update(dict(values), images)
        self.call_hook("after_train_iter")
        self._iter += 1
        self._done += 1

    def after_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Epoch `epoch` (from 1) is trained, saved and, if it has metrics, evaluated, perhaps in a later session."""
        self._epoch, self._inner_iter = epoch - 1, len(self.data_loader) - 1
        if metrics:
            self.log_buffer.output.update(metrics)
            self.log_buffer.ready = True
        self.call_hook("after_train_epoch")
        self.log_buffer.clear()
        self._epoch += 1

    def end(self) -> None:
        """The run is through."""
        self.call_hook("after_run")

    @property
    def learning_rate(self) -> float:
        """Of the parameters that go by optimizer.lr itself, not by a multiple of it (paramwise_cfg)."""
        groups, lr = self.optimizer.param_groups, self.optimizer.defaults["lr"]
        return float(next((one for one in groups if one.get("initial_lr", one["lr"]) == lr), groups[0])["lr"])


class ModeSwitchHook(Hook):
    """mmdet's `YOLOXModeSwitchHook` for this runner, in a run that was resumed after the switch too.

    Args:
        num_last_epochs: after this many before the last, and in a shorter run at once, the switch is made: the L1 loss
            of YOLOX's head is added.
        skip_type_keys: types of the steps of a `MultiImageMixDataset` that are left out from then on.
    """

    def __init__(
        self, num_last_epochs: int = 15, skip_type_keys: Sequence[str] = ("Mosaic", "RandomAffine", "MixUp")
    ) -> None:
        self.num_last_epochs, self.skip_type_keys = num_last_epochs, skip_type_keys
        self._switched = False

    def before_train_epoch(self, runner: Any) -> None:
        if self._switched or runner.epoch + 1 < runner.max_epochs - self.num_last_epochs:
            return
        self._switched = True
        leave_out(runner.data_loader.dataset, self.skip_type_keys)
        runner.data_loader.close()  # its processes have the dataset as it was
        head = getattr(runner.model, "bbox_head", None)
        if head is not None and hasattr(head, "use_l1"):
            head.use_l1 = True


OWN_HOOKS: Mapping[str, type[Hook]] = {"YOLOXModeSwitchHook": ModeSwitchHook}
"""Hooks of mmdet that reach into its own data loader -> what a run builds in their place."""


def build_runner(cfg: Config, model: nn.Module, lr: float, work_dir: str) -> HookRunner:
    """The runner with the config's optimizer at learning rate `lr`, schedules, custom hooks and loggers.

    Raises:
        TrainError: one of them cannot be built.
    """
    hooks = [{**hook, "type": OWN_HOOKS.get(hook["type"], hook["type"])} for hook in kept_hooks(cfg)]
    try:
        runner = HookRunner(model, _optimizer(model, {**cfg.optimizer, "lr": lr}), cfg.runner.max_epochs, work_dir)
        runner.register_training_hooks(
            lr_config=copy.deepcopy(cfg.get("lr_config")),  # mmcv takes keys out of it
            momentum_config=copy.deepcopy(cfg.get("momentum_config")),
            timer_config=None,
            custom_hooks_config=copy.deepcopy(hooks),
        )
    except (
        AssertionError, AttributeError, ImportError, KeyError, NotImplementedError, TypeError, ValueError
    ) as error:  # fmt: skip
        raise TrainError(
            "optimizer, lr_config, momentum_config, log_config or custom_hooks of the config cannot be built: "
            f"{str(error) or type(error).__name__}"
        ) from error
    return runner


def _optimizer(model: nn.Module, settings: Mapping[str, Any]) -> Optimizer:
    """The optimizer of a config; by a constructor of mmdet's, too, in the versions that have some.

    A constructor goes by the names of parameters: a student under its distiller has those that it has alone.
    """
    try:
        from mmdet.core import build_optimizer
    except ImportError:
        from mmcv.runner import build_optimizer
    before = logging.root.manager.disable
    logging.disable(logging.INFO)  # mmdet's writes a line for each parameter
    try:
        named = model.under_own_names() if isinstance(model, DistilledDetector) else model
        optimizer: Optimizer = build_optimizer(named, dict(settings))
    finally:
        logging.disable(before)
    return optimizer
