# The student alone: GFL R18 on photographs of cards, from scratch and of half width, for a processor.
_base_ = ["../_base_/gfl_r18.py", "../_base_/cards.py", "../_base_/adamw.py", "../_base_/runtime.py"]
model = dict(
    backbone=dict(base_channels=32, init_cfg=None, norm_eval=False),  # from scratch: BatchNorm learns
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    bbox_head=dict(
        num_classes=6,
        in_channels=64,
        feat_channels=64,
        norm_cfg=dict(type="GN", num_groups=8, requires_grad=True),
        anchor_generator=dict(octave_base_scale=4),  # figures start at 16 pixels
    ),
)
lr_config = dict(policy="step", warmup="linear", warmup_iters=50, warmup_ratio=0.1, step=[16, 19])
runner = dict(type="EpochBasedRunner", max_epochs=20)
