# GFL with a ResNet-18 backbone and the neck that fits it, of half width.
_base_ = ["gfl_r50_half.py"]
model = dict(backbone=dict(depth=18), neck=dict(in_channels=[32, 64, 128, 256]))
