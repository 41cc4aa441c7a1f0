# The student alone: RetinaNet R18 on BCCD, from scratch.
_base_ = ["../_base_/retinanet_r18.py", "../_base_/bccd.py", "../_base_/adamw.py", "../_base_/runtime.py"]
model = dict(
    backbone=dict(init_cfg=None, norm_eval=False),  # from scratch: BatchNorm learns
    bbox_head=dict(num_classes=3),
)
lr_config = dict(policy="step", warmup="linear", warmup_iters=50, warmup_ratio=0.1, step=[6, 7])
runner = dict(type="EpochBasedRunner", max_epochs=8)
