"""mmcv's epoch-based runner on one device, without its wrappers and pauses."""

from __future__ import annotations

import logging
from typing import Any

import torch
from mmcv.runner import EpochBasedRunner
from torch import nn
from torch.optim import Optimizer

from cskd_train.engine.loader import TrainLoader, to_device


class EpochRunner(EpochBasedRunner):
    """Runs the training epochs of a detector; mmcv's hooks (learning rate, optimizer, timer, custom) serve unchanged.

    Batches are unpacked here instead of in MMDataParallel, so that the model stays itself: its keys need no prefix. The
    pauses of two seconds an epoch that mmcv makes are left out: they are for workers of old torch versions.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, device: torch.device, max_epochs: int) -> None:
        logger = logging.getLogger("cskd_train.runner")
        logger.setLevel(logging.WARNING)  # mmcv lists every hook at INFO
        super().__init__(model, optimizer=optimizer, logger=logger, max_epochs=max_epochs)
        self.device = device

    def resume_at(self, epoch: int, iteration: int) -> None:
        """Go on after so many finished epochs and iterations."""
        self._epoch = epoch
        self._iter = iteration

    def run_iter(self, data_batch: Any, train_mode: bool = True, **_: Any) -> None:
        self.outputs = self.model.train_step(to_device(data_batch, self.device), self.optimizer)
        self.log_buffer.update(self.outputs["log_vars"], self.outputs["num_samples"])

    def train(self, data_loader: TrainLoader, **_: Any) -> None:
        self.model.train()
        self.mode = "train"
        self.data_loader = data_loader
        data_loader.set_epoch(self.epoch)
        self.call_hook("before_train_epoch")
        for place, batch in enumerate(data_loader):
            self.data_batch = batch
            self._inner_iter = place
            self.call_hook("before_train_iter")
            self.run_iter(batch)
            self.call_hook("after_train_iter")
            self._iter += 1
        self.call_hook("after_train_epoch")
        self._epoch += 1

    def run_epochs(self, data_loader: TrainLoader) -> None:
        """Train until `max_epochs`."""
        self._max_iters = self.max_epochs * len(data_loader)
        self.data_loader = data_loader
        self.call_hook("before_run")
        while self.epoch < self.max_epochs:
            self.train(data_loader)
        self.call_hook("after_run")
