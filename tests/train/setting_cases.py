"""A case or more for every key of a config: what passes, what is noted, what is refused and with which words."""

from __future__ import annotations

from mmcv import Config

from cskd_train.files.config import config_from_data, config_to_data
from cskd_train.files.vocabulary import TABLES

LEAST = """
model = dict(type="RetinaNet")
data = dict(train=dict(type="CocoDataset", classes=("a", "b"), ann_file="old/train.json"))
optimizer = dict(type="SGD", lr=0.01)
runner = dict(type="EpochBasedRunner", max_epochs=12)
"""
TEACHER = {"teacher": {"checkpoint": "t.pth"}}

SILENT = {
    "model": [{"type": "RetinaNet"}],
    "data": [{"samples_per_gpu": 2}],
    "optimizer": [{"type": "SGD", "lr": 0.1}],
    "optimizer_config": [None, {}],
    "lr_config": [None, {"policy": "step", "step": [8, 11]}],
    "momentum_config": [None, {"policy": "cyclic"}],
    "runner": [{"max_epochs": 1}],
    "evaluation": [None, {}],
    "log_config": [None, {}],
    "checkpoint_config": [None, {}],
    "auto_scale_lr": [None, {"enable": False}],
    "ema": [None, {}],
    "distill": [None, TEACHER],
    "custom_hooks": [None, [], [{"type": "NumClassCheckHook"}]],
    "custom_imports": [{"imports": ["os"]}],
    "load_from": [None, "weights.pth"],
    "seed": [None, 0, 3],
    "cudnn_benchmark": [True, False],
    "deterministic": [True, False],
    "find_unused_parameters": [True, False],
    "accumulate": [1, 4],
    "amp": [None, "bf16", "fp16"],
    "fp16": [None, False, {}],
    "resume_from": [None],
    "auto_resume": [None, False],
    "workflow": [None, [("train", 1)], [["train", 1]]],
    "dist_params": [None, {"backend": "nccl"}],
    "work_dir": [None],
    "gpu_ids": [None, [], [0]],
    "device": [None, "cuda"],
    "log_level": ["INFO"],
    "mp_start_method": [None, "fork"],
    "opencv_num_threads": [0, 1],
    "data.samples_per_gpu": [1, 16],
    "data.workers_per_gpu": [0, 4],
    "data.skip_broken": [True, False],
    "data.train": [{"type": "CocoDataset"}],
    "data.val": [{"type": "CocoDataset"}],
    "data.test": [{"type": "CocoDataset"}],
    "data.unlabeled": [None, {"ann_file": "unlabeled.json"}],
    "data.unlabeled.ann_file": ["unlabeled.json"],
    "data.unlabeled.img_prefix": [None, "photographs/"],
    "data.unlabeled.share": [0.25, 0.75],
    "data.unlabeled.weight": [0, 0.5, 2],
    "data.unlabeled.images": [None, "photographs"],
    "data.unlabeled.classes": [("a", "b")],
    "data.train_dataloader": [None, {}],
    "data.val_dataloader": [None, {}],
    "data.test_dataloader": [None, {}],
    "data.train_dataloader.samples_per_gpu": [1, 16],
    "data.train_dataloader.workers_per_gpu": [0, 4],
    "data.train_dataloader.persistent_workers": [True, False],
    "data.train_dataloader.pin_memory": [True, False],
    "data.train_dataloader.shuffle": [True],
    "data.train_dataloader.drop_last": [False],
    "data.train_dataloader.class_aware_sampler": [None],
    **{
        f"data.{split}_dataloader.{key}": values
        for split in ("val", "test")
        for key, values in {
            "samples_per_gpu": [1],
            "workers_per_gpu": [0, 4],
            "persistent_workers": [True, False],
            "pin_memory": [True, False],
            "shuffle": [False],
        }.items()
    },
    "optimizer.paramwise_cfg.custom_keys": [{"backbone": {"lr_mult": 0.1}}],
    "optimizer.paramwise_cfg.bias_lr_mult": [2.0],
    "optimizer.paramwise_cfg.bias_decay_mult": [0],
    "optimizer.paramwise_cfg.norm_decay_mult": [0.0],
    "optimizer.paramwise_cfg.dwconv_decay_mult": [0.5],
    "optimizer.paramwise_cfg.dcn_offset_lr_mult": [0.1],
    "optimizer.paramwise_cfg.bypass_duplicate": [True],
    "optimizer_config.type": [None, "OptimizerHook"],
    "optimizer_config.grad_clip": [None, {"max_norm": 35, "norm_type": 2}],
    "optimizer_config.detect_anomalous_params": [False],
    "optimizer_config.grad_clip.max_norm": [35, 0.1],
    "optimizer_config.grad_clip.norm_type": [2, 1.5, "inf"],
    "optimizer_config.grad_clip.foreach": [None, True],
    "optimizer_config.grad_clip.error_if_nonfinite": [False],
    "runner.type": ["EpochBasedRunner"],
    "runner.max_epochs": [1, 24],
    "evaluation.interval": [1, 3],
    "evaluation.metric": ["bbox", ["bbox"]],
    "evaluation.save_best": [None, "auto", "bbox_mAP"],
    "evaluation.rule": [None, "greater"],
    "evaluation.start": [None],
    "evaluation.by_epoch": [True],
    "evaluation.dynamic_intervals": [None],
    "evaluation.classwise": [False],
    "evaluation.jsonfile_prefix": [None],
    "evaluation.out_dir": [None],
    "evaluation.proposal_nums": [(100, 300, 1000)],
    "evaluation.iou_thrs": [None],
    "evaluation.metric_items": [None],
    "evaluation.gpu_collect": [True],
    "evaluation.tmpdir": ["/tmp/parts"],
    "evaluation.broadcast_bn_buffer": [True],
    "log_config.interval": [1, 50],
    "log_config.hooks": [None, [{"type": "TextLoggerHook"}, {"type": "TensorboardLoggerHook"}]],
    "checkpoint_config.type": ["CheckpointHook"],
    "checkpoint_config.interval": [1],
    "checkpoint_config.by_epoch": [True],
    "checkpoint_config.save_optimizer": [True],
    "checkpoint_config.save_last": [True],
    "checkpoint_config.out_dir": [None],
    "checkpoint_config.filename_tmpl": ["epoch_{}.pth"],
    "checkpoint_config.create_symlink": [True, False],
    "checkpoint_config.sync_buffer": [True],
    "checkpoint_config.meta": [{}],
    "auto_scale_lr.enable": [False],
    "auto_scale_lr.base_batch_size": [16],
    "ema.decay": [0.9998],
    "ema.warmup": [0, 2000],
    "distill.teacher": [{"checkpoint": "t.pth"}],
    "distill.preset": ["cskd-fixed"],
    "distill.init_student": [True],
    "distill.pyramid": [None, {"full": (1, 2)}],
    "distill.tower": [None, {"cls": (1, 2)}],
    "distill.prediction": [None, (1, 2)],
    "distill.assistant": [None, True],
    "distill.roi": [None, {"fc": (1, 1)}],
    "distill.loss": [{"count_outside": False}],
    "distill.regions": [{"coord_base": "stride"}],
    "distill.level_reduce": [None, "mean"],
}

NOTED = {
    "work_dir": ("runs/a", "--work-dir says"),
    "gpu_ids": ([0, 1], "--gpus says"),
    "device": ("cpu", "--device says"),
    "log_level": ("DEBUG", "at every level"),
    "mp_start_method": ("spawn", "the system's default"),
    "opencv_num_threads": (4, "in one thread"),
    "data.val_dataloader.samples_per_gpu": (8, "one image at a time"),
    "data.test_dataloader.samples_per_gpu": (8, "one image at a time"),
    "evaluation.classwise": (True, "`cskd-train test` prints the AP of each class"),
    "checkpoint_config.max_keep_ckpts": (3, "last.pth and best.pth are written"),
}

COUNT = "expected a whole number of at least"
REFUSED = {
    **{key: (3, "expected a dict") for key, rule in TABLES[""].items() if rule.say == "expected a dict"},
    **{f"data.{split}_dataloader": (3, "expected a dict") for split in ("train", "val", "test")},
    "distill": (3, "distill: expected a dict"),
    "custom_hooks": ({"type": "EMAHook"}, "expected a list of dicts"),
    "load_from": (3, "expected a file or a URL"),
    "seed": (-1, COUNT),
    "cudnn_benchmark": (1, "expected True or False"),
    "deterministic": ("yes", "expected True or False"),
    "find_unused_parameters": (None, "expected True or False"),
    "accumulate": (0, "expected a whole number of at least 1"),
    "amp": ("int8", "expected 'bf16' or 'fp16'"),
    "fp16": ({"loss_scale": 512.0}, "(--set fp16=None) and give --amp bf16 or --amp fp16"),
    "resume_from": ("epoch_3.pth", "--resume"),
    "auto_resume": (True, "--resume"),
    "workflow": ([("train", 1), ("val", 1)], "only [('train', 1)]"),
    "dist_params": ({"backend": "nccl", "port": 29501}, "torchrun"),
    "data.samples_per_gpu": (0, COUNT),
    "data.workers_per_gpu": (-1, COUNT),
    "data.skip_broken": ("yes", "expected True or False"),
    "data.unlabeled": ("unlabeled.json", "expected a dict"),
    "data.unlabeled.ann_file": (["a.json", "b.json"], "expected a file"),
    "data.unlabeled.img_prefix": (1, "expected a file or a URL"),
    "data.unlabeled.share": (1, "expected a number between 0 and 1"),
    "data.unlabeled.weight": (-0.5, "at least 0"),
    "data.unlabeled.images": (1, "expected a file or a URL"),
    "data.train_dataloader.samples_per_gpu": (2.0, COUNT),
    "data.train_dataloader.workers_per_gpu": (True, COUNT),
    "data.train_dataloader.shuffle": (False, "shuffles the images in every epoch"),
    "data.train_dataloader.drop_last": (True, "every batch of an epoch is a full one"),
    "data.train_dataloader.class_aware_sampler": ({"num_sample_class": 1}, "put ClassBalancedDataset around"),
    "data.val_dataloader.workers_per_gpu": (-1, COUNT),
    "data.test_dataloader.workers_per_gpu": (-1, COUNT),
    "data.val_dataloader.shuffle": (True, "in order"),
    "data.test_dataloader.shuffle": (True, "in order"),
    "optimizer.paramwise_cfg.custom_keys": (["backbone"], "expected a dict"),
    "optimizer.paramwise_cfg.bias_lr_mult": ("2", "expected a number"),
    "optimizer.paramwise_cfg.bias_decay_mult": (None, "expected a number"),
    "optimizer.paramwise_cfg.norm_decay_mult": ("0", "expected a number"),
    "optimizer.paramwise_cfg.dwconv_decay_mult": ("0", "expected a number"),
    "optimizer.paramwise_cfg.dcn_offset_lr_mult": ("0", "expected a number"),
    "optimizer.paramwise_cfg.bypass_duplicate": (1, "expected True or False"),
    "optimizer_config.type": ("SomeHook", "only OptimizerHook"),
    "optimizer_config.grad_clip": (35, "expected a dict"),
    "optimizer_config.detect_anomalous_params": (True, "find_unused_parameters = True"),
    "optimizer_config.grad_clip.max_norm": (0, "expected a number above 0"),
    "optimizer_config.grad_clip.norm_type": ("two", "expected a number above 0"),
    "optimizer_config.grad_clip.error_if_nonfinite": (True, "ends the run anyway"),
    "runner.max_epochs": (0, COUNT),
    "evaluation.interval": (0, COUNT),
    "evaluation.metric": (["bbox", "segm"], "write metric='bbox'"),
    "evaluation.save_best": ("bbox_mAP_50", "best.pth is the epoch of the highest bbox_mAP"),
    "evaluation.rule": ("less", "best.pth is the epoch of the highest bbox_mAP"),
    "evaluation.start": (3, "write evaluation.interval"),
    "evaluation.by_epoch": (False, "evaluation.interval in epochs"),
    "evaluation.dynamic_intervals": ([(10, 1)], "write evaluation.interval"),
    "evaluation.jsonfile_prefix": ("found", "`cskd-train test --out FILE`"),
    "evaluation.out_dir": ("elsewhere", "--work-dir"),
    "evaluation.proposal_nums": ((1, 10, 500), "COCO's standard one"),
    "evaluation.iou_thrs": ([0.5], "COCO's standard one"),
    "evaluation.metric_items": (["mAP_50"], "COCO's standard one"),
    "log_config.interval": (0, COUNT),
    "log_config.hooks": ({"type": "TextLoggerHook"}, "expected a list of dicts"),
    "checkpoint_config.type": ("OtherHook", "only CheckpointHook"),
    "checkpoint_config.interval": (1000, "--checkpoint-every STEPS"),
    "checkpoint_config.by_epoch": (False, "--checkpoint-every STEPS"),
    "checkpoint_config.save_optimizer": (False, "for --resume"),
    "checkpoint_config.save_last": (False, "last.pth and best.pth are written"),
    "checkpoint_config.out_dir": ("elsewhere", "--work-dir"),
    "checkpoint_config.filename_tmpl": ("{}.pth", "last.pth and best.pth are written"),
    "auto_scale_lr.enable": (1, "expected True or False"),
    "auto_scale_lr.base_batch_size": (0, COUNT),
    "ema.decay": (1.0, "expected a number between 0 and 1"),
    "ema.warmup": (-1, COUNT),
}


def config(**settings):
    """The least config with these blocks."""
    return with_keys(settings)


def with_keys(settings):
    """The least config with dotted keys set, and the blocks that these need."""
    data = config_to_data(Config.fromstring(LEAST, ".py"))
    if any(key.startswith("distill.") for key in settings):
        data["distill"] = {**TEACHER}
    if any(key.startswith("data.unlabeled.") for key in settings):
        data["data"]["unlabeled"] = {"ann_file": "unlabeled.json"}
    if any(key.startswith("optimizer_config.grad_clip.") for key in settings):
        data["optimizer_config"] = {"grad_clip": {"max_norm": 35}}
    cfg = config_from_data(data)
    cfg.merge_from_dict({key: value for key, value in settings.items() if "." in key})
    return config_from_data({**config_to_data(cfg), **{key: v for key, v in settings.items() if "." not in key}})
