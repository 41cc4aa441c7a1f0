# FCOS with a ResNet-50 backbone, all of half width, from scratch: for a processor.
_base_ = ["fcos_r50.py"]
model = dict(
    backbone=dict(  # from scratch: BatchNorm learns
        base_channels=32, init_cfg=None, norm_eval=False, norm_cfg=dict(type="BN", requires_grad=True)
    ),
    neck=dict(in_channels=[128, 256, 512, 1024], out_channels=64),
    bbox_head=dict(
        in_channels=64,
        feat_channels=64,
        norm_cfg=dict(type="GN", num_groups=8, requires_grad=True),
    ),
)
