"""From a config to the parts of a run: student, distiller, optimizer, data."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from mmcv import Config
from mmcv.runner import build_optimizer
from torch import nn

from cskd_core.plan import DistillPlan
from cskd_train.engine.data import build_split, check_classes, check_split, has_split
from cskd_train.engine.loader import TrainLoader
from cskd_train.engine.runner import EpochRunner
from cskd_train.errors import TrainError
from cskd_train.files.checkpoints import load_checkpoint, load_weights
from cskd_train.mm.detector import build_distilled, build_student


@dataclass(frozen=True)
class Parts:
    """What a run is put together from."""

    student: nn.Module
    classes: tuple[str, ...]
    distiller: nn.Module | None
    runner: EpochRunner  # over the student, or the student under its distiller
    loader: TrainLoader
    remarks: tuple[str, ...]  # for the user, on how student and teacher were fitted together
    validation: Any  # mmdet's test dataset, or None without a validation split


def refuse_unsupported(cfg: Config) -> None:
    """Refuse a config that misses a block, or asks for what would silently be ignored here.

    Raises:
        TrainError: names the key and what to write instead.
        PlanError: the `distill` block does not fit its schema.
    """
    plan = DistillPlan.parse(cfg.distill) if cfg.get("distill") else None
    if plan and plan.init_student and cfg.get("load_from"):
        raise TrainError(
            f"load_from = {cfg.load_from!r} and distill.init_student=True both say how the student's head begins: "
            "take one of them out"
        )
    for key in ("model", "data", "optimizer", "runner"):
        if key not in cfg:
            raise TrainError(f"the config has no {key!r} block; configs/_base_ has one to build on")
    if cfg.runner.get("type", "EpochBasedRunner") != "EpochBasedRunner" or "max_epochs" not in cfg.runner:
        raise TrainError(
            f"runner = {dict(cfg.runner)}: only runner = dict(type='EpochBasedRunner', max_epochs=N) is supported"
        )
    if cfg.get("resume_from"):
        raise TrainError(f"resume_from = {cfg.resume_from!r}: resume with --resume and the work dir of that run")
    if cfg.get("fp16"):
        raise TrainError("fp16: mixed precision is not supported; take the block out of the config")
    if any(mode != "train" for mode, _ in cfg.get("workflow") or []):
        raise TrainError(f"workflow = {cfg.workflow}: only [('train', 1)]; every epoch is evaluated anyway")
    counts = {
        "runner.max_epochs": cfg.runner.max_epochs,
        "evaluation.interval": (cfg.get("evaluation") or {}).get("interval", 1),
        "log_config.interval": (cfg.get("log_config") or {}).get("interval", 1),
        "data.samples_per_gpu": cfg.data.get("samples_per_gpu", 1),
    }
    for key, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise TrainError(f"{key} = {value!r}: expected a whole number of at least 1")


def check_data(cfg: Config, splits: Iterable[str] = ("train", "val")) -> list[str]:
    """Check the annotations of every split that the config has; gives the warnings, each once.

    Raises:
        TrainError: as `check_split`.
    """
    checked = [split for split in splits if split == "train" or has_split(cfg, split)]
    return list(dict.fromkeys(warning for split in checked for warning in check_split(cfg, split)))


def build_parts(cfg: Config, seed: int, device: torch.device) -> Parts:
    """Build everything that a run needs, its random weights from `seed`.

    The student is built first: it starts from the same weights with and without a `distill` block.

    Raises:
        TrainError: a part cannot be built, or model and data do not fit.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    cv2.setNumThreads(0)  # the loader's workers are what runs in parallel
    torch.backends.cudnn.benchmark = cfg.get("cudnn_benchmark", False)
    train_set = build_split(cfg, "train")
    validation = build_split(cfg, "val") if has_split(cfg, "val") else None
    student = build_student(cfg)
    classes = tuple(train_set.CLASSES)
    check_classes(student, classes)
    student.CLASSES = classes  # type: ignore[assignment]
    if cfg.get("load_from"):
        load_weights(student, load_checkpoint(cfg.load_from, require_config=False))
    student.to(device)
    distilled = build_distilled(student, cfg, device) if cfg.get("distill") else None
    trained: nn.Module = student if distilled is None else distilled
    loading = {**cfg.data, **cfg.data.get("train_dataloader", {})}
    loader = TrainLoader(train_set, loading.get("samples_per_gpu", 2), loading.get("workers_per_gpu", 2), seed)
    distiller = None if distilled is None else distilled.distiller
    remarks = () if distilled is None else distilled.remarks
    return Parts(student, classes, distiller, _build_runner(cfg, trained, device), loader, remarks, validation)


def _build_runner(cfg: Config, trained: nn.Module, device: torch.device) -> EpochRunner:
    """The runner with the config's optimizer and hooks: learning rate, momentum, gradient, time, and its own."""
    # Number of classes: check_classes has looked at it, and says what to do.
    custom = [hook for hook in cfg.get("custom_hooks") or [] if hook.get("type") != "NumClassCheckHook"]
    try:
        runner = EpochRunner(trained, build_optimizer(trained, cfg.optimizer), device, cfg.runner.max_epochs)
        runner.register_training_hooks(
            lr_config=copy.deepcopy(cfg.get("lr_config")),  # mmcv takes keys out of it
            optimizer_config=copy.deepcopy(cfg.get("optimizer_config") or {}),
            momentum_config=copy.deepcopy(cfg.get("momentum_config")),
            custom_hooks_config=copy.deepcopy(custom),
        )
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise TrainError(
            f"optimizer, optimizer_config, lr_config or custom_hooks of the config cannot be built: {error}"
        ) from error
    return runner
