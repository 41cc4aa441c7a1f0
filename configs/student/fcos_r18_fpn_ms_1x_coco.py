# FCOS ResNet-18, multi-scale, 1x: the student alone, the honest baseline of the distilled recipes.
# Corrected: the published files feed this torchvision backbone images normalised for the caffe teacher. Here they are
# normalised for the backbone, and the teacher sees its own normalisation of them (docs/algorithm.md 8.4).
_base_ = [
    "../_base_/fcos_r18.py",
    "../_base_/coco_multiscale.py",
    "../_base_/schedule_1x.py",
    "../_base_/runtime.py",
]
optimizer = dict(paramwise_cfg=dict(bias_lr_mult=2.0, bias_decay_mult=0.0))
