# FCOS with a ResNet-18 backbone and the neck that fits it. There is no caffe ResNet-18: the backbone is torchvision's
# and takes RGB images, mean subtracted and divided by the deviation (docs/algorithm.md 8.4).
_base_ = ["fcos_r50.py"]
model = dict(
    backbone=dict(depth=18, style="pytorch", init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet18")),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
