# GFL with a ResNet-50 backbone, all of half width, from scratch: for a processor.
_base_ = ["gfl_r50.py"]
model = dict(
    backbone=dict(base_channels=32, init_cfg=None, norm_eval=False),  # from scratch: BatchNorm learns
    neck=dict(in_channels=[128, 256, 512, 1024], out_channels=64),
    bbox_head=dict(
        in_channels=64,
        feat_channels=64,
        norm_cfg=dict(type="GN", num_groups=8, requires_grad=True),
    ),
)
