# The student alone: FCOS R18 on photographs of cards, from scratch and of half width, for a processor.
_base_ = ["../_base_/fcos_r18.py", "../_base_/cards.py", "../_base_/adamw.py", "../_base_/runtime.py"]
model = dict(
    backbone=dict(  # from scratch: BatchNorm learns
        base_channels=32, init_cfg=None, norm_eval=False, norm_cfg=dict(type="BN", requires_grad=True)
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    bbox_head=dict(
        num_classes=6,
        in_channels=64,
        feat_channels=64,
        norm_cfg=dict(type="GN", num_groups=8, requires_grad=True),
    ),
)
lr_config = dict(policy="step", warmup="linear", warmup_iters=50, warmup_ratio=0.1, step=[16, 19])
runner = dict(type="EpochBasedRunner", max_epochs=20)
