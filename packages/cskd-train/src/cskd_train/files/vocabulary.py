"""What every key of a config does in a run: it is obeyed, it changes nothing, or it is refused.

The one table of it: `settings` checks configs by it, `overrides` knows from it which keys `--set` may add.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cskd_core.plan import DistillPlan


@dataclass(frozen=True)
class Rule:
    """What becomes of one key.

    Attributes:
        obeyed: the run goes by the value; otherwise the key is passed over where `fits` allows.
        fits: whether a value may stand without a word.
        say: about any other value, what to write in its place.
        noted: any other value gets a note in place of an error.
    """

    obeyed: bool
    fits: Callable[[Any], bool]
    say: str = ""
    noted: bool = False


def _anything(_: Any) -> bool:
    return True


def _number(value: Any, least: float = -math.inf) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value < math.inf


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and _number(value, least)


def _only(*values: Any, say: str) -> Rule:
    """Passed over where the key has one of these values, which change nothing; refused otherwise."""
    return Rule(False, lambda value: value in values, say)


def _noted(*values: Any, say: str) -> Rule:
    """Passed over; with a note unless the key has one of these values."""
    return Rule(False, lambda value: value in values, say, noted=True)


OBEYED = Rule(True, _anything)
PASSED_OVER = Rule(False, _anything)
BLOCK = Rule(True, lambda value: value is None or isinstance(value, Mapping), "expected a dict")
NEEDED = Rule(True, lambda value: isinstance(value, Mapping), "expected a dict")
LIST = Rule(True, lambda value: value is None or isinstance(value, list), "expected a list of dicts")
AT_LEAST_1 = Rule(True, lambda value: _whole(value, 1), "expected a whole number of at least 1")
AT_LEAST_0 = Rule(True, lambda value: _whole(value, 0), "expected a whole number of at least 0")
FLAG = Rule(True, lambda value: isinstance(value, bool), "expected True or False")
NUMBER = Rule(True, _number, "expected a number")
NOT_NEGATIVE = Rule(True, lambda value: _number(value, 0), "expected a number of at least 0")
POSITIVE = Rule(True, lambda value: _number(value, 0) and value > 0, "expected a number above 0")
DECAY = Rule(True, lambda value: _number(value, 0) and 0 < value < 1, "expected a number between 0 and 1")
TEXT = Rule(True, lambda value: isinstance(value, str) and bool(value), "expected a file")
FILE = Rule(True, lambda value: value is None or isinstance(value, str), "expected a file or a URL")

_AMP = "take it out (--set fp16=None) and give --amp bf16 or --amp fp16"
_RESUME = "resume with --resume and the work dir of that run"
_EMA = "write ema = dict(decay=0.9998) in the config, or give --ema: the averaged weights are evaluated and saved"
_OWN_EVALUATION = "the evaluation is COCO's standard one, with its IoUs, areas and numbers of detections; take it out"
_OWN_CHECKPOINTS = "last.pth and best.pth are written, and no others; take it out"
_EVERY = "last.pth is written after every epoch; take it out, and to save more often give --checkpoint-every STEPS"

_TEST_LOADER = {
    "samples_per_gpu": _noted(1, say="evaluation takes one image at a time"),
    "workers_per_gpu": AT_LEAST_0,
    "persistent_workers": PASSED_OVER,
    "pin_memory": PASSED_OVER,
    "shuffle": _only(False, say="evaluation goes through the images in order; take it out"),
}

TABLES: Mapping[str, Mapping[str, Rule]] = {
    "": {
        "model": NEEDED,
        "data": NEEDED,
        "optimizer": NEEDED,
        "optimizer_config": BLOCK,
        "lr_config": BLOCK,
        "momentum_config": BLOCK,
        "runner": NEEDED,
        "evaluation": BLOCK,
        "log_config": BLOCK,
        "checkpoint_config": BLOCK,
        "auto_scale_lr": BLOCK,
        "ema": BLOCK,
        "distill": BLOCK,
        "custom_hooks": LIST,
        "custom_imports": OBEYED,  # by mmcv, as it reads the file
        "load_from": FILE,
        "seed": Rule(True, lambda value: value is None or _whole(value, 0), AT_LEAST_0.say),
        "cudnn_benchmark": FLAG,
        "deterministic": FLAG,
        "find_unused_parameters": FLAG,
        "accumulate": AT_LEAST_1,
        "amp": Rule(True, lambda value: value in (None, "bf16", "fp16"), "expected 'bf16' or 'fp16'"),
        "fp16": _only(None, False, {}, say=_AMP),
        "resume_from": _only(None, say=_RESUME),
        "auto_resume": _only(None, False, say=_RESUME),
        "workflow": Rule(
            False,
            lambda value: all(mode == "train" for mode, _ in value or []),
            "only [('train', 1)]; every epoch is evaluated anyway",
        ),
        "dist_params": _only(
            None,
            {"backend": "nccl"},
            say="the backend goes by the device, address and port by torchrun; take it out",
        ),
        "work_dir": _noted(None, say="--work-dir says where a run writes"),
        "gpu_ids": _noted(None, [], [0], say="--gpus says how many GPUs a run takes"),
        "device": _noted(None, "cuda", say="--device says where a run trains"),
        "log_level": _noted("INFO", say="warnings and progress are shown at every level"),
        "mp_start_method": _noted(None, "fork", say="worker processes start as the system's default says"),
        "opencv_num_threads": _noted(0, 1, say="each worker process runs OpenCV in one thread"),
    },
    "data": {
        "samples_per_gpu": AT_LEAST_1,
        "workers_per_gpu": AT_LEAST_0,
        "persistent_workers": PASSED_OVER,
        "pin_memory": PASSED_OVER,
        "skip_broken": FLAG,
        "train": OBEYED,
        "val": OBEYED,
        "test": OBEYED,
        "unlabeled": BLOCK,
        "train_dataloader": BLOCK,
        "val_dataloader": BLOCK,
        "test_dataloader": BLOCK,
    },
    "data.unlabeled": {
        "ann_file": TEXT,
        "img_prefix": FILE,
        "share": DECAY,
        "weight": NOT_NEGATIVE,
        "images": FILE,  # what `cskd-train pseudo-label` is to make the file from
        "classes": OBEYED,
    },
    "data.train_dataloader": {
        "samples_per_gpu": AT_LEAST_1,
        "workers_per_gpu": AT_LEAST_0,
        "persistent_workers": PASSED_OVER,
        "pin_memory": PASSED_OVER,
        "shuffle": _only(True, say="training shuffles the images in every epoch; take it out"),
        "drop_last": _only(False, say="every batch of an epoch is a full one; take it out"),
        "class_aware_sampler": _only(None, say="for rare classes, put ClassBalancedDataset around data.train"),
    },
    "data.val_dataloader": _TEST_LOADER,
    "data.test_dataloader": _TEST_LOADER,
    "optimizer.paramwise_cfg": {
        "custom_keys": BLOCK,
        "bias_lr_mult": NUMBER,
        "bias_decay_mult": NUMBER,
        "norm_decay_mult": NUMBER,
        "dwconv_decay_mult": NUMBER,
        "dcn_offset_lr_mult": NUMBER,
        "bypass_duplicate": FLAG,
    },
    "optimizer_config": {
        "type": _only(None, "OptimizerHook", say="only OptimizerHook is supported"),
        "grad_clip": BLOCK,
        "detect_anomalous_params": _only(False, say="parameters without a gradient: find_unused_parameters = True"),
    },
    "optimizer_config.grad_clip": {
        "max_norm": POSITIVE,
        "norm_type": Rule(True, lambda value: POSITIVE.fits(value) or value in ("inf", math.inf), POSITIVE.say),
        "foreach": PASSED_OVER,
        "error_if_nonfinite": _only(False, say="a loss that is not finite ends the run anyway; take it out"),
    },
    "runner": {"type": OBEYED, "max_epochs": AT_LEAST_1},
    "evaluation": {
        "interval": AT_LEAST_1,
        "metric": _only("bbox", ["bbox"], say="boxes are evaluated: write metric='bbox'"),
        "save_best": _only(None, "auto", "bbox_mAP", say="best.pth is the epoch of the highest bbox_mAP; take it out"),
        "rule": _only(None, "greater", say="best.pth is the epoch of the highest bbox_mAP; take it out"),
        "start": _only(None, say="evaluation begins with the first epoch; write evaluation.interval for less"),
        "by_epoch": _only(True, say="evaluation comes after whole epochs; write evaluation.interval in epochs"),
        "dynamic_intervals": _only(None, say="write evaluation.interval"),
        "classwise": _noted(False, say="`cskd-train test` prints the AP of each class"),
        "jsonfile_prefix": _only(None, say="`cskd-train test --out FILE` writes the detections; take it out"),
        "out_dir": _only(None, say="--work-dir says where a run writes; take it out"),
        "proposal_nums": _only((100, 300, 1000), [100, 300, 1000], say=_OWN_EVALUATION),
        "iou_thrs": _only(None, say=_OWN_EVALUATION),
        "metric_items": _only(None, say=_OWN_EVALUATION),
        "gpu_collect": PASSED_OVER,
        "tmpdir": PASSED_OVER,
        "broadcast_bn_buffer": PASSED_OVER,
    },
    "log_config": {"interval": AT_LEAST_1, "hooks": LIST},
    "checkpoint_config": {
        "type": _only("CheckpointHook", say="only CheckpointHook is supported"),
        "interval": _only(1, say=_EVERY),
        "by_epoch": _only(True, say=_EVERY),
        "save_optimizer": _only(True, say="last.pth holds the optimizer, for --resume; take it out"),
        "save_last": _only(True, say=_OWN_CHECKPOINTS),
        "max_keep_ckpts": _noted(say="last.pth and best.pth are written, and no others"),
        "out_dir": _only(None, say="--work-dir says where a run writes; take it out"),
        "filename_tmpl": _only("epoch_{}.pth", say=_OWN_CHECKPOINTS),
        "create_symlink": PASSED_OVER,
        "sync_buffer": PASSED_OVER,
        "meta": PASSED_OVER,
    },
    "auto_scale_lr": {"enable": FLAG, "base_batch_size": AT_LEAST_1},
    "ema": {"decay": DECAY, "warmup": AT_LEAST_0},
    "distill": {field.name: OBEYED for field in dataclasses.fields(DistillPlan)},  # looked at by DistillPlan itself
}
"""Dotted block -> key -> rule. Other blocks hold the keyword arguments of a class, which refuses others."""

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "data.unlabeled": ("ann_file",),
    "lr_config": ("policy",),
    "momentum_config": ("policy",),
    "optimizer_config.grad_clip": ("max_norm",),
}
"""Keys that a block must have if the config has the block."""

PASSED_OVER_HOOKS = (
    *("NumClassCheckHook", "TextLoggerHook", "TensorboardLoggerHook", "DistSamplerSeedHook"),
    *("SyncNormHook", "SyncBuffersHook"),
)
"""Hooks whose work a run does itself: classes are compared, log.jsonl and TensorBoard written, order is seeded, the
statistics of norm layers are averaged over the processes before they are saved or evaluated with."""

REFUSED_HOOKS: Mapping[str, str] = {
    "EMAHook": _EMA,
    "BaseEMAHook": _EMA,
    "ExpMomentumEMAHook": _EMA,
    "LinearMomentumEMAHook": _EMA,
    "OptimizerHook": "write optimizer_config",
    "Fp16OptimizerHook": "take it out and give --amp fp16",
    "GradientCumulativeOptimizerHook": "take it out and give --accumulate N",
    "GradientCumulativeFp16OptimizerHook": "take it out and give --accumulate N --amp fp16",
    "CheckpointHook": _EVERY,
    "EvalHook": "write evaluation = dict(interval=N)",
    "DistEvalHook": "write evaluation = dict(interval=N)",
    "RFSearchHook": "mmdet's own training script alone rebuilds the convolutions that it works on; take it out",
    "SyncRandomSizeHook": (
        "write dict(type='Resize', img_scale=[(448, 448), (832, 832)], multiscale_mode='range', keep_ratio=True) in "
        "the pipeline"
    ),
    "MemoryProfilerHook": "what it logs is shown nowhere; take it out (--dry-run says how much memory a run takes)",
    "MMDetWandbHook": "it reads mmdet's own evaluation and checkpoints; write dict(type='WandbLoggerHook')",
}
"""Hooks that would spoil a run or do nothing in it, and what to write in their place."""
